"""F19: generated cases. Each strategy against an oracle, forward and gradient; parsers against damaged input.

The oracle reads one row at a time in float64, with autograd. Parsers get trees, text and bytes that are almost right,
and may raise our own errors alone.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import torch
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from torch import Tensor

from bench.injections.artifacts import configured, fresh, make, table
from bench.injections.bad_ids import FEATURES as BATCHED
from bench.injections.layers import layer
from bench.injections.tally import Scale, Tally
from recsys_embed.config import STRATEGIES, load_config, parse_config
from recsys_embed.data import EncodedDataset, Encoder
from recsys_embed.data.readers import read_frames
from recsys_embed.embeddings.base import Strategy
from recsys_embed.errors import RecsysEmbedError
from recsys_embed.export import load
from recsys_embed.features import Feature, resolve
from recsys_embed.files import MANIFEST, verify_manifest, write_manifest
from recsys_embed.ids import Ids
from recsys_embed.layer import EmbeddingLayer
from recsys_embed.report.results import read_predictions, read_results
from recsys_embed.training import checkpoints

RELATIVE, ABSOLUTE = 1e-5, 1e-6


def inject(scale: Scale, folder: Path) -> Tally:
    """Examples are the same in every quick run, and drawn anew in each full one."""
    tally = Tally()
    settings = hypothesis.settings(
        max_examples=scale.of(20, 200),
        derandomize=scale.name == "quick",
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    for strategy in STRATEGIES:
        for backend in ("parameters", "reference", "fused"):
            _run(f"{strategy}, {backend}", _oracle(strategy, backend, tally), settings, tally)
    for name, fuzz in _parsers(fresh(folder / "parsers")).items():
        _run(name, _counted(fuzz, tally), settings, tally)
    return tally


def _run(name: str, test: Callable[[hypothesis.settings], None], settings: hypothesis.settings, tally: Tally) -> None:
    try:
        test(settings)
    except Exception as error:
        text = " ".join(str(error).split())[:200]
        tally.silent += isinstance(error, AssertionError)
        tally.breach(f"{name}: {type(error).__name__}: {text} {' '.join(getattr(error, '__notes__', []))[:300]}")


# --- strategies ----------------------------------------------------------------------------------------------


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[Feature], Ids]:
    """One to three features, zero to five samples, bags of zero to four ids with repeats, weights, int32 or int64."""
    names = draw(st.permutations(["user", "item", "city"]))[: draw(st.integers(1, 3))]
    sizes = {"user": 300, "item": 90, "city": 40}
    jagged = draw(st.booleans())
    features = [
        Feature(
            name,
            sizes[name],
            multi_valued=jagged and draw(st.booleans()),
            pooling=draw(st.sampled_from(["sum", "mean"])),
        )
        for name in names
    ]
    samples = draw(st.integers(0, 5))
    dtype = draw(st.sampled_from([torch.int32, torch.int64]))
    one_id = draw(st.booleans())  # the same id everywhere
    lengths, values = [], []
    for feature in features:
        for _ in range(samples):
            length = draw(st.integers(0, 4)) if feature.multi_valued else 1
            lengths.append(length)
            values += [0 if one_id else draw(st.integers(0, feature.size - 1)) for _ in range(length)]
    flat = torch.tensor(values, dtype=dtype)
    if not any(feature.multi_valued for feature in features):
        return features, Ids(flat.view(len(features), samples), len(features))
    offsets = torch.tensor(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
    weights = None
    if all(feature.multi_valued for feature in features) and draw(st.booleans()):
        weights = torch.tensor([draw(st.sampled_from([0.25, 1.0, 2.0])) for _ in values], dtype=torch.float32)
    return features, Ids(flat, len(features), offsets, weights)


def _oracle(strategy: str, backend: str, tally: Tally) -> Callable[[hypothesis.settings], None]:
    def run(settings: hypothesis.settings) -> None:
        @settings
        @given(batches(), st.sampled_from([4, 8]), st.integers(0, 3))
        def holds(batch: tuple[list[Feature], Ids], dim: int, seed: int) -> None:
            features, ids = batch
            tally.injected += 1
            kept = "auto" if backend == "parameters" else backend
            built = layer(strategy, features, dim=dim, backend=kept, hash_seed=seed, seed=seed)
            optimizer: torch.optim.Optimizer
            if backend == "parameters":
                optimizer = torch.optim.SGD(built.parameters(), lr=1.0)
            else:
                optimizer = built.optimizer("sgd", lr=1.0)
            before = {name: built.tables.get(name).detach().clone() for name in built.tables.specs}
            target = torch.randn(ids.batch, len(features), dim, generator=torch.Generator().manual_seed(seed))
            expected, gradients = slow_gradients(built, ids, target)
            vectors = built(ids)
            torch.testing.assert_close(vectors.detach().double(), expected, rtol=RELATIVE, atol=ABSOLUTE)
            if vectors.requires_grad:
                (vectors * target).sum().backward()
            optimizer.step()
            for name, old in before.items():
                moved = (old - built.tables.get(name).detach()).double()
                # A difference of weights is exact to their last bit, not to the gradient's.
                torch.testing.assert_close(moved, gradients[name], rtol=RELATIVE, atol=1e-5)
            tally.recovered += 1

        holds()

    return run


def slow_gradients(built: EmbeddingLayer, ids: Ids, target: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Vectors ``[B, F, D]`` and the gradient of ``sum(vectors * target)`` by table, id by id in float64."""
    tables = {n: built.tables.get(n).detach().double().requires_grad_() for n in built.tables.specs}
    flat, features = ids.jagged(), resolve(built.features)
    assert flat.offsets is not None
    bounds, values, samples = flat.offsets.tolist(), flat.values.tolist(), ids.batch
    out: list[list[Tensor]] = [[torch.zeros(built.dim, dtype=torch.float64)] * len(features) for _ in range(samples)]
    total = torch.zeros((), dtype=torch.float64)
    for strategy in built.strategies:
        assert isinstance(strategy, Strategy)
        own = {feature.name: place for place, feature in enumerate(strategy.features)}
        for f, feature in enumerate(features):
            if feature.name not in own:
                continue
            for b in range(samples):
                bag = range(bounds[f * samples + b], bounds[f * samples + b + 1])
                vector = torch.zeros(built.dim, dtype=torch.float64)
                for place in bag:
                    weight = 1.0 if flat.weights is None else float(flat.weights[place])
                    if feature.multi_valued and feature.pooling == "mean":
                        weight /= len(bag)
                    vector = vector + weight * _vector(strategy, tables, own[feature.name], values[place])
                out[b][f] = vector
                total = total + (vector * target[b, f].double()).sum()
    if total.requires_grad:
        total.backward()
    shape = (samples, len(features), built.dim)
    stacked = torch.stack([torch.stack(row) for row in out]).detach() if samples else torch.zeros(shape).double()
    return stacked, {n: torch.zeros_like(t) if t.grad is None else t.grad for n, t in tables.items()}


