"""CAFE: the contract, the sketch against SpaceSaving item by item, its theorem, and rows that come and go."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recsys_embed import ConfigError, EmbeddingLayer, Feature
from recsys_embed.config import CafeConfig, parse_config
from recsys_embed.embeddings import Cafe, hot_sketch
from recsys_embed.embeddings.base import Lookup
from recsys_embed.embeddings.cafe import DECAY_AFTER, TUNED
from recsys_embed.embeddings.index_maps import Sketch
from recsys_embed.embeddings.tally import UNIT, Tally
from recsys_embed.hashing import hash_rows
from recsys_embed.ids import Ids
from recsys_embed.recommender import build_recommender
from recsys_embed.tables.base import UpdateRule
from recsys_embed.testing import BAGS, StrategyContract
from recsys_embed.training.metrics import auc
from recsys_embed.training.optimizers import Optimizers
from tests.backends import EVERY
from tests.processes import on_processes


class TestCafe(StrategyContract):
    config = CafeConfig(threshold=1.5, every=2)

    def test_its_training_promotes(self) -> None:
        """Else the tests inherited from the contract would see hashed rows only."""
        layer = self.layer(BAGS)
        self.trained(layer)
        pointers = cafe_of(layer).sketch.pointers
        assert 20 < int((pointers >= 0).sum()) < pointers.numel()


class TestCafeOfManyHashedRows(StrategyContract):
    config = CafeConfig(hash_rate=0.9)


def cafe_of(layer: EmbeddingLayer) -> Cafe:
    (strategy,) = layer.strategies
    assert isinstance(strategy, Cafe)
    return strategy


# --- the sketch ----------------------------------------------------------------------------------------------


def sketch_of(buckets: int, seed: int = 0, cells: int = 4) -> Sketch:
    return Sketch([0], 10**6, buckets, cells, seed)


def insert(sketch: Sketch, keys: list[int], scores: list[float]) -> Tensor:
    return hot_sketch.insert(sketch, torch.tensor(keys), torch.tensor(scores, dtype=torch.float32))


def held(sketch: Sketch) -> list[dict[int, float]]:
    """The keys of every bucket with their scores."""
    return [
        {key: score for key, score in zip(*row, strict=True) if key >= 0}
        for row in zip(sketch.keys.tolist(), sketch.scores.tolist(), strict=True)
    ]


class SpaceSaving:
    """The textbook's: ``cells`` counters; a new key takes over the least, and its count. Ties go to the largest key."""

    def __init__(self, cells: int) -> None:
        self.cells, self.counts = cells, dict[int, float]()

    def add(self, key: int, weight: float) -> None:
        if key in self.counts or len(self.counts) < self.cells:
            self.counts[key] = self.counts.get(key, 0) + weight
            return
        least = min(self.counts, key=lambda k: (self.counts[k], -k))
        self.counts[key] = self.counts.pop(least) + weight


@pytest.mark.parametrize("seed", range(4))
def test_one_key_at_a_time_is_space_saving(seed: int):
    rng = np.random.default_rng(seed)
    sketch, slow = sketch_of(5, seed), [SpaceSaving(4) for _ in range(5)]
    for key, weight in zip(rng.zipf(1.3, 600) % 90, rng.integers(1, 6, 600), strict=True):
        insert(sketch, [int(key)], [float(weight)])
        slow[int(sketch.buckets_of(torch.tensor(int(key))))].add(int(key), float(weight))
    assert held(sketch) == [one.counts for one in slow]
    assert sum(len(one) for one in held(sketch)) == 20


