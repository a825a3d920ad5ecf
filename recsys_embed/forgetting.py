"""Ids that a model is to know no longer: their text, their rows and their optimizer state, out of its whole folder."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from recsys_embed.data.forgetting import Forgotten
from recsys_embed.data.forgetting import forget as forget_values
from recsys_embed.errors import DataError
from recsys_embed.export import ENCODER, WEIGHTS, Predictor, load
from recsys_embed.files import MANIFEST, atomic_folder, write_manifest
from recsys_embed.report.study import DATA
from recsys_embed.tables.base import initial_rows
from recsys_embed.tables.rounding import TORCH_TYPES, nearest
from recsys_embed.train_into import CHECKPOINTS, MLFLOW_MODELS
from recsys_embed.training import checkpoints as store
from recsys_embed.training.kept import TRAINING, kept
from recsys_embed.training.saving import STATES_OF_TABLE, TABLES_OF_MODEL

HEADER = ["feature", "value"]


@dataclass(frozen=True)
class Forgetting:
    """What was removed from a model: the folder that was written; what became of each value that was named, in the
    order of the file; and by vocabulary how many ids are free again and what became of their rows.

    ``rows`` are ``own``, and as they began, or ``shared`` with other ids by hashing: these stay, as nobody can tell
    what one id has left in them.
    """

    model: Path
    values: tuple[dict[str, Any], ...]
    vocabularies: dict[str, dict[str, Any]]


def forget(model: str | Path, ids: str | Path, *, out: str | Path | None = None) -> Forgetting:
    """Remove ids from a model: the text from its vocabularies and from what waits for an id, and the rows that these
    ids alone have, with their optimizer state, back to their beginning, in the serving form and in the training state.

    The folder is replaced as a whole, or ``out`` is written and it stays. Everything else in it is as it was, to the
    bit. A value that comes again on a later day is one that was never there.

    Args:
        model: the folder of a model.
        ids: a CSV file with the header ``feature,value``; the name of a vocabulary or of a column of a cross does as
            well. What is not there is no error, and said.

    Raises:
        DataError: the file is not such a file, or names a feature that there is not; with its row.
        ConfigError: a strategy keeps more of an id than rows of its own.
        CheckpointError: the model is damaged, or the disk refused.
    """
    folder, target = Path(model), Path(model if out is None else out)
    predictor = load(folder)
    pairs = read_ids(Path(ids))
    try:
        forgotten = forget_values(predictor.encoder, pairs)
    except DataError as error:
        row = next((row for row, (name, _) in enumerate(pairs, start=1) if name == error.value), None)
        raise DataError(error.reason, file=str(ids), column=error.column, row=row, value=error.value) from error
    gone = {name: torch.tensor(one.reset) for name, one in forgotten.renewals.items() if len(one.reset)}
    own = {name: predictor.model.embedding.own_rows(name, rows) for name, rows in gone.items()}
    rows = {table: numbers for tables in own.values() for table, numbers in tables.items()}
    state = kept(folder) if (folder / TRAINING).is_dir() else None
    with atomic_folder(target) as temporary:
        shutil.copytree(
            folder,
            temporary,
            dirs_exist_ok=True,
            ignore=lambda place, names: _written_anew(names) if Path(place) == folder else [],
        )
        served = load_file(folder / WEIGHTS)
        _reset(served, rows, predictor, TABLES_OF_MODEL.removeprefix("model."))
        save_file(served, temporary / WEIGHTS)
        forgotten.encoder.save(temporary / ENCODER)
        if state is not None:
            trained = state.tensors
            _reset(trained, rows, predictor, TABLES_OF_MODEL)
            owners = {one.format(table): numbers for table, numbers in rows.items() for one in STATES_OF_TABLE}
            for name, tensor in trained.items():
                if (numbers := owners.get(name.rpartition(".")[0])) is not None:
                    tensor[numbers] = 0
            store.write(temporary / TRAINING, state.meta, trained)
        write_manifest(temporary, without=TRAINING)
    return Forgetting(target, tuple(asdict(one) for one in forgotten.became), _vocabularies(forgotten, own))


def read_ids(path: Path) -> list[tuple[str, str]]:
    """Pairs of name and value.

    Raises:
        DataError: no such file, another header, or a row without these two fields.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.reader(file, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"cannot be read: {error}", file=str(path)) from error
    if not rows or rows[0] != HEADER:
        found = ",".join(rows[0]) if rows else "nothing"
        raise DataError(f"the header is {','.join(HEADER)!r}", file=str(path), row=0, value=found)
    pairs = []
    for number, row in enumerate(rows[1:], start=1):
        if row and len(row) != 2:
            raise DataError("a row has a feature and a value", file=str(path), row=number, value=",".join(row))
        if row:
            pairs.append((row[0], row[1]))
    return pairs


def traces_beside(model: Path) -> list[Path]:
    """Where the run that made a model may have left values and rows besides: no part of the model, and not touched."""
    return [model.parent / name for name in (DATA, CHECKPOINTS, MLFLOW_MODELS)]


def _written_anew(names: list[str]) -> list[str]:
    return [name for name in names if name in (WEIGHTS, ENCODER, TRAINING, MANIFEST)]


def _reset(tensors: dict[str, Tensor], rows: Mapping[str, Tensor], predictor: Predictor, name: str) -> None:
    """Put rows of tables back to their beginning, as they are stored."""
    tables = predictor.model.embedding.tables
    for table, numbers in rows.items():
        spec, weights = tables.specs[table], tensors[name.format(table)]
        begun = initial_rows(spec, tables.seed, numbers)
        stored = nearest(begun, TORCH_TYPES[spec.storage.dtype], spec.storage.scale, spec.storage.midpoint)
        weights[numbers] = stored.to(weights.dtype)


def _vocabularies(forgotten: Forgotten, own: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Any]]:
    return {
        name: {
            "forgotten": one.forgotten,
            "pending": one.pending,
            "cardinality": one.after,
            "rows": None if name not in own else "own" if own[name] else "shared",
        }
        for name, one in forgotten.renewals.items()
    }
