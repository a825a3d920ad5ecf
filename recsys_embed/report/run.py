"""One run: build the model, train it and judge it on validation, read the test split once, measure what it cost.

A run is identified by everything its outcome depends on: its resolved config, the data's fingerprint and the code.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import shutil
import time
import traceback
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xxhash

from recsys_embed import ranks
from recsys_embed.config import Config, StrategyNode
from recsys_embed.data import EncodedDataset
from recsys_embed.data.screening import left_out
from recsys_embed.data.vectors import contents
from recsys_embed.errors import BudgetError, DivergedError
from recsys_embed.files import atomic_write
from recsys_embed.ledger import with_vocabularies
from recsys_embed.provenance import code_digest, peak_rss_bytes, reset_peak_rss, versions
from recsys_embed.recommender import Recommender, build_recommender, shipped_recommender
from recsys_embed.report.results import COLUMNS, STATUSES, predictions_path, write_predictions
from recsys_embed.report.serving import serving_speed
from recsys_embed.seals import intact, write_sealed
from recsys_embed.training.evaluation import counts
from recsys_embed.training.initial import begin_with
from recsys_embed.training.metrics import evaluate
from recsys_embed.training.optimizers import Optimizers
from recsys_embed.training.trainer import TrainResult, predict, train

_LOG = logging.getLogger("recsys_embed")
Begin = Callable[[Recommender, Optimizers], None]
RUNS, RESULT, LEDGER, ERROR = "runs", "result.json", "ledger.csv", "error.txt"


@dataclass(frozen=True, eq=False)
class Cell:
    """A training to do: a config with one embedding, one budget and one seed. ``budget`` is as the user typed it.

    ``tuning`` says how settings were found that are not the user's own, in plain values: with the chosen ``values``,
    and in ``space`` the names of all that was open. ``found_by`` names the search that the embedding comes from.
    """

    config: Config
    budget: str = ""
    tuning: Mapping[str, Any] | None = None
    found_by: str = ""

    @property
    def strategy(self) -> str:
        """The strategy's name, ``mixed`` where patterns name several."""
        names = {node.name for node in self.config.embedding.strategy.values()}
        return names.pop() if len(names) == 1 else "mixed"

    @property
    def seed(self) -> int:
        """The run's seed."""
        return self.config.training.seed

    def __str__(self) -> str:
        if self.found_by:
            return f"{self.found_by}, budget {self.budget or 'none'}, seed {self.seed}"
        options = _options(self.config.embedding.strategy, defaults=False)
        told = f" {json.dumps(options)}" if options else ""
        tuned = f", tuned, epochs {self.config.training.epochs}" if self.tuning else ""
        size = f"budget {self.budget}" if self.budget else "full size"
        return f"{self.strategy}{told}, {size}{tuned}, seed {self.seed}"

    def digest(self, fingerprint: str, *, anywhere: bool = False) -> str:
        """The run's identity: config, data and code; ``anywhere``: the same on every device and back end. Files that
        are read beside the data set count by what is in them."""
        tree = self.config.model_dump(mode="json", include={"model", "embedding"})
        tree["embedding"]["initial"] = contents(self.config.embedding.initial)
        tree["training"] = self.config.training.protocol()
        tree["negative_rate"] = self.config.data.negative_rate
        if self.tuning is not None:
            tree["tuned"] = True  # a row of its own, also where tuning ends at the user's settings
        if self.found_by:
            tree["found_by"] = self.found_by
        if anywhere:
            del tree["training"]["device"], tree["embedding"]["backend"]
        text = json.dumps([tree, fingerprint, code_digest()], sort_keys=True)
        return xxhash.xxh3_64_hexdigest(text.encode())


class Abandoned(Exception):
    """A training that its caller gave up: no failure, and nothing to keep."""


@dataclass(frozen=True)
class Fitted:
    """A trained model, judged on validation; ``row`` is its row of ``results.csv`` without what the test split says."""

    model: Recommender
    result: TrainResult
    row: dict[str, Any]
    ledger: pd.DataFrame


@dataclass(frozen=True)
class Trained(Fitted):
    """A trained model with all that was measured; ``scores`` are those of the test split."""

    scores: np.ndarray