def merged(sketch: Sketch, keys: list[int], scores: list[float]) -> tuple[list[dict[int, float]], set[int]]:
    """Buckets after a merge of SpaceSaving summaries, item by item in Python, and the keys added to."""
    buckets, hits = held(sketch), set()
    pointers = dict(zip(sketch.keys.view(-1).tolist(), sketch.pointers.view(-1).tolist(), strict=True))
    news: list[dict[int, float]] = [{} for _ in buckets]
    for key, score in zip(keys, scores, strict=True):
        bucket = int(sketch.buckets_of(torch.tensor(key)))
        if key in buckets[bucket]:
            buckets[bucket][key] += score
            hits.add(key)  # though it may lose its cell to a better one
        else:
            news[bucket][key] = score
    for bucket, new in zip(buckets, news, strict=True):
        fixed = {key: score for key, score in bucket.items() if pointers[key] >= 0}
        loose = {key: score for key, score in bucket.items() if pointers[key] < 0}
        free = sketch.keys.shape[1] - len(fixed)
        least = min(loose.values()) if len(loose) == free and loose else 0.0
        loose.update({key: least + score for key, score in new.items()})
        best = sorted(loose, key=lambda key: (-loose[key], key))[:free]
        bucket.clear()
        bucket.update(fixed | {key: loose[key] for key in best})
    return buckets, hits & {key for bucket in buckets for key in bucket}


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), buckets=st.integers(1, 12), cells=st.integers(1, 5), span=st.integers(5, 300))
def test_a_batch_is_a_merge_of_summaries(seed: int, buckets: int, cells: int, span: int):
    rng = np.random.default_rng(seed)
    sketch, turned = sketch_of(buckets, seed, cells), sketch_of(buckets, seed, cells)
    for _ in range(6):
        keys = rng.choice(span, rng.integers(0, span), replace=False).tolist()
        scores = rng.integers(1, 9, len(keys)).astype(float).tolist()
        expected, expected_hits = merged(sketch, keys, scores)
        hit = insert(sketch, keys, scores)
        assert held(sketch) == expected
        assert set(sketch.keys[hit].tolist()) == expected_hits
        insert(turned, keys[::-1], scores[::-1])
        assert held(turned) == held(sketch)
        for one in (sketch, turned):
            hot_sketch.promote(one, (one.scores >= 8) & (one.keys >= 0), 2 * buckets)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), batch=st.integers(1, 60), cells=st.integers(1, 5))
def test_what_a_sketch_promises(seed: int, batch: int, cells: int):
    rng = np.random.default_rng(seed)
    sketch, true, inserted = sketch_of(6, seed, cells), Counter[int](), Counter[int]()
    for _ in range(10):
        keys, counts = np.unique(rng.zipf(1.4, batch) % 200, return_counts=True)
        insert(sketch, keys.tolist(), counts.astype(float).tolist())
        for key, count in zip(keys.tolist(), counts.tolist(), strict=True):
            true[key] += count
            inserted[int(sketch.buckets_of(torch.tensor(key)))] += count
    for bucket, scores in enumerate(held(sketch)):
        assert sum(scores.values()) <= inserted[bucket]
        assert all(score >= true[key] for key, score in scores.items())
    least = sketch.scores.amin(1)
    kept = {key for scores in held(sketch) for key in scores}
    for key in set(true) - kept:
        assert true[key] <= least[sketch.buckets_of(torch.tensor(key))]


@pytest.mark.parametrize("others", ["even", "zipf", "few"])
@pytest.mark.parametrize("batch", [1, 200])
def test_hot_ids_are_kept_as_often_as_the_theorem_says(others: str, batch: int):
    # 6 hot ids with a share g each, in w buckets of c cells: kept with probability above 1 - (1 - g) / ((c - 1) g w).
    total, hot, share, w, c, seeds = 2000, 6, 0.04, 12, 4, 60
    left = total - int(hot * share * total)
    weights = {
        "even": np.ones(600),
        "zipf": np.arange(1, 601) ** -1.0,
        "few": np.ones(int(left / (share * total * 0.9))),  # nearly as heavy as the hot ones
    }[others]
    bound = 1 - (1 - share) / ((c - 1) * share * w)
    assert 0.3 < bound < 0.5
    kept = 0
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        tail = 100 + rng.choice(len(weights), left, p=weights / weights.sum())
        stream = rng.permutation(np.concatenate([np.repeat(np.arange(hot), int(share * total)), tail]))
        sketch = sketch_of(w, seed, c)
        if batch == 1:  # item by item, by the slow oracle that it equals
            slow = [SpaceSaving(c) for _ in range(w)]
            buckets = sketch.buckets_of(torch.tensor(stream)).tolist()
            for key, bucket in zip(stream.tolist(), buckets, strict=True):
                slow[bucket].add(key, 1.0)
            names = {key for one in slow for key in one.counts}
        else:
            for part in stream.reshape(-1, batch):
                keys, counts = np.unique(part, return_counts=True)
                insert(sketch, keys.tolist(), counts.astype(float).tolist())
            names = {key for scores in held(sketch) for key in scores}
        kept += len(names & set(range(hot)))
    trials = seeds * hot
    assert kept / trials >= bound - 3 * math.sqrt(bound * (1 - bound) / trials)