def _vector(strategy: Strategy, tables: dict[str, Tensor], place: int, value: int) -> Tensor:
    one = torch.zeros(len(strategy.features), 1, dtype=torch.int64)
    one[place] = value
    lookup = strategy.address(Ids(one, len(strategy.features)))
    rows = {}
    for name, homes in strategy.reads().items():
        numbers = [int(lookup.rows[name][place, slot, 0]) for slot in range(len(homes[place]))]
        parts = [
            tables[home][number] if number >= 0 else torch.zeros_like(tables[home][0])
            for home, number in zip(homes[place], numbers, strict=True)
        ]
        rows[name] = torch.stack(parts)
    aux = {name: integers[0, place] for name, integers in lookup.aux.items()}
    return strategy.combine(rows, replace(lookup, aux=aux))


# --- parsers -------------------------------------------------------------------------------------------------


def _counted(fuzz: Callable[[random.Random, Any], object], tally: Tally) -> Callable[[hypothesis.settings], None]:
    def run(settings: hypothesis.settings) -> None:
        @settings
        @given(st.integers(0, 2**32), TREES)
        def holds(seed: int, tree: Any) -> None:
            tally.injected += 1
            try:
                fuzz(random.Random(seed), tree)
            except RecsysEmbedError:
                tally.detected += 1
            else:
                tally.recovered += 1  # what is read is well formed; that it is whole is what F4 and F5 are about

        holds()

    return run