def fit(
    cell: Cell,
    dataset: EncodedDataset,
    *,
    checkpoints: Path | None = None,
    progress: bool = True,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    meta: dict[str, Any] | None = None,
    begin: Begin | None = None,
) -> Fitted:
    """Train the best model of a cell; the test split is not read. Arguments as in :func:`train`, but that without a
    ``begin`` a model begins with the initial vectors of its config.

    Raises:
        BudgetError: no setting of the strategy fits; nothing was allocated.
        DivergedError: a loss or gradient was not finite.
    """
    config = cell.config
    reset_peak_rss()
    began = time.perf_counter()
    model = build_recommender(config, dataset.features, len(dataset.dense))

    def put_vectors(model: Recommender, optimizers: Optimizers) -> None:
        begin_with(model.embedding, config.embedding.initial, dataset.encoder.vocabularies)

    result = train(
        model,
        dataset,
        config.training,
        checkpoints=checkpoints,
        progress=progress,
        on_epoch=on_epoch,
        meta=meta,
        begin=begin or put_vectors,
    )
    layer = _ledger(model, config)
    ledger = with_vocabularies(layer, dataset.features, dataset.vocabulary_bytes())
    report = model.embedding.budget_report
    bayes = dataset.bayes or {}
    row = describe(cell, dataset) | {
        "settings": _settings(config.embedding.strategy, report.settings),
        "budget_bytes": report.budget_bytes,
        "kept_fraction": report.kept_fraction,
        "val_auc": result.val["auc"],
        **{name: int(ledger[name].sum()) for name in ("train_bytes", "checkpoint_bytes", "serve_bytes", "host_bytes")},
        "samples_seen": result.samples_seen,
        "wall_seconds": time.perf_counter() - began,
        "train_samples_per_second": result.train_samples_per_second,
        "peak_rss_bytes": peak_rss_bytes(),
        "epochs": result.epochs,
        "best_epoch": result.best_epoch,
        "coarse": report.coarse,
        "status": "ok",
        "full_bytes": report.full_bytes,
        "bayes_auc": bayes.get("auc"),
        "bayes_logloss": bayes.get("logloss"),
        "parts": _parts(layer),
    }
    return Fitted(model, result, {name: _plain(row.get(name)) for name in COLUMNS}, ledger)


def train_and_measure(
    cell: Cell,
    dataset: EncodedDataset,
    *,
    checkpoints: Path | None = None,
    progress: bool = True,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    meta: dict[str, Any] | None = None,
    begin: Begin | None = None,
) -> Trained:
    """:func:`fit` a cell, then read the test split, once."""
    began = time.perf_counter()
    fitted = fit(cell, dataset, checkpoints=checkpoints, progress=progress, on_epoch=on_epoch, meta=meta, begin=begin)
    predict_begin = time.perf_counter()
    scores = predict(fitted.model, dataset, "test", cell.config.training.batch_size)
    predict_seconds = time.perf_counter() - predict_begin
    weights = counts(dataset, "test", cell.config.data.negative_rate)
    test = evaluate(dataset.labels("test"), scores, dataset.buckets("test"), weights)
    measured = {f"test_{name}": test[name] for name in ("auc", "logloss", "ne", "calibration")}
    measured |= {name: test[name] for name in ("auc_head", "auc_torso", "auc_tail", "auc_unseen")}
    measured |= {
        "wall_seconds": time.perf_counter() - began,
        "predict_microseconds_per_row": predict_seconds / len(scores) * 1e6,
        "peak_rss_bytes": peak_rss_bytes(),
    }
    row = fitted.row | {name: _plain(value) for name, value in measured.items()}
    return Trained(fitted.model, fitted.result, row, fitted.ledger, scores)