def test_strided_keys_spread_over_buckets():
    # id mod w would put them all in one.
    counts = torch.bincount(sketch_of(64).buckets_of(torch.arange(0, 64 * 640, 64)), minlength=64)
    assert counts.max() < 30
    assert counts.min() > 0


def test_keys_beyond_int32():
    sketch = Sketch([0, 2**33], 2**34, 3, 4, 0)
    hot_sketch.insert(sketch, torch.tensor([5, 2**33 + 5]), torch.tensor([1.0, 2.0]))
    hot_sketch.promote(sketch, sketch.scores > 1.5, 3)
    assert sketch(Ids(torch.tensor([[5, 6], [5, 6]]), 2)).view(2, 2).tolist() == [[-1, -1], [0, -1]]
    assert (Sketch.cell_bytes(2**31), Sketch.cell_bytes(2**31 + 1)) == (12, 16)
    assert sum(t.numel() * t.element_size() for t in sketch.state_dict().values()) == 3 * 4 * 16


# --- sizes ---------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 5000), min_size=1, max_size=4),
    dim=st.integers(1, 64),
    hash_rate=st.none() | st.floats(0.01, 0.99),
    place=st.floats(0, 1),
)
def test_every_setting_fills_its_rows(sizes: list[int], dim: int, hash_rate: float | None, place: float):
    """4 D (R - 1) < bytes <= 4 D R: so that any budget is met to less than a row, also where the defaults change."""
    features, config = [Feature(f"f{i}", n) for i, n in enumerate(sizes)], CafeConfig(hash_rate=hash_rate)
    low, high = Cafe.least(config, features, dim), Cafe.most(config, features, dim)
    for rows in {low, high, low + int(place * (high - low))}:
        one = Cafe.sized(config, features, dim, rows, "cafe", 0)
        stored = sum(t.numel() * t.element_size() for n, t in one.state_dict().items() if n not in one.training_only)
        used = stored + 4 * sum(spec.rows * spec.width for spec in one.tables())
        assert one.private >= 1
        assert min(one.shared.values()) >= 1
        # Where there are as good as no ids, not even their full tables fill so many rows.
        assert used <= 4 * dim * rows
        assert used > 4 * dim * (rows - 1) or sum(one.shared.values()) == sum(sizes)


def test_defaults_follow_the_kept_fraction():
    features = [Feature("x", 100_000)]
    for kept, threshold, hash_rate in [
        (0.5, 10, 0.7),
        (0.2, 10, 0.5),
        (0.1, 20, 0.5),
        (0.01, 100, 0.3),
        (4e-4, 500, 0.1),
    ]:
        one = Cafe.sized(CafeConfig(), features, 16, int(kept * 100_000), "cafe", 0)
        assert one.threshold == threshold
        assert one.shared["x"] == pytest.approx(kept * hash_rate * 100_000, rel=0.03, abs=2)
        assert one.private == pytest.approx(kept * (1 - hash_rate) * 100_000 * 64 / (64 + 48), rel=0.03, abs=1)
    assert [kept for kept, _, _ in TUNED] == sorted(kept for kept, _, _ in TUNED)
    assert EmbeddingLayer(features, 16, strategy="cafe", budget=1.0).plan.coarse is False
    full = EmbeddingLayer(features, 16, strategy="cafe", budget=2.0)
    assert list(full.tables.specs) == ["x"]
    assert full.tables.specs["x"].rows == 100_000


