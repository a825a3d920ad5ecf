"""A night: a model that there is goes on with the rows of a new day, and takes the champion's place or not."""

from __future__ import annotations

import copy
import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import xxhash

from recsys_embed import ranks
from recsys_embed.champion import AsBefore, scores_in, scores_of
from recsys_embed.config import Config, parse_config
from recsys_embed.data import EncodedDataset
from recsys_embed.data.continuation import continue_data
from recsys_embed.data.renewal import Renewal
from recsys_embed.errors import CheckpointError, ConfigError
from recsys_embed.export import CONFIG, ENCODER, load
from recsys_embed.files import MANIFEST, atomic_write, checksum
from recsys_embed.promotion import Condition
from recsys_embed.recommender import Recommender
from recsys_embed.report.run import Trained
from recsys_embed.report.study import DATA, check_sizes
from recsys_embed.tracking import Tracker
from recsys_embed.train_into import MODEL, train_into
from recsys_embed.training.kept import go_on_from, kept
from recsys_embed.training.optimizers import Optimizers

DECISION = "decision.json"
SETTABLE = (
    "training.", "growth.", "tracking.", "data.split", "data.format", "data.separator", "data.on_bad_rows",
    "embedding.backend",
)  # fmt: skip
"""What may be set for a night. All else is what the ids and rows of the model mean."""


@dataclass(frozen=True)
class Night:
    """A finished night: the folder of the new model, the record of what was decided, and the trained model, which is
    None where the night was over before this call."""

    model: Path
    record: dict[str, Any]
    trained: Trained | None


def continue_training(
    model: str | Path,
    data: str | Path | pd.DataFrame,
    out: str | Path,
    *,
    overrides: Sequence[str] = (),
    promote_if: str | None = None,
    progress: bool = True,
) -> Night:
    """Train a model on with the rows of a new day, and decide whether the new one takes its place.

    Ids keep their meaning, rows and optimizer state; new values get ids as the section ``growth`` says, whose rows
    begin as those of ids that were never seen. Sizes and hashes stay as the model was born. The new model is exported
    into ``out/model`` either way, with all that the next night needs; ``model`` is left as it is. The record is
    ``out/decision.json``: its ``champion`` is the folder to serve, and to continue the next night. The same call goes
    on with a night that was interrupted, and does nothing where the night is over.

    Args:
        model: the folder of a model that ``train`` or an earlier night has exported.
        data: rows as the model was trained on: a path (file, folder, glob) or a data frame.
        out: the folder of this night.
        overrides: ``a.b=value`` for keys of :data:`SETTABLE`.
        promote_if: see :mod:`recsys_embed.promotion`; without it the new model is always promoted.

    Raises:
        ConfigError: a condition or key that there is not, or that a model in use cannot change; a strategy that cannot
            take new ids, or trains in stages; several ranks.
        DataError: rows that do not fit the model's columns.
        CheckpointError: the model is damaged, or its training state is not there.
        DivergedError: a loss or gradient was not finite.
    """
    model, out = Path(model), Path(out)
    condition = None if promote_if is None else Condition.parse(promote_if)
    if ranks.count() > 1:
        raise ConfigError("a model is continued in one process: start `train --continue` without torchrun")
    if model.resolve() == (out / MODEL).resolve():
        raise ConfigError(f"--out {out}: its model is the one to be continued: take another folder for the new one")
    config = config_of_night(model, data, overrides)
    champion = load(model)
    _refuse_stages(champion.model)
    state = kept(model, champion.model)
    frame = data if isinstance(data, pd.DataFrame) else None
    dataset = continue_data(
        config.data, model / ENCODER, out / DATA, growth=config.growth, progress=progress, frame=frame
    )
    check_sizes(config, dataset.features, infeasible=True)
    before = checksum(model / MANIFEST)[:16]
    told = json.dumps([before, dataset.fingerprint, config.model_dump(mode="json", exclude={"tracking"}), promote_if])
    identity = xxhash.xxh3_64_hexdigest(told.encode())
    record = _decided(out, identity)
    if record is not None:
        return Night(out / MODEL, record, None)

    def begin(trained: Recommender, optimizers: Optimizers) -> None:
        go_on_from(state, trained, optimizers)
        for name, renewal in dataset.renewals.items():
            if len(renewal.reset):
                ids = torch.tensor(renewal.reset)
                trained.embedding.reset(name, ids)
                for table, rows in trained.embedding.own_rows(name, ids).items():
                    optimizers.reset_rows(table, rows)

    old = scores_of(champion.model, AsBefore(dataset, champion.encoder), config.training.batch_size)
    del champion  # its tables are not needed while others are trained
    decided: dict[str, Any] = {}

    def decide(trained: Trained, tracker: Tracker) -> None:
        new = scores_in(trained.row, trained.result.val)
        decided["scores"] = {name: {"new": _plain(new[name]), "champion": _plain(old[name])} for name in new}
        decided["promoted"] = condition is None or condition.holds(new, old)
        decided["tracker"] = tracker
        decided["alias"] = tracker.champion() if decided["promoted"] else None

    folder, trained = train_into(
        config, dataset, out, job="continue", begin=begin, begun_from=f"-{before}", at_end=decide, progress=progress
    )
    record = {
        "promoted": decided["promoted"],
        "promote_if": promote_if,
        "scores": decided["scores"],
        "champion": str(folder if decided["promoted"] else model),
        "model": str(folder),
        "continued": str(model),
        "rows": {split: dataset.rows(split) for split in ("train", "val", "test")},
        "epochs": trained.result.epochs,
        "vocabularies": _vocabularies(dataset, trained.model),
        "drift": dataset.schema.get("drift"),
        "mlflow": _mlflow(trained, decided),
        "identity": identity,
    }
    atomic_write(out / DECISION, json.dumps(record, indent=1, allow_nan=False) + "\n")
    return Night(folder, record, trained)


