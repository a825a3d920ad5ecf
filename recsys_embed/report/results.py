"""``results.csv``, one row a run, and the per-row test predictions that ``run`` joins to it.

Reading checks everything that the page relies on.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from recsys_embed.config import STRATEGIES
from recsys_embed.errors import DataError
from recsys_embed.files import atomic_write
from recsys_embed.report.columns import format_table, read_table, refuse
from recsys_embed.seals import write_sealed

RESULTS, PREDICTIONS = "results.csv", "predictions"

STATUSES = ("ok", "failed", "diverged", "infeasible")

_CHECKSUM = b"recsys_embed.xxh3_64"  # of all cells: a checksum of pages leaves the footer of the file alone

BUCKETS = ("head", "torso", "tail", "unseen")
"""Names of the values of ``bucket`` in the predictions."""

COLUMNS: dict[str, str] = {
    "dataset": "text",
    "fingerprint": "text",
    "model": "text",
    "strategy": "text",
    "settings": "json",
    "dim": "int",
    "budget_requested": "text",
    "budget_bytes": "int",
    "kept_fraction": "float",
    "seed": "int",
    "val_auc": "float",
    "test_auc": "float",
    "test_logloss": "float",
    "test_ne": "float",
    "test_calibration": "float",
    "auc_head": "float",
    "auc_torso": "float",
    "auc_tail": "float",
    "auc_unseen": "float",
    "train_bytes": "int",
    "checkpoint_bytes": "int",
    "serve_bytes": "int",
    "host_bytes": "int",
    "samples_seen": "int",
    "wall_seconds": "float",
    "train_samples_per_second": "float",
    "predict_microseconds_per_row": "float",
    "latency_single_row_microseconds": "float",
    "predict_rows_per_second": "float",
    "serving": "json",
    "peak_rss_bytes": "int",
    "epochs": "int",
    "coarse": "flag",
    "tuned": "flag",
    "tuning": "json",
    "found_by": "text",
    "reused": "flag",
    "run": "text",
    "status": "text",
    "error": "text",
    "mlflow_run_id": "text",
    "full_bytes": "int",
    "best_epoch": "int",
    "bayes_auc": "float",
    "bayes_logloss": "float",
    "parts": "json",
    "protocol": "json",
    "versions": "json",
}
"""Every column with its kind, in the order of the file. Missing: "" in text and json, NaN, <NA>, False."""

_NEEDED = ("dataset", "fingerprint", "model", "strategy", "seed", "run", "status")
_OK_NEEDS = ("serve_bytes",)
_HOW_TUNED = {"epochs", "trials", "values", "seed", "space"}
"""What ``tuning`` says of a tuned run: of no other, it says anything."""
_YOUNGER = ("host_bytes", "latency_single_row_microseconds", "predict_rows_per_second", "serving", "tuning", "found_by")
"""Columns that files written before them lack; they are read as missing."""


def write_results(path: str | Path, rows: pd.DataFrame | Sequence[dict[str, Any]]) -> None:
    """Write the file. Columns that ``rows`` lacks stay empty; dicts in the JSON columns become JSON.

    Raises:
        DataError: a column that the file does not have.
    """
    write_sealed(path, format_results(rows))


def format_results(rows: pd.DataFrame | Sequence[dict[str, Any]]) -> str:
    """The text of the file; see :func:`write_results`."""
    return format_table(rows, COLUMNS)


def read_results(path: str | Path) -> pd.DataFrame:
    """Read and check the file. Columns beyond the known ones are left out; a file that was edited is said to be.

    Raises:
        DataError: the file is missing, is no CSV or is empty; a column is missing, a value is not of its column's
            kind, a status is unknown, or a run that ended well lacks its bytes. Names file, column and row.
    """
    file = str(path)
    raw, frame = read_table(path, COLUMNS, what="a table of results", younger=_YOUNGER)
    if raw.empty:
        raise DataError("holds no run", file=file)
    for name in _NEEDED:
        refuse(frame[name].isna() | (raw[name] == ""), raw[name], "is empty", file, name)
    refuse(~frame["status"].isin(STATUSES), raw["status"], f"is none of {', '.join(STATUSES)}", file, "status")
    for name in _OK_NEEDS:
        refuse((frame["status"] == "ok") & (raw[name] == ""), raw[name], "is empty in a run that is ok", file, name)
    tuning = [_object(text).keys() >= _HOW_TUNED for text in frame["tuning"]]
    refuse(frame["tuned"] != tuning, raw["tuning"], "does not go with the column tuned", file, "tuning")
    refuse(frame["run"].duplicated(), raw["run"], "is there twice", file, "run")
    return frame


# --- predictions ---------------------------------------------------------------------------------------------


def predictions_path(folder: str | Path, run: str) -> Path:
    """Where the predictions of a run lie.

    Raises:
        DataError: ``run`` is no plain file name.
    """
    if not run or Path(run).name != run or run.startswith("."):
        raise DataError("is not a plain name", file=str(Path(folder) / RESULTS), column="run", value=run)
    return Path(folder) / PREDICTIONS / f"{run}.parquet"


def write_predictions(
    folder: str | Path,
    run: str,
    *,
    row: np.ndarray,
    label: np.ndarray,
    score: np.ndarray,
    bucket: np.ndarray,
    weight: np.ndarray | None = None,
) -> Path:
    """Write the test scores of a run, and what the rows count where that is not 1; the same arrays give the same
    bytes."""
    columns = {"row": (row, "int64"), "label": (label, "int8"), "score": (score, "float32"), "bucket": (bucket, "int8")}
    arrays = {name: np.ascontiguousarray(values, dtype=kind) for name, (values, kind) in columns.items()}
    if weight is not None:
        arrays["weight"] = np.ascontiguousarray(weight, dtype="float64")
    table = pa.table(arrays).replace_schema_metadata({_CHECKSUM: _checksum(arrays)})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    path = predictions_path(folder, run)
    atomic_write(path, buffer.getvalue())
    return path


def _checksum(columns: Mapping[str, np.ndarray]) -> bytes:
    digest = xxhash.xxh3_64()
    for name, values in columns.items():
        digest.update(f"{name} {values.dtype}\0".encode())
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest().encode()


def read_predictions(folder: str | Path, run: str) -> dict[str, np.ndarray] | None:
    """``row, label, score, bucket`` of a run and, where its rows have one, ``weight``, in the order of ``row``; or None
    where there is no file.

    Raises:
        DataError: the file is damaged or holds what no run writes; names file and column.
    """
    path = predictions_path(folder, run)
    if not path.exists():
        return None
    file = str(path)
    names = ["row", "label", "score", "bucket"]
    try:
        table = pq.read_table(path, page_checksum_verification=True)
        names += ["weight"] if "weight" in table.column_names else []
        columns = {name: table.column(name).to_numpy() for name in names}
    except (OSError, KeyError, ValueError, pa.ArrowException) as error:
        raise DataError(f"cannot be read as predictions: {error}", file=file) from error
    written = (table.schema.metadata or {}).get(_CHECKSUM)
    if written is not None and written != _checksum(columns):
        raise DataError("its contents have changed since it was written", file=file)
    order = np.argsort(columns["row"], kind="stable")
    columns = {name: values[order] for name, values in columns.items()}
    if len(order) == 0:
        raise DataError("holds no row", file=file)
    if (np.diff(columns["row"]) == 0).any():
        raise DataError("a row is there twice", file=file, column="row")
    if not np.isin(columns["label"], (0, 1)).all():
        raise DataError("a label is neither 0 nor 1", file=file, column="label")
    if not np.isfinite(columns["score"]).all():
        raise DataError("a score is not finite", file=file, column="score")
    if not np.isin(columns["bucket"], range(len(BUCKETS))).all():
        raise DataError("a bucket is none of 0 to 3", file=file, column="bucket")
    if "weight" in columns and not ((columns["weight"] >= 0) & np.isfinite(columns["weight"])).all():
        raise DataError("a weight is not finite, or negative", file=file, column="weight")
    return columns


# --- naming methods ------------------------------------------------------------------------------------------


def name_methods(frame: pd.DataFrame, *, tuned: bool = True) -> pd.Series[Any]:
    """A name for what each run tries, the same at every budget: the strategy and its options, not the sizes it led to.

    What a search found has the name of its method. ``unified`` alone where no other run of the strategy differs, else
    ``unified (chunks 3)``; with ``tuned`` also
    ``unified (tuned)``, and ``unified (tuned, 1 epoch)`` where it was tuned with several settings of the epochs.
    """
    options = [_options(strategy, text) for strategy, text in zip(frame["strategy"], frame["settings"], strict=True)]
    how = _how_tuned(frame)
    names: dict[Any, str] = {}
    for strategy in frame["strategy"].unique():
        mine = [place for place in range(len(frame)) if frame["strategy"].iloc[place] == strategy]
        keyed = [(frame["budget_requested"].iloc[place], frame["seed"].iloc[place], how[place]) for place in mine]
        told = [_describe(options[place]) for place in mine]
        if len({(*key, text) for key, text in zip(keyed, told, strict=True)}) < len(mine):
            told = [_describe(_object(frame["settings"].iloc[place])) for place in mine]
        alone = len(set(told)) == 1
        for place, text in zip(mine, told, strict=True):
            parts = [part for part in ("" if alone else text, how[place] if tuned else "") if part]
            names[place] = f"{strategy} ({'; '.join(parts)})" if parts else strategy
    found = frame["found_by"] if "found_by" in frame else [""] * len(frame)
    told = [one or names[place] for place, one in enumerate(found)]
    return pd.Series(told, index=frame.index, dtype="str")


def _how_tuned(frame: pd.DataFrame) -> list[str]:
    """Of each run, "" where it was not tuned."""
    tuning = frame["tuning"] if "tuning" in frame else [""] * len(frame)
    epochs = [_object(text).get("epochs") for text in tuning]
    several = len(set(epochs) - {None}) > 1
    told = [f"tuned, {epochs_name(one)}" if several and one else "tuned" for one in epochs]
    return [text if flag else "" for text, flag in zip(told, frame["tuned"], strict=True)]


def epochs_name(epochs: int) -> str:
    """A setting of the epochs: the most that are trained, where early stopping can end before.

    >>> epochs_name(1), epochs_name(10)
    ('1 epoch', '≤ 10 epochs')
    """
    return "1 epoch" if epochs == 1 else f"≤ {epochs} epochs"


def options_of(strategy: str, settings: str) -> str:
    """The options of a run as text: those that differ from their defaults, without sizes; "" where none does."""
    return _describe(_options(strategy, settings))


def _options(strategy: str, settings: str) -> dict[str, Any]:
    """The settings that are keys of the strategy's config and differ from it, or patterns with a strategy each."""
    out = _changed(strategy, _object(settings))
    for pattern, value in _object(settings).items():
        if isinstance(value, dict) and value.get("name") in STRATEGIES:
            out[pattern] = {"name": value["name"]} | _changed(value["name"], value)
    return out


def _changed(strategy: str, settings: dict[str, Any]) -> dict[str, Any]:
    """The options of one strategy that differ from their defaults."""
    node = STRATEGIES.get(strategy)
    if node is None:
        return {}
    defaults = node.model_construct().model_dump(mode="json")
    return {
        key: settings[key]
        for key in node.model_fields
        if key != "name" and key in settings and settings[key] != defaults.get(key)
    }


def _object(settings: str) -> dict[str, Any]:
    return dict(json.loads(settings)) if settings else {}


def _describe(options: dict[str, Any]) -> str:
    def value_text(value: Any) -> str:
        if isinstance(value, dict):
            inner = {key: one for key, one in value.items() if key != "name"}
            return f"{value['name']} {_describe(inner)}".strip() if "name" in value else "{" + _describe(inner) + "}"
        return value if isinstance(value, str) else json.dumps(value)

    return ", ".join(key if value is True else f"{key} {value_text(value)}" for key, value in sorted(options.items()))