def test_planning_allocates_no_sketch(monkeypatch: pytest.MonkeyPatch):
    made = []
    init = Sketch.__init__

    def noted(self: Sketch, *args: object) -> None:
        init(self, *args)  # type: ignore[arg-type]
        made.append(self.keys.device.type)

    monkeypatch.setattr(Sketch, "__init__", noted)
    EmbeddingLayer([Feature("x", 100_000)], 16, strategy="cafe", budget=0.1)
    assert made.count("cpu") == 1
    assert made.count("meta") > 5


def test_what_cannot_be_is_named():
    for options in ({"threshold": 0}, {"hash_rate": 1.0}, {"decay": 1.1}, {"every": 0}):
        with pytest.raises(ConfigError, match=next(iter(options))):
            EmbeddingLayer([Feature("x", 1000)], 8, strategy={"*": {"name": "cafe", **options}}, budget=0.5)
    tree = {"data": {"path": "x"}, "embedding": {"strategy": "cafe", "budget": 0.5}}
    adam = {"optimizer": {"tables": "adam"}}
    with pytest.raises(ConfigError, match="strategy 'cafe' changes tables in training: use another optimizer"):
        parse_config({**tree, "training": adam})
    with pytest.raises(ConfigError, match="strategy 'cafe' changes tables in training: use another optimizer"):
        parse_config({"data": {"path": "x"}, "study": {"strategies": ["full", "cafe"]}, "training": adam})
    model = build_recommender(parse_config(tree), [Feature("x", 1000)], 0)
    other = parse_config({"data": {"path": "x"}, "training": adam})
    with pytest.raises(ConfigError, match=r"strategy Cafe changes tables in training: call optimizer\(\) first"):
        Optimizers(model, other.training)


# --- importance ----------------------------------------------------------------------------------------------


def small(features: list[Feature], *, threshold: float = 5.0, **options: object) -> EmbeddingLayer:
    config = CafeConfig(threshold=threshold, every=10**6, hash_rate=0.3)
    return EmbeddingLayer(features, 4, strategy={"*": config}, budget=0.5, exact=(), **options)  # type: ignore[arg-type]


def tallied(layer: EmbeddingLayer) -> dict[int, float]:
    keys, sums = cafe_of(layer).tally.take()
    return dict(zip(keys.tolist(), (sums * UNIT).tolist(), strict=True))


def test_importance_is_the_gradients_norm_over_its_features_mean():
    layer = small([Feature("a", 100), Feature("b", 50)])
    optimizer = layer.optimizer("sgd", lr=0.1)
    scale = torch.tensor([[1.0, 3.0, 0.0, 4.0], [70.0, 10.0, 10.0, 10.0]])
    direction = torch.tensor([0.6, 0.0, 0.8, 0.0])
    ids = torch.tensor([[7, 8, 9, 7], [3, 3, 4, 5]])
    (layer(ids) * (scale.t().unsqueeze(2) * direction)).sum().backward()
    optimizer.step()
    expected = {7: 5 / 2, 8: 3 / 2, 103: 80 / 25, 104: 10 / 25, 105: 10 / 25}
    assert tallied(layer) == pytest.approx(expected, rel=1e-5)


def test_importance_of_bags_and_of_a_shared_vocabulary():
    features = [Feature("a", 100), Feature("bag", vocabulary="a", multi_valued=True, pooling="mean")]
    layer = small(features)
    optimizer = layer.optimizer("sgd", lr=0.1)
    ids = {"a": torch.tensor([7, 8]), "bag": (torch.tensor([7, 7, 9, 9]), torch.tensor([0, 1, 4]))}
    layer(ids).sum().backward()
    optimizer.step()
    # a: 1 each. bag: an id alone in its bag has the whole gradient, three share theirs; the mean of 1, 1/3, 1/3, 1/3.
    assert tallied(layer) == pytest.approx({7: 1 + 2 + 2 / 3, 8: 1.0, 9: 4 / 3}, rel=1e-5)
    layer(ids).sum().mul(0).backward()
    optimizer.step()
    assert tallied(layer) == {}


