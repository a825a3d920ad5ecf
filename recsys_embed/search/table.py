"""``search.csv``: every trial of a search, one row each, beside the ``results.csv`` of the finalists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from recsys_embed.report.columns import format_table, read_table, refuse
from recsys_embed.seals import write_sealed

SEARCH = "search.csv"
STATES = ("ok", "pruned", "failed", "diverged", "infeasible")

COLUMNS: dict[str, str] = {
    "dataset": "text",
    "fingerprint": "text",
    "model": "text",
    "dim": "int",
    "method": "text",
    "trial": "int",
    "budget_requested": "text",
    "budget_bytes": "int",
    "seed": "int",
    "status": "text",
    "val_auc": "float",
    "serve_bytes": "int",
    "latency": "float",
    "left_over": "int",
    "same_as": "int",
    "best_epoch": "int",
    "epochs": "int",
    "samples_seen": "int",
    "wall_seconds": "float",
    "params": "json",
    "allocation": "json",
    "history": "json",
    "finalist": "flag",
    "run": "text",
    "error": "text",
}
"""Every column with its kind. ``trial`` counts from 1 within a method; ``same_as`` is the earlier trial that rounded to
the same configuration and was trained instead; ``left_over`` are bytes of the budget that rounding left; ``latency`` is
in microseconds a row; ``allocation`` has for every vocabulary its strategy, its ids and the weights that an id of each
block has, by frequency; ``history`` the validation AUC after each epoch."""


def write_search(folder: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write the file; what else the rows hold is left out."""
    known = [{name: row.get(name) for name in COLUMNS} for row in rows]
    write_sealed(Path(folder) / SEARCH, format_table(known, COLUMNS))


def read_search(folder: str | Path) -> pd.DataFrame:
    """The trials of a search's folder; no row where nothing was searched.

    Raises:
        DataError: the file is no table of trials; names file, column and row.
    """
    path = Path(folder) / SEARCH
    if not path.exists():
        return pd.DataFrame({name: pd.Series(dtype=object) for name in COLUMNS})
    raw, frame = read_table(path, COLUMNS, what="a table of a search's trials")
    for name in ("method", "trial", "status"):
        refuse(raw[name] == "", raw[name], "is empty", str(path), name)
    refuse(~frame["status"].isin(STATES), raw["status"], f"is none of {', '.join(STATES)}", str(path), "status")
    return frame