def describe(cell: Cell, dataset: EncodedDataset) -> dict[str, Any]:
    """The columns that are known before training, the same for a run that fails."""
    config = cell.config
    protocol: dict[str, Any] = {
        "training": {name: value for name, value in config.training.protocol().items() if name != "seed"},
        "model": config.model.model_dump(mode="json"),
        "embedding": config.embedding.model_dump(
            mode="json", include={"exact", "on_unknown", "decay", "backend", "initial"}
        ),
        "rows": {split: dataset.rows(split) for split in ("train", "val", "test")},
        "unseen": {name: round(share, 5) for name, share in dataset.unseen.get("test", {}).items()},
        "split": config.data.split.model_dump(mode="json", exclude_none=True),
    }
    if config.data.weight is not None:
        protocol["weight"] = config.data.weight
    if config.data.negative_rate < 1:
        protocol["negative_rate"] = config.data.negative_rate
    if dataset.hashed:
        protocol["hashed"] = dataset.hashed
    if missing := left_out(dataset.schema):
        protocol["left_out"] = missing
    if cell.tuning is not None:
        _leave_out(protocol, cell.tuning["space"])
    known = {
        "dataset": dataset.name,
        "fingerprint": dataset.fingerprint,
        "model": config.model.name,
        "strategy": cell.strategy,
        "settings": _settings(config.embedding.strategy, {}),
        "dim": config.model.dim,
        "budget_requested": cell.budget,
        "seed": cell.seed,
        "coarse": False,
        "tuned": cell.tuning is not None,
        "tuning": dict(cell.tuning or {}),
        "found_by": cell.found_by,
        "reused": False,
        "run": cell.digest(dataset.fingerprint),
        "error": "",
        "mlflow_run_id": "",
        "protocol": protocol,
        "versions": versions() | {"code": code_digest()},
    }
    return {name: known.get(name) for name in COLUMNS}


def run_cell(
    cell: Cell, dataset: EncodedDataset, out: Path, *, progress: bool = True, checkpoints: bool = True
) -> dict[str, Any]:
    """Train a cell of a study into its folder and return the document in ``result.json``: row and history; see
    :func:`attempt`."""

    def work(folder: Path, scratch: Path) -> dict[str, Any]:
        trained = train_and_measure(cell, dataset, checkpoints=scratch if checkpoints else None, progress=progress)
        if ranks.own() == 0:
            labels = dataset.labels("test")
            write_predictions(
                out,
                trained.row["run"],
                row=np.arange(len(labels)),
                label=labels,
                score=trained.scores,
                bucket=dataset.buckets("test"),
                weight=counts(dataset, "test", cell.config.data.negative_rate),
            )
            atomic_write(folder / LEDGER, trained.ledger.to_csv(index=False))
        # Last, since it holds the tables once more.
        return document_of(trained.row | speed_when_shipped(trained, cell, dataset), trained.result)

    return attempt(cell, dataset, out, RESULT, work)


def speed_when_shipped(fitted: Fitted, cell: Cell, dataset: EncodedDataset) -> dict[str, Any]:
    """How fast the model is as it would be loaded elsewhere; nothing on ranks other than the first."""
    state = whole(fitted.model).shipped_state()
    if ranks.own():
        return {}
    shipped = shipped_recommender(cell.config, dataset.features, len(dataset.dense), state)
    return serving_speed(shipped, dataset, cell.config.training.batch_size)


def whole(model: Recommender) -> Recommender:
    """The model with whole tables; on several ranks, which all take part, a copy."""
    return copy.deepcopy(model) if ranks.count() > 1 else model


def attempt(
    cell: Cell, dataset: EncodedDataset, out: Path, name: str, work: Callable[[Path, Path], dict[str, Any]]
) -> dict[str, Any]:
    """Do ``work(folder, checkpoints)`` in the folder of a cell, and save the document it returns there as ``name``.

    An exception becomes the row's status: no cell takes the others with it. Where the work is interrupted, its
    checkpoints stay, to go on from when it is done again. On several ranks all do the work, and the first one saves.

    Raises:
        Abandoned: by the work.
    """
    folder, first = out / RUNS / cell.digest(dataset.fingerprint), ranks.own() == 0
    folder.mkdir(parents=True, exist_ok=True)
    if first:
        (folder / ERROR).unlink(missing_ok=True)
    scratch, begin = folder / "checkpoints", time.perf_counter()
    try:
        document = work(folder, scratch)
    except Abandoned:
        if first:
            shutil.rmtree(scratch, ignore_errors=True)
        raise
    except BudgetError as error:
        text = str(error)
        if str(error.nearest_bytes) not in text:
            text += f"; nearest feasible budget: {error.nearest_bytes} bytes"
        document = unfinished(cell, dataset, "infeasible", text)
    except Exception as error:
        status = "diverged" if isinstance(error, DivergedError) else "failed"
        message = " ".join(f"{type(error).__name__}: {error}".split())
        if first:
            _LOG.warning("%s: %s", cell, message)
            atomic_write(folder / ERROR, traceback.format_exc())
        document = unfinished(cell, dataset, status, message)
        document["row"]["wall_seconds"] = time.perf_counter() - begin
    if first:
        save_document(out, document, name)
        shutil.rmtree(scratch, ignore_errors=True)
    return document


