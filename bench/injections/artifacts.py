"""Every kind of file that a run writes or reads, made small, with the public call that reads it back.

make(kind, folder, turn) writes the artifact into folder and returns it; turns differ in their values.
artifact.read() gives a digest of all values that a user would get, and raises where the artifact is damaged.
"""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
import xxhash

from recsys_embed.config import Config, parse_config
from recsys_embed.data import EncodedDataset, prepare
from recsys_embed.data.bags import Bag
from recsys_embed.data.readers import read_frames
from recsys_embed.data.vocabulary import Vocabulary
from recsys_embed.errors import CheckpointError
from recsys_embed.export import export, load
from recsys_embed.recommender import build_recommender
from recsys_embed.report import judge, run
from recsys_embed.report.results import (
    predictions_path,
    read_predictions,
    read_results,
    write_predictions,
    write_results,
)
from recsys_embed.report.trials import TRIALS, read_trials, write_trials
from recsys_embed.seals import SUFFIX, intact
from recsys_embed.training import checkpoints


@dataclass(frozen=True)
class Artifact:
    """Where it lies, the files that are damaged, and how it is read."""

    kind: str
    root: Path
    files: tuple[Path, ...]
    read: Callable[[], str]


def make(kind: str, folder: Path, *, turn: int = 0, rows: int = 1500) -> Artifact:
    """Write an artifact of a kind into ``folder``. ``rows`` sets its size: about 30 bytes each in most kinds."""
    folder.mkdir(parents=True, exist_ok=True)
    return MAKERS[kind](folder, turn, rows)


def _checkpoint(folder: Path, turn: int, rows: int) -> Artifact:
    generator = torch.Generator().manual_seed(turn)
    tensors = {"model.table": torch.randn(rows, 8, generator=generator), "optimizer.step": torch.tensor(turn)}
    path = checkpoints.save(folder / "checkpoints", turn + 1, tensors, {"history": [{"val_auc": 0.5 + turn}]})

    def read() -> str:
        found = checkpoints.load(path)
        return digest({**found.tensors, "meta": found.meta})

    return Artifact("checkpoint", path, _files(path), read)


def _model(folder: Path, turn: int, rows: int) -> Artifact:
    config, dataset = configured(turn), encoded(folder, rows)
    model = build_recommender(config, dataset.features, len(dataset.dense))
    path = export(model, config, dataset.encoder, folder / "model")
    frame = table(60)

    def read() -> str:
        predictor = load(path)
        return digest({**predictor.model.state_dict(), "scores": predictor.predict(frame).to_numpy()})

    return Artifact("model folder", path, _files(path), read)


def _dataset(folder: Path, turn: int, rows: int) -> Artifact:
    path = folder / "data"
    prepare(table(rows, seed=turn), schema(), path)

    def read() -> str:
        return digest_dataset(EncodedDataset.open(path))

    return Artifact("encoded data set", path, _files(path), read)


def _vocabulary(folder: Path, turn: int, rows: int) -> Artifact:
    import pyarrow as pa

    path = folder / "vocabulary.parquet"
    values = pa.array([f"value-{turn}-{n * 7919 % rows:x}" for n in range(rows)])
    Vocabulary(values, np.arange(rows + 1, dtype=np.int64)).save(path)

    def read() -> str:
        found = Vocabulary.load(path)
        return digest({"values": found.values.to_pylist(), "counts": found.counts})

    return Artifact("vocabulary", path, (path,), read)