def test_a_tally_sums_exactly_in_any_order():
    rng = np.random.default_rng(0)
    keys, scores = torch.tensor(rng.integers(0, 30, 5000)), torch.tensor(rng.lognormal(0, 4, 5000))
    one, other = Tally(), Tally()
    one.add(keys, scores)
    for part in torch.randperm(5000, generator=torch.Generator().manual_seed(0)).split(700):
        other.add(keys[part], scores[part])
    (names, sums), (names_too, sums_too) = one.take(), other.take()
    assert torch.equal(names, names_too)
    assert torch.equal(sums, sums_too)
    exact = torch.zeros(30, dtype=torch.float64).index_add_(0, keys, scores)
    torch.testing.assert_close(sums.double() * UNIT, exact[names], rtol=0, atol=5000 * UNIT)
    assert one.take()[0].numel() == 0


# --- rows that come and go -----------------------------------------------------------------------------------


def observe(layer: EmbeddingLayer, scores: dict[int, float]) -> None:
    """Importance of ids of the first feature, as if it had been observed."""
    keys = torch.tensor(list(scores), dtype=torch.int64)
    cafe_of(layer).tally.add(keys, torch.tensor(list(scores.values()), dtype=torch.float64))


def maintain(layer: EmbeddingLayer, scores: dict[int, float]) -> None:
    observe(layer, scores)
    cafe_of(layer).maintain(layer.tables)


def hot(layer: EmbeddingLayer) -> set[int]:
    sketch = cafe_of(layer).sketch
    return set(sketch.keys[sketch.pointers >= 0].tolist())


@pytest.mark.parametrize("backend", EVERY)
@pytest.mark.parametrize("rule", ["sgd", "adagrad", "rowwise_adagrad"])
def test_promotion_copies_the_shared_row_with_its_state(backend: str, rule: str):
    if backend == "fused":
        pytest.importorskip("fbgemm_gpu", reason="the fused back end needs FBGEMM")
    layer = small([Feature("a", 100), Feature("b", 60)], backend=backend)
    optimizer, cafe = layer.optimizer(rule, lr=0.1), cafe_of(layer)
    ids = torch.tensor([[7, 8, 9], [1, 2, 3]])
    for _ in range(3):
        layer(ids).square().sum().backward()
        optimizer.step()
    cafe.tally.take()
    before = layer(ids).detach()
    names = {"a": 7, "b": 2}
    home = {
        name: int(cafe.index_maps["shared"](Ids(ids, 2))[place, 0, ids[place].tolist().index(id_)])
        for place, (name, id_) in enumerate(names.items())
    }
    shared = {name: layer.tables.get_rows(name, torch.tensor([row])) for name, row in home.items()}

    maintain(layer, {7: 6.0, 102: 9.0})
    assert hot(layer) == set()  # new in the sketch
    maintain(layer, {7: 1.0, 102: 1.0, 9: 100.0})
    assert hot(layer) == {7, 102}

    assert torch.equal(layer(ids), before)
    for place, (name, id_) in enumerate(names.items()):
        private = cafe.sketch(Ids(ids, 2))[place, 0, ids[place].tolist().index(id_)]
        copied = layer.tables.get_rows("cafe.private", private.view(1))
        assert torch.equal(copied.weights, shared[name].weights)
        assert torch.equal(copied.state, shared[name].state)
    # From now on a gradient moves its own row and no other.
    whole = {name: layer.tables.get(name).clone() for name in layer.tables.specs}
    layer(torch.tensor([[7], [2]])).square().sum().backward()
    optimizer.step()
    assert torch.equal(layer.tables.get("a"), whole["a"])
    assert torch.equal(layer.tables.get("b"), whole["b"])
    changed = (layer.tables.get("cafe.private") != whole["cafe.private"]).any(1)
    assert set(changed.nonzero().view(-1).tolist()) == set(cafe.sketch.pointers[cafe.sketch.pointers >= 0].tolist())