WORDS = (
    *("data", "path", "label", "categorical", "numeric", "multi_valued", "split", "random", "column", "files", "model"),
    *("name", "dim", "hidden", "embedding", "strategy", "budget", "exact", "training", "batch_size", "epochs"),
    *("optimizer", "tables", "study", "strategies", "budgets", "seeds", "chunks"),
)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["full", "hash", "unified", "dcn_v2", "*", "user", "10x", "64MB", "../x", "", "nan", "1e999"])
)
KEYS = st.sampled_from([*WORDS, "*", "user"]) | st.text(max_size=5)
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4), max_leaves=8
)


def _parsers(home: Path) -> dict[str, Callable[[random.Random, Any], object]]:
    """Each takes a source of chance and a tree of plain values, damages something good with them, and reads it."""
    good = configured().model_dump(mode="json", exclude_none=True)
    text = configured().to_toml()
    gz, csv = make("csv.gz input", home / "gz").root, home / "rows.csv"
    lines = table(20).to_csv(index=False).encode()
    parquet = home / "rows.parquet"
    table(50).to_parquet(parquet)
    bytes_of = {path: path.read_bytes() for path in (gz, parquet)}
    columns = ["user", "price", "clicked"]

    def config_tree(draw: random.Random, tree: Any) -> object:
        return parse_config(grafted(good, tree, draw))

    def config_any(draw: random.Random, tree: Any) -> object:
        return parse_config(tree if isinstance(tree, dict) else {"data": tree})

    def config_text(draw: random.Random, tree: Any) -> object:
        path = home / "config.toml"
        path.write_bytes(mangled(text.encode(), draw))
        return load_config(path)

    def override(draw: random.Random, tree: Any) -> object:
        key = draw.choice(["model.dim", "embedding.strategy", "data.split", "a.b", "", ".", "model", "study.budgets"])
        return parse_config(json.loads(json.dumps(good)), (f"{key}={json.dumps(tree, default=str)}",))

    def file(path: Path, data: bytes | None = None) -> Callable[[random.Random, Any], object]:
        def read(draw: random.Random, tree: Any) -> object:
            path.write_bytes(mangled(bytes_of[path] if data is None else data, draw))
            return list(read_frames(path, columns))

        return read

    def built(draw: random.Random, tree: Any) -> object:
        return layer("hash", BATCHED, budget=tree)

    def patterns(draw: random.Random, tree: Any) -> object:
        return EmbeddingLayer([Feature("user", 50)], 4, strategy=tree if isinstance(tree, (str, dict)) else {"*": tree})

    emb = layer("unified", BATCHED)

    def ids(draw: random.Random, tree: Any) -> object:
        return emb(tree if draw.random() < 0.5 else {"user": tree, "tags": tree, "city": torch.tensor([1])})

    return {
        "config, a tree": config_any,
        "config, a changed tree": config_tree,
        "config, TOML": config_text,
        "config, an override": override,
        "reader, CSV": file(csv, lines),
        "reader, gzip": file(gz),
        "reader, Parquet": file(parquet),
        "budget": built,
        "strategy": patterns,
        "ids": ids,
        **_folders(home),
    }


