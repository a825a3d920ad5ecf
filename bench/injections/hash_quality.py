"""F17: structured and hostile ids through the index maps of every strategy.

Two keys a row on average, so that by chance alone a share 1 - exp(-2) of rows is used and chi² a degree of freedom is
1. A map of digits is no hash: what it promises is that distinct ids have distinct digits, and that is what is counted.
A sketch hashes to its buckets, independently of the hashed rows beside it, and no two of the ids to which it gives a
row of their own may get the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from bench.injections.artifacts import digest
from bench.injections.children import call
from bench.injections.layers import layer
from bench.injections.tally import Scale, Tally
from recsys_embed.config import STRATEGIES
from recsys_embed.embeddings import hot_sketch
from recsys_embed.embeddings.index_maps import Blocks, Digits, Hash, Identity, IndexMap, Sketch
from recsys_embed.features import Feature
from recsys_embed.hashing import hash_rows
from recsys_embed.ids import Ids
from recsys_embed.seeds import seed_of

MOST_LOADED = 16


def inject(scale: Scale, folder: Path) -> Tally:
    """Seven patterns of keys, each index map, three hash seeds; a stream that was built to collide; other processes."""
    tally, ids = Tally(), scale.of(50_000, 400_000)
    for strategy in STRATEGIES:
        known = 0
        for seed in range(3):
            maps = _maps(strategy, seed, ids)
            for index_map in maps:
                known += 1
                if isinstance(index_map, (Hash, Blocks)):
                    _spread(index_map, f"{strategy}, seed {seed}", tally)
                elif isinstance(index_map, Digits):
                    _injective(index_map, f"{strategy}, seed {seed}", tally)
                elif isinstance(index_map, Sketch):
                    _sketched(
                        index_map, [one for one in maps if isinstance(one, Hash)], f"{strategy}, seed {seed}", tally
                    )
                elif isinstance(index_map, Identity):
                    known -= 1
                else:
                    tally.gaps.append(f"{strategy}: no law is known here for {type(index_map).__name__}")
        if not known:
            tally.notes.append(f"{strategy}: a row per id, nothing is hashed")
    _hostile(scale.of(2_000_000, 20_000_000), tally)
    _processes(scale.of(1, 2), tally)
    tally.gaps = list(dict.fromkeys(tally.gaps))
    tally.notes.append(
        "ids built against a hash seed that is known (0 unless embedding.hash_seed says otherwise) collide at will: "
        "the seed is what protects, and it was not known to the stream injected here"
    )
    return tally


def _maps(strategy: str, seed: int, ids: int) -> list[IndexMap]:
    built = layer(strategy, [Feature("user", ids), Feature("item", ids)], dim=4, hash_seed=seed)
    return [module for part in built.strategies for module in part.modules() if isinstance(module, IndexMap)]


def patterns(keys: int, rows: int) -> Iterator[tuple[str, Tensor]]:
    """Distinct keys in seven patterns that break weak hashes."""
    base = torch.arange(keys, dtype=torch.int64)
    backwards = sum(((base >> bit) & 1) << (61 - bit) for bit in range(24))
    assert isinstance(backwards, Tensor)
    yield "sequential", base
    yield "stride 1000", base * 1000
    yield "stride rows", base * rows
    yield "field << 32 | id", ((base % 26) << 32) | (base // 26)
    yield "id << 40", (base % 2**23) << 40
    yield "stride 2^31 - 1", base * (2**31 - 1)
    yield "bits reversed", backwards


def _spread(index_map: Hash | Blocks, place: str, tally: Tally) -> None:
    """Uniform in each slot. Slots of one block are neighbours: only those of different hashes are independent."""
    count, slots = (
        index_map.seeds.shape[0],
        (len(index_map.block_of) if isinstance(index_map, Blocks) else index_map.rows.shape[1]),
    )
    sizes = index_map.rows.expand(count, slots)
    for row_count in sorted({int(one) for one in sizes.flatten()}):
        keys = min(2 * row_count, 400_000)
        for name, values in patterns(keys, row_count):
            tally.injected += 1
            rows = index_map(Ids(values.expand(count, -1), count))  # [F, S, keys]
            ok = True
            for feature, slot in (sizes == row_count).nonzero().tolist():
                ok &= _uniform(rows[feature, slot], row_count, f"{place}, {name}", tally)
            if isinstance(index_map, Hash):
                ok &= _independent(index_map, rows, keys, f"{place}, {name}", tally)
            tally.recovered += ok
            tally.silent += not ok


def _uniform(rows: Tensor, row_count: int, place: str, tally: Tally) -> bool:
    loads = torch.bincount(rows, minlength=row_count).double()
    load = len(rows) / row_count
    chi = ((loads - load) ** 2 / load).sum().item() / (row_count - 1)
    used = (loads > 0).double().mean().item()
    tolerance = max(0.05, 6 * math.sqrt(2 / row_count))
    share = max(0.01, 1.5 / math.sqrt(row_count))  # five standard deviations where there are few rows
    wrong = [
        f"chi²/df {chi:.3f}" if abs(chi - 1) > tolerance else "",
        f"{used:.3f} of rows are used" if abs(used - (1 - math.exp(-load))) > share else "",
        f"{int(loads.max())} keys in one row" if loads.max() > MOST_LOADED else "",
    ]
    for one in filter(None, wrong):
        tally.breach(f"{place}: {one}")
    return not any(wrong)


def _independent(index_map: Hash, rows: Tensor, keys: int, place: str, tally: Tally) -> bool:
    """Pairs of slots of a feature give as many distinct codes as two independent hashes would."""
    sizes, fine = index_map.rows, True
    for feature in range(sizes.shape[0]):
        for slot in range(1, sizes.shape[1]):
            pair = [(rows[feature, one], int(sizes[feature, one])) for one in (0, slot)]
            fine &= _distinct(*pair, f"{place}, slots 0 and {slot}", tally)
    return fine


def _distinct(first: tuple[Tensor, int], second: tuple[Tensor, int], place: str, tally: Tally) -> bool:
    """As many distinct pairs of two hashes, each with its number of rows, as if they were independent."""
    room = first[1] * second[1]
    found = len(torch.unique(first[0] * second[1] + second[0]))
    expected = -room * math.expm1(-len(first[0]) / room)
    if abs(found / expected - 1) > 0.01:
        tally.breach(f"{place}: {found} distinct pairs, {expected:.0f} expected")
        return False
    return True


def _sketched(sketch: Sketch, hashes: list[Hash], place: str, tally: Tally) -> None:
    """Buckets are uniform and independent of hashed rows; rows that are given are given once."""
    buckets, count = sketch.keys.shape[0], len(hashes[0].seeds)
    for name, values in patterns(min(2 * buckets, 400_000), buckets):
        ids = Ids(values.expand(count, -1), count)
        found, ok = sketch.buckets_of(sketch.keys_of(ids)), True  # [F, 1, keys]
        for feature in range(count):
            ok &= _uniform(found[feature, 0], buckets, f"{place}, buckets of {name}", tally)
            for hashed in hashes:
                shared = hashed(ids)[feature, 0], int(hashed.rows[feature, 0])
                ok &= _distinct((found[feature, 0], buckets), shared, f"{place}, bucket and row of {name}", tally)
        tally.injected += 1
        tally.recovered += ok
        tally.silent += not ok
    _given_once(sketch, buckets, place, tally)


def _given_once(sketch: Sketch, rows: int, place: str, tally: Tally) -> None:
    """Twice as many ids as rows are seen twice; those that get a row get different ones, others none."""
    keys = torch.arange(2 * rows) * 2
    for _ in range(2):
        hit = hot_sketch.insert(sketch, keys, torch.rand(len(keys), generator=torch.Generator().manual_seed(0)) + 0.5)
    promoted = hot_sketch.promote(sketch, hit, rows)
    pointers, others = sketch.pointers_of(promoted), sketch.pointers_of(torch.arange(2 * rows) * 2 + 1)
    once = len(promoted) > 0 and len(torch.unique(pointers)) == len(promoted)
    once = once and 0 <= pointers.min().item() <= pointers.max().item() < rows and bool((others == -1).all())
    tally.injected += 1
    tally.recovered += once
    tally.silent += not once
    if not once:
        tally.breach(f"{place}: ids share a row that was to be their own")


def _injective(index_map: Digits, place: str, tally: Tally) -> None:
    count = index_map.bases.shape[0]
    for feature in range(count):
        bases = index_map.bases[feature].tolist()
        ids = torch.arange(min(math.prod(bases), 400_000))
        digits = index_map(Ids(ids.expand(count, -1), count))[feature]
        code = torch.zeros_like(ids)
        for digit, base in zip(digits, bases, strict=True):
            code = code * base + digit
        tally.injected += 1
        distinct = len(torch.unique(code)) == len(ids)
        tally.recovered += distinct
        tally.silent += not distinct


def _hostile(tried: int, tally: Tally) -> None:
    """Ids that all fall into a few rows under one seed, read under another: at most twice the load of random ids."""
    rows, draw = 1000, torch.Generator().manual_seed(0)
    for known, other in ((0, 1), (1, 2), (2, 0)):
        seeds = [torch.tensor(seed_of("user", 0, seed)) for seed in (known, other)]
        ids = torch.arange(tried)
        aimed = hash_rows(ids, seeds[0], torch.tensor(rows))
        stream = ids[aimed < 2]
        chance = torch.randint(2**40, (len(stream),), generator=draw)
        tally.injected += 1
        load, usual = (
            int(torch.bincount(hash_rows(one, seeds[1], torch.tensor(rows)), minlength=rows).max())
            for one in (stream, chance)
        )
        tally.recovered += load <= 2 * usual
        tally.silent += load > 2 * usual
        tally.notes.append(
            f"{len(stream)} ids that fill 2 of {rows} rows under seed {known}: at most {load} in a row under seed "
            f"{other}, random ids {usual}"
        )


def digests() -> list[str]:
    """Of each strategy's row numbers."""
    ids, found = Ids(torch.arange(1000).expand(2, -1).contiguous(), 2), []
    for strategy in STRATEGIES:
        found.append(digest({str(place): one(ids) for place, one in enumerate(_maps(strategy, 1, 20_000))}))
    return found


ELSEWHERE = "import json; from bench.injections.hash_quality import digests; print(json.dumps(digests()))"


def _processes(others: int, tally: Tally) -> None:
    """Other processes, with hash seeds of their own, give the rows that this one gives."""
    here = digests()
    for turn in range(others):
        code, lines, errors = call(ELSEWHERE, PYTHONHASHSEED=str(1 + turn * 1000))
        if code:
            tally.breach(f"a process failed: {errors}")
        tally.injected += 1
        same = lines == [here]
        tally.recovered += same
        tally.silent += not same