def test_the_best_are_promoted_first_and_only_as_many_as_there_are_rows():
    layer = small([Feature("a", 400)])
    layer.optimizer("sgd", lr=0.1)
    private = cafe_of(layer).private
    scores = {key: 10.0 + key for key in range(2 * private)}
    sketch = cafe_of(layer).sketch
    maintain(layer, scores)
    known = sketch.keys.unique()
    maintain(layer, scores)
    pointers = sketch.pointers[sketch.pointers >= 0]
    assert sorted(pointers.tolist()) == list(range(private))
    worst = min(sketch.scores[sketch.pointers >= 0].tolist())
    left = sketch.scores[(sketch.pointers < 0) & (sketch.keys >= 0) & torch.isin(sketch.keys, known)]
    assert len(left) > 5
    assert left.max() <= worst
    # A key with a row keeps its cell, however much is seen of others in its bucket.
    before = hot(layer)
    maintain(layer, dict.fromkeys(range(300, 400), 1000.0))
    assert hot(layer) == before


def test_demotion_frees_the_row_and_the_id_reads_its_shared_row_again():
    layer = small([Feature("a", 200)])
    layer.optimizer("sgd", lr=0.1)
    cafe = cafe_of(layer)
    for _ in range(2):
        maintain(layer, {7: 2.6, 8: 300.0})
    assert hot(layer) == {7, 8}
    shared = layer.tables.get("a")[int(hash_rows(torch.tensor(7), *constants(cafe)))].detach()
    layer.tables.put("cafe.private", torch.zeros(cafe.private, 4))
    assert not torch.equal(layer.vectors("a", torch.tensor([7]))[0], shared)
    row = int(cafe.sketch(Ids(torch.tensor([[7]]), 1)))
    # 5.2 decays below the threshold of 5 after 4 times, 600 does not.
    span = DECAY_AFTER * cafe.private * cafe.threshold
    maintain(layer, {9: 3.9 * span - 605.2})
    maintain(layer, {})
    assert hot(layer) == {7, 8}
    maintain(layer, {10: 0.2 * span})
    maintain(layer, {})
    assert hot(layer) == {8}
    assert torch.equal(layer.vectors("a", torch.tensor([7]))[0], shared)
    maintain(layer, {9: 1.0})
    assert hot(layer) == {8, 9}
    assert int(cafe.sketch(Ids(torch.tensor([[9]]), 1))) == row


def constants(cafe: Cafe) -> tuple[Tensor, Tensor]:
    shared = cafe.index_maps["shared"]
    return shared.seeds[0, 0], shared.rows[0, 0]  # type: ignore[index]


def test_decay_is_once_for_every_span_of_importance():
    layer = small([Feature("a", 200)])
    layer.optimizer("sgd", lr=0.1)
    cafe = cafe_of(layer)
    span = DECAY_AFTER * cafe.private * cafe.threshold
    maintain(layer, {1: 2.5 * span})
    assert cafe.sketch.scores.sum().item() == pytest.approx(2.5 * span)
    maintain(layer, {})
    assert cafe.sketch.scores.sum().item() == pytest.approx(2.5 * span * 0.99**2, rel=1e-6)
    maintain(layer, {})
    assert cafe.sketch.scores.sum().item() == pytest.approx(2.5 * span * 0.99**2, rel=1e-6)
    assert int(cafe.seen) * UNIT == pytest.approx(0.5 * span)


def test_maintenance_runs_at_its_cadence():
    layer = EmbeddingLayer([Feature("a", 200)], 4, strategy={"*": CafeConfig(every=3, threshold=1.0)}, budget=0.5)
    optimizer = layer.optimizer("sgd", lr=0.1)
    counts = []
    for _ in range(7):
        vectors = layer(torch.tensor([[1, 2, 3]]))
        optimizer.zero_grad()
        vectors.square().sum().backward()
        optimizer.step()
        layer.after_step()
        counts.append((cafe_of(layer).tally.get_extra_state().shape[0], len(hot(layer))))
    assert counts == [(3, 0), (6, 0), (0, 0), (3, 0), (6, 0), (0, 3), (3, 3)]