def _folders(home: Path) -> dict[str, Callable[[random.Random, Any], object]]:
    """Files in our own folders that fit their manifest and are wrong all the same."""
    checkpoint = make("checkpoint", home / "a").root
    model = make("model folder", home / "b").root
    data = make("encoded data set", home / "c").root
    results = make("results.csv", home / "d").root
    predictions = make("predictions", home / "e").root

    def inside(root: Path, name: str, read: Callable[[Path], object]) -> Callable[[random.Random, Any], object]:
        def attack(draw: random.Random, tree: Any) -> object:
            copy = fresh(home / "copy") / "folder"
            shutil.copytree(root, copy)
            path = copy / name
            whole = path.read_bytes()
            if name.endswith(".json") and draw.random() < 0.7:
                path.write_text(json.dumps(grafted(json.loads(whole), tree, draw), default=str))
            else:
                path.write_bytes(mangled(whole, draw))
            if name != MANIFEST:
                write_manifest(copy)
            return read(copy)

        return attack

    def whole_data(folder: Path) -> object:
        dataset = EncodedDataset.open(folder)
        return [len(dataset.columns(split)) for split in ("train", "val", "test")]

    def rows(draw: random.Random, tree: Any) -> object:
        path = fresh(home / "csv") / "results.csv"
        path.write_bytes(mangled(results.read_bytes(), draw))
        return read_results(path)

    def scores(draw: random.Random, tree: Any) -> object:
        path = fresh(home / "scores") / "predictions" / "run.parquet"
        path.parent.mkdir()
        path.write_bytes(mangled(predictions.read_bytes(), draw))
        return read_predictions(path.parent.parent, "run")

    return {
        "manifest": inside(model, MANIFEST, verify_manifest),
        "checkpoint, state": inside(checkpoint, checkpoints.STATE, checkpoints.load),
        "checkpoint, tensors": inside(checkpoint, checkpoints.tensors_file(), checkpoints.load),
        "model, encoder": inside(model, "encoder/encoder.json", lambda folder: Encoder.load(folder / "encoder")),
        "model, vocabulary": inside(model, "encoder/vocabulary-0.parquet", lambda f: Encoder.load(f / "encoder")),
        "model, config": inside(model, "config.toml", load),
        "model, weights": inside(model, "model.safetensors", load),
        "data set, schema": inside(data, "schema.json", whole_data),
        "data set, rows": inside(data, "train.arrow", whole_data),
        "results.csv": rows,
        "predictions": scores,
    }


def mangled(data: bytes, draw: random.Random) -> bytes:
    """One to three changes: bits, bytes that mean something, a piece left out, repeated or moved, an end cut off."""
    changed = bytearray(data)
    for _ in range(draw.randint(1, 3)):
        if not changed:
            break
        at, to = sorted(draw.randrange(len(changed)) for _ in range(2))
        kind = draw.randrange(5)
        if kind == 0:
            changed[at] ^= 1 << draw.randrange(8)
        elif kind == 1:
            changed[at:at] = draw.choice(
                [b"\0", b'"', b"\n", b"\r", b",", b"\xff\xfe", b"=", b"[", b"'''", b"nan", b"\xc3"]
            )
        elif kind == 2:
            del changed[at : min(to, at + 40)]
        elif kind == 3:
            changed[at:at] = changed[at : min(to, at + 40)]
        else:
            del changed[to:]
    return bytes(changed)


def grafted(tree: Any, branch: Any, draw: random.Random) -> Any:
    """A copy of a tree with one node replaced, or a key added."""
    if isinstance(tree, dict) and tree and draw.random() < 0.85:
        key = draw.choice(list(tree))
        return {**tree, key: grafted(tree[key], branch, draw)}
    if isinstance(tree, dict) and isinstance(branch, dict):
        return {**tree, **branch}
    if isinstance(tree, list) and tree and draw.random() < 0.7:
        at = draw.randrange(len(tree))
        return [*tree[:at], grafted(tree[at], branch, draw), *tree[at + 1 :]]
    return branch