def _results(folder: Path, turn: int, rows: int) -> Artifact:
    path = folder / "results.csv"
    write_results(path, [result_row(n, turn) for n in range(max(1, rows // 100))])
    return _sealed_table(path, lambda: read_results(path))


def _trials(folder: Path, turn: int, rows: int) -> Artifact:
    told = {"epochs": 3, "chosen": False}
    write_trials(folder, [{**result_row(n, turn), **told, "trial": n + 1} for n in range(max(1, rows // 100))])
    return _sealed_table(folder / TRIALS, lambda: read_trials(folder))


def _sealed_table(path: Path, table: Callable[[], pd.DataFrame]) -> Artifact:
    def read() -> str:
        if not intact(path):  # what a reader is warned of
            raise CheckpointError("has changed since it was written", file=str(path))
        return digest({"rows": table().astype(object).to_numpy().tolist()})

    return Artifact(path.name, path, (path, path.with_name(path.name + SUFFIX)), read)


def _document(folder: Path, turn: int, rows: int) -> Artifact:
    return _saved_document(folder, turn, rows, run.RESULT, run.finished)


def _judged(folder: Path, turn: int, rows: int) -> Artifact:
    return _saved_document(folder, turn, rows, judge.JUDGED, judge.judged)


def _saved_document(folder: Path, turn: int, rows: int, name: str, find: Callable[..., Any]) -> Artifact:
    cell, dataset = run.Cell(configured(turn)), cast(EncodedDataset, SimpleNamespace(fingerprint="0123456789abcdef"))
    row = {**result_row(0, turn), "run": cell.digest(dataset.fingerprint), "status": "infeasible"}
    history = [{"epoch": n, "val_auc": n / 7} for n in range(rows // 50)]
    run.save_document(folder, {"row": row, "history": history}, name)
    path = folder / run.RUNS / row["run"] / name

    def read() -> str:
        found = find(cell, dataset, folder)
        if found is None:
            raise CheckpointError("the run is to be done again", file=str(path))
        return digest(found)

    return Artifact(f"{name} of a run", path, (path, path.with_name(path.name + SUFFIX)), read)


def _predictions(folder: Path, turn: int, rows: int) -> Artifact:
    draw = np.random.default_rng(turn)
    path = write_predictions(
        folder,
        "run",
        row=np.arange(rows),
        label=draw.integers(0, 2, rows),
        score=draw.random(rows),
        bucket=draw.integers(0, 4, rows),
    )

    def read() -> str:
        found = read_predictions(folder, "run")
        assert found is not None
        return digest(found)

    assert path == predictions_path(folder, "run")
    return Artifact("predictions", path, (path,), read)


def _gzipped(folder: Path, turn: int, rows: int) -> Artifact:
    path = folder / "rows.csv.gz"
    path.write_bytes(gzip.compress(table(rows, seed=turn).to_csv(index=False).encode(), mtime=0))

    def read() -> str:
        frames = list(read_frames(path, ["user", "item", "tags", "price", "clicked"]))
        return digest({"rows": pd.concat(frames).fillna("").to_numpy().tolist()})

    return Artifact("csv.gz input", path, (path,), read)


MAKERS: dict[str, Callable[[Path, int, int], Artifact]] = {
    "checkpoint": _checkpoint,
    "model folder": _model,
    "encoded data set": _dataset,
    "vocabulary": _vocabulary,
    "results.csv": _results,
    "trials.csv": _trials,
    "result.json": _document,
    "judged.json": _judged,
    "predictions": _predictions,
    "csv.gz input": _gzipped,
}


# --- what they are made of -----------------------------------------------------------------------------------


def table(rows: int, seed: int = 0) -> pd.DataFrame:
    """Raw rows: ``user``, ``item``, ``tags`` (multi-valued), ``price``, ``clicked`` and ``part``, the split."""
    draw = np.random.default_rng(seed)
    user, item = (300 * draw.random(rows) ** 2).astype(int), (80 * draw.random(rows) ** 2).astype(int)
    price = draw.normal(size=rows).round(3)
    logit = draw.normal(size=300)[user] + draw.normal(size=80)[item] + 0.5 * price
    clicked = (draw.random(rows) < 1 / (1 + np.exp(-logit))).astype(int)
    clicked[:12] = np.arange(12) // 6  # each split has both classes, whatever the seed
    return pd.DataFrame(
        {
            "user": [f"u{u}" for u in user],
            "item": [f"i{i}" for i in item],
            "tags": [f"t{u % 7}|t{i % 5}" for u, i in zip(user, item, strict=True)],
            "price": price,
            "clicked": clicked,
            "part": np.resize(["test", "val", "train", "train", "train", "train"], rows),
        }
    )


def schema() -> dict[str, Any]:
    """The columns of :func:`table`, as the config has them."""
    return {
        "label": "clicked",
        "categorical": ["user", "item"],
        "multi_valued": {"tags": "|"},
        "numeric": ["price"],
        "split": {"column": "part"},
    }


def configured(seed: int = 0, **sections: Any) -> Config:
    """A config over :func:`table` that trains in seconds; no tracking."""
    tree: dict[str, Any] = {
        "data": {"path": "unused.csv", **schema()},
        "model": {"name": "dcn_v2", "dim": 8, "cross_layers": 1, "hidden": [16]},
        "embedding": {"strategy": "hash", "budget": 0.5, "exact": [], "seed": seed},
        "training": {"batch_size": 256, "epochs": 3, "seed": seed, "threads": 1},
        "tracking": {"enabled": False},
    }
    for name, section in sections.items():
        tree[name] = {**tree.get(name, {}), **section}
    return parse_config(tree)


def encoded(folder: Path, rows: int) -> EncodedDataset:
    """The data set that a model of this folder was made for; encoded once."""
    return prepare(table(rows), schema(), folder / "encoded")


def saved_steps(out: Path) -> set[str]:
    """The names of the checkpoints in the folder of a command ``train``."""
    return {path.parent.name for path in out.glob("checkpoints/*/step-*/manifest.json")}


def model_sums(out: Path) -> dict[str, str]:
    """The checksums of the files of the model that a command ``train`` has left."""
    files = json.loads((out / "model" / "manifest.json").read_text(encoding="utf-8"))["files"]
    return {one["path"]: one["xxh3_64"] for one in files}


def result_row(number: int, turn: int) -> dict[str, Any]:
    """A row of ``results.csv``."""
    return {
        "dataset": "clicks",
        "fingerprint": "0123456789abcdef",
        "model": "dcn_v2",
        "strategy": "hash",
        "settings": {"user": 100 + turn},
        "dim": 8,
        "budget_requested": "0.5",
        "budget_bytes": 10_000 + number,
        "kept_fraction": 0.5,
        "seed": number,
        "val_auc": 0.71 + 0.001 * turn,
        "test_auc": 0.7 + 0.0001 * number,
        "test_logloss": 0.5,
        "serve_bytes": 9_900,
        "run": f"{number:016x}",
        "status": "ok",
    }


# --- digests -------------------------------------------------------------------------------------------------


def digest(values: Mapping[str, Any]) -> str:
    """A digest of arrays, tensors and plain values, by name."""
    total = xxhash.xxh3_128()
    for name in sorted(values):
        value = values[name]
        if isinstance(value, torch.Tensor):
            value = value.detach().contiguous().numpy()
        total.update(name.encode() + b"\0")
        if isinstance(value, np.ndarray):
            total.update(f"{value.dtype}{value.shape}".encode())
            total.update(np.ascontiguousarray(value).tobytes())
        else:
            total.update(json.dumps(value, default=str).encode())
    return total.hexdigest()


def digest_dataset(dataset: EncodedDataset) -> str:
    """A digest of all rows, vocabularies and frequencies."""
    values: dict[str, Any] = {"dense": dataset.dense, "features": [repr(one) for one in dataset.features]}
    for split in ("train", "val", "test"):
        columns = dataset.columns(split)
        for place, ids in enumerate(columns.ids):
            if isinstance(ids, Bag):
                values[f"{split} {place} offsets"] = ids.offsets
            values[f"{split} {place}"] = ids.values if isinstance(ids, Bag) else ids
        for place, column in enumerate(columns.numbers):
            values[f"{split} number {place}"] = column
    for feature in dataset.features:
        assert feature.counts is not None
        values[f"{feature.name} counts"] = feature.counts
        values[f"{feature.name} values"] = dataset.encoder.vocabularies[feature.vocab].values.to_pylist()
    return digest(values)


def fresh(folder: Path) -> Path:
    """An empty folder."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _files(root: Path) -> tuple[Path, ...]:
    return tuple(sorted(file for file in root.rglob("*") if file.is_file()))