# --- several ranks -------------------------------------------------------------------------------------------


def seen_by(rank: int, step: int, cafe: Cafe) -> tuple[Lookup, dict[str, Tensor]]:
    """What a rank reads in a step, and its gradients; ranks see batches of different sizes."""
    rng = np.random.default_rng([rank, step])
    ids = Ids(torch.tensor(np.stack([rng.zipf(1.3, 40 + 30 * rank) % n for n in (300, 90)])), 2)
    gradient = torch.tensor(rng.normal(size=(ids.batch, 2, 1, 4)), dtype=torch.float32)
    return cafe.address(ids), {"shared": gradient, "private": gradient}


def maintained(ranks: list[int]) -> dict[str, Tensor]:
    layer = small([Feature("a", 300), Feature("b", 90)], threshold=8.0, backend="reference")
    layer.tables.train_by(UpdateRule("rowwise_adagrad"))  # type: ignore[operator]
    cafe = cafe_of(layer)
    for step in range(6):
        for rank in ranks:
            cafe.observe(*seen_by(rank, step, cafe))
        if step % 2:
            cafe.maintain(layer.tables)
    assert len(hot(layer)) > 20
    assert int(cafe.seen) > 0
    return layer.state_dict()


def _rank(rank: int, folder: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.set_num_threads(1)
    torch.save(maintained([rank]), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_ranks_agree_with_one_that_sees_all(tmp_path: Path):
    on_processes(_rank, (str(tmp_path),), 2)
    alone = maintained([0, 1])
    for rank in range(2):
        torch.testing.assert_close(torch.load(tmp_path / f"{rank}.pt", weights_only=True), alone, rtol=0, atol=0)


# --- is it worth it ------------------------------------------------------------------------------------------


def zipf_clicks(seed: int, sizes: tuple[int, ...], rows: int) -> tuple[Tensor, Tensor]:
    """Ids ``[F, rows]`` by a Zipf law of exponent 1.05, and clicks by an effect of every id."""
    rng = np.random.default_rng(seed)
    ids, logits = [], np.full(rows, -0.5)
    for size in sizes:
        chance = np.arange(1, size + 1) ** -1.05
        ranks = rng.choice(size, rows, p=chance / chance.sum())
        logits += rng.normal(0, 0.8, size)[ranks]
        ids.append(rng.permutation(size)[ranks])
    return torch.tensor(np.stack(ids)), torch.tensor(rng.random(rows) < 1 / (1 + np.exp(-logits))).float()


def test_beats_the_hash_of_the_same_bytes_where_few_ids_matter():
    sizes, rows, batch = (30_000, 10_000, 3_000), 60_000, 500
    features = [Feature(f"f{place}", size) for place, size in enumerate(sizes)]
    gains = []
    for seed in range(3):
        ids, clicks = zipf_clicks(seed, sizes, rows + 20_000)
        found = {}
        for strategy in ("hash", "cafe"):
            layer = EmbeddingLayer(features, 8, strategy=strategy, budget=0.01, exact=(), seed=seed)
            head = torch.nn.Linear(24, 1, bias=True)
            torch.nn.init.constant_(head.weight, 0.3)
            optimizers = [layer.optimizer("adagrad", lr=0.1), torch.optim.Adam(head.parameters(), lr=0.01)]
            for start in range(0, rows, batch):
                part = slice(start, start + batch)
                scores = head(layer(ids[:, part]).flatten(1)).view(-1)
                for optimizer in optimizers:
                    optimizer.zero_grad()
                torch.nn.functional.binary_cross_entropy_with_logits(scores, clicks[part]).backward()
                for optimizer in optimizers:
                    optimizer.step()
                layer.after_step()
            assert 0.98 * layer.plan.budget_bytes <= layer.plan.serve_bytes <= layer.plan.budget_bytes
            with torch.no_grad():
                scores = head(layer(ids[:, rows:]).flatten(1)).view(-1)
            found[strategy] = auc(clicks[rows:].numpy(), scores.numpy())
        gains.append(found["cafe"] - found["hash"])
    assert min(gains) > 0.01, gains