def config_of_night(model: Path, data: str | Path | pd.DataFrame, overrides: Sequence[str]) -> Config:
    """The config of a model with the rows of a new day.

    Raises:
        CheckpointError: the folder has no config.
        ConfigError: an override of what stays as the model was born, or of the kind of its optimizers; or the rows need
            a split that nobody said.
    """
    for override in overrides:
        key = override.partition("=")[0].strip()
        if not f"{key}.".startswith(SETTABLE):
            raise ConfigError(
                f"--set {override}: what a model was born with stays as long as it is continued; what can be set is "
                f"{', '.join(one.rstrip('.') for one in SETTABLE)}",
                path=key,
            )
    path = model / CONFIG
    try:
        tree = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}", file=str(path)) from error
    born = parse_config(copy.deepcopy(tree), source=str(path))
    if born.data.planted is not None:
        raise ConfigError(f"{model}: was trained on planted data, of which there is no other day", path="data.planted")
    if born.data.split.files is not None and not any(one.startswith("data.split") for one in overrides):
        raise ConfigError(
            f"{model}: was trained on a file for each split; say how the rows of the new day are split, such as "
            "--set data.split={random=[0.8,0.1,0.1]}",
            path="data.split",
        )
    tree["data"]["path"] = "frame" if isinstance(data, pd.DataFrame) else str(data)
    if born.data.split.files is not None:
        del tree["data"]["split"]
    tree.get("embedding", {}).pop("initial", None)  # the rows have gone on from there
    config = parse_config(tree, tuple(overrides), source=str(path))
    for what in ("tables", "dense"):
        was, now = getattr(born.training.optimizer, what), getattr(config.training.optimizer, what)
        if was != now:
            raise ConfigError(
                f"training.optimizer.{what} = {now!r}: the state of {was!r}, which the model was trained by, is no "
                f"state of {now!r}",
                path=f"training.optimizer.{what}",
            )
    return config


def _refuse_stages(model: Recommender) -> None:
    stages = model.embedding.stages
    if len(stages) > 1:
        raise ConfigError(
            f"a strategy that trains in stages ({', '.join(stage.name for stage in stages)}) cannot be continued: its "
            "first stage begins from what the last one has dropped; train a model from the beginning",
            path="embedding.strategy",
        )


def _decided(out: Path, identity: str) -> dict[str, Any] | None:
    """The record of this very night, where it is over and its model is there."""
    try:
        record: dict[str, Any] = json.loads((out / DECISION).read_text(encoding="utf-8"))
        same = record["identity"] == identity
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return record if same and (out / MODEL / MANIFEST).is_file() else None


def _vocabularies(dataset: EncodedDataset, model: Recommender) -> dict[str, dict[str, Any]]:
    """What became of every vocabulary."""
    return {
        name: {
            "known": one.known,
            "admitted": one.admitted,
            "expired": one.expired,
            "evicted": one.evicted,
            "forgotten": one.forgotten,
            "pending": one.pending,
            "dropped": one.dropped,
            "born": one.born,
            "before": one.before,
            "cardinality": one.after,
            "reset": len(one.reset),
            "rows": _rows_of(model, one),
        }
        for name, one in dataset.renewals.items()
    }


def _rows_of(model: Recommender, renewal: Renewal) -> str | None:
    """Whether the ids that were taken from values had rows of their ``own``, which have begun anew, or ``shared`` them,
    which stay as they are; None where there are no such ids."""
    if not len(renewal.reset):
        return None
    return "own" if model.embedding.own_rows(renewal.vocabulary, torch.tensor(renewal.reset)) else "shared"


def _mlflow(trained: Trained, decided: Mapping[str, Any]) -> dict[str, Any]:
    """The run, and what became of the alias; None where nobody was promoted."""
    alias = decided["alias"]
    if alias is not None and alias["moved"] is None:
        left = decided["tracker"].left
        alias["why"] = f"{left} entries wait for the server" if left else "the server was told"
    return {"run_id": trained.row["mlflow_run_id"] or None, "champion": alias}


def _plain(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else value
