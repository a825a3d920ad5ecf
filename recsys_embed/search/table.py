"""``search.csv``: every trial of a search, one row each, beside the ``results.csv`` of the finalists."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
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
in microseconds a row; ``params`` are what was drawn; ``allocation`` has for every vocabulary its strategy, its ids and
the weights that an id has in each block of ids, the most frequent first; ``history`` the validation AUC after each
epoch."""
_KEY = ["dataset", "fingerprint", "model", "dim", "budget_requested", "method", "trial"]
_MOST_BLOCKS = 32


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
    file = str(path)
    for name in ("method", "trial", "status"):
        refuse(raw[name] == "", raw[name], "is empty", file, name)
    refuse(~frame["status"].isin(STATES), raw["status"], f"is none of {', '.join(STATES)}", file, "status")
    for name in ("val_auc", "serve_bytes"):
        refuse((frame["status"] == "ok") & frame[name].isna(), raw[name], "is empty in a trial that is ok", file, name)
    refuse(frame[_KEY].duplicated(), raw["trial"], "is there twice", file, "trial")
    for name, fits, shape in _SHAPES:
        wrong = [not all(map(fits, object_of(text).values())) for text in raw[name]]
        refuse(pd.Series(wrong, dtype=bool), raw[name], f"is no object of {shape}", file, name)
    return frame


def object_of(text: str) -> dict[str, Any]:
    """What a cell of JSON holds; nothing where it is empty."""
    return dict(json.loads(text)) if text else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return _is_number(value) and abs(value) < 1e300  # NaN is not


def _is_drawn(value: Any) -> bool:
    return isinstance(value, str) or _is_finite(value)


def _is_allocated(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("strategy"), str):
        return False
    ids: Any = value.get("ids")
    weights = value.get("weights_per_id")
    blocks = weights if isinstance(weights, list) and len(weights) <= _MOST_BLOCKS else []
    known = _is_finite(ids) and bool(blocks) and all(map(_is_finite, blocks))
    return known and min([ids - 1, *blocks]) >= 0


_SHAPES: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
    ("params", _is_drawn, "numbers and names"),
    ("allocation", _is_allocated, "vocabularies, each with strategy, ids and weights_per_id of its blocks"),
    ("history", _is_number, "numbers"),
)
