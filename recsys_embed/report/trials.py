"""``trials.csv``: what tuning tried, one row a trial, beside the ``results.csv`` of what it found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from recsys_embed.report.columns import format_table, read_table, refuse
from recsys_embed.report.results import STATUSES
from recsys_embed.seals import write_sealed

TRIALS = "trials.csv"

COLUMNS: dict[str, str] = {
    "dataset": "text",
    "fingerprint": "text",
    "model": "text",
    "dim": "int",
    "strategy": "text",
    "settings": "json",
    "budget_requested": "text",
    "epochs": "int",
    "trial": "int",
    "seed": "int",
    "tables_lr": "float",
    "dense_lr": "float",
    "decay": "float",
    "val_auc": "float",
    "best_epoch": "int",
    "samples_seen": "int",
    "wall_seconds": "float",
    "status": "text",
    "error": "text",
    "chosen": "flag",
    "run": "text",
}
"""Every column with its kind. ``epochs`` is the setting, the most that a trial trains; empty: not tuned, or unknown."""


def write_trials(folder: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the file; what else the rows hold is left out."""
    known = [{name: row.get(name) for name in COLUMNS} for row in rows]
    write_sealed(Path(folder) / TRIALS, format_table(known, COLUMNS))


def read_trials(folder: str | Path) -> pd.DataFrame:
    """The trials of a report's folder; no row where nothing was tuned.

    Raises:
        DataError: the file is no table of trials; names file, column and row.
    """
    path = Path(folder) / TRIALS
    if not path.exists():
        return pd.DataFrame({name: pd.Series(dtype=object) for name in COLUMNS})
    raw, frame = read_table(path, COLUMNS, what="a table of trials")
    for name in ("strategy", "epochs", "trial", "status"):
        refuse(raw[name] == "", raw[name], "is empty", str(path), name)
    refuse(~frame["status"].isin(STATUSES), raw["status"], f"is none of {', '.join(STATUSES)}", str(path), "status")
    return frame