def document_of(row: Mapping[str, Any], result: TrainResult) -> dict[str, Any]:
    """The document of a cell: its row, and a dict for each epoch."""
    return {"row": dict(row), "history": [_plain(epoch) for epoch in result.history]}


def unfinished(cell: Cell, dataset: EncodedDataset, status: str, error: str) -> dict[str, Any]:
    """The document of a cell without metrics."""
    return {"row": describe(cell, dataset) | {"status": status, "error": error}, "history": []}


def run_cell_by_path(cell: Cell, dataset: Path, out: Path, checkpoints: bool) -> dict[str, Any]:
    """:func:`run_cell` in a worker process, which opens the data set once."""
    return run_cell(cell, opened(dataset), out, progress=False, checkpoints=checkpoints)


@lru_cache(maxsize=1)
def opened(path: Path) -> EncodedDataset:
    """A data set, kept for the next cell of this process."""
    return EncodedDataset.open(path)


def save_document(out: Path, document: Mapping[str, Any], name: str = RESULT) -> None:
    """Write a document of a run."""
    write_sealed(out / RUNS / str(document["row"]["run"]) / name, json.dumps(document, indent=1) + "\n")


def saved_document(cell: Cell, dataset: EncodedDataset, out: Path, name: str) -> dict[str, Any] | None:
    """The document ``name`` of a run as it was saved; None where there is none or it is damaged."""
    path = out / RUNS / cell.digest(dataset.fingerprint) / name
    try:
        if not intact(path):
            return None
        document: dict[str, Any] = json.loads(path.read_bytes())
        document["row"] |= {"reused": True, "tuning": dict(cell.tuning or {})}
        return document if document["row"]["status"] in STATUSES else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def finished(cell: Cell, dataset: EncodedDataset, out: Path) -> dict[str, Any] | None:
    """The document of a run that need not be done again: it ended well, or cannot."""
    document = saved_document(cell, dataset, out, RESULT)
    status = document and document["row"]["status"]
    there = predictions_path(out, cell.digest(dataset.fingerprint)).exists()
    return document if status == "infeasible" or (status == "ok" and there) else None


# --- columns -------------------------------------------------------------------------------------------------


def _options(patterns: Mapping[str, StrategyNode], *, defaults: bool) -> dict[str, Any]:
    """The options, with or without those at their defaults: of the one strategy, or per pattern with its name."""
    told = {
        pattern: {"name": node.name} | node.model_dump(mode="json", exclude_defaults=not defaults)
        for pattern, node in patterns.items()
    }
    if list(told) == ["*"]:
        return {key: value for key, value in told["*"].items() if key != "name"}
    return told


def _settings(patterns: Mapping[str, StrategyNode], sizes: Mapping[str, Any]) -> dict[str, Any]:
    """Every option, then the rows of every table that the budget led to; under ``rows`` where a name could be both."""
    options = _options(patterns, defaults=True)
    if list(patterns) == ["*"] and not options.keys() & sizes.keys():
        return options | dict(sizes)
    return options | ({"rows": dict(sizes)} if sizes else {})


def _leave_out(tree: dict[str, Any], names: Collection[str]) -> None:
    """Take names out of a tree, wherever they are."""
    for key in [key for key in tree if key in names]:
        del tree[key]
    for value in tree.values():
        if isinstance(value, dict):
            _leave_out(value, names)


def _ledger(model: Recommender, config: Config) -> pd.DataFrame:
    """The layer's ledger. Where the tables are ordinary parameters under Adam, its two moments are added here."""
    ledger = model.embedding.ledger()
    if config.training.optimizer.tables == "adam":
        for name in ("train_bytes", "checkpoint_bytes"):
            ledger[name] += 2 * 4 * ledger["rows"] * ledger["width"]
    return ledger


def _parts(ledger: pd.DataFrame) -> dict[str, int]:
    """Serving bytes per feature, or per strategy where its features share them."""
    sizes: dict[str, int] = {}
    for feature, part, size in zip(ledger["feature"], ledger["part"], ledger["serve_bytes"], strict=True):
        readers = str(feature).count("+") + 1
        name = str(feature) if readers < 3 else f"{part}, shared by {readers} features"
        sizes[name] = sizes.get(name, 0) + int(size)
    return sizes


def _plain(value: Any) -> Any:
    """A value as JSON keeps it: no numpy, no NaN."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
