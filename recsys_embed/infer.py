"""A schema guessed from the first rows of a file, for ``report DATA --label COL``; it is written out as a config.

A column is numeric where its values are numbers, not all of them whole, and mostly distinct; a column of whole numbers
may just as well be ids, and is categorical.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from recsys_embed.data.readers import column_names, find_files, read_frames
from recsys_embed.errors import DataError

SAMPLE_ROWS = 10_000
MANY_DISTINCT = 20


def infer_config(path: str | Path, label: str) -> dict[str, Any]:
    """The tree of a config for the rows at ``path``: every column but the label is a feature.

    Raises:
        DataError: there is no such file, no such column, or no other column.
    """
    file = find_files(path)[0]
    names = column_names(file)
    if label not in names:
        raise DataError(f"there is no such column; there are {', '.join(names)}", file=str(file), column=label)
    columns = [name for name in names if name != label]
    if not columns:
        raise DataError("has no column beside the label", file=str(file), column=label)
    sample = _first_rows(read_frames(path, columns, chunk_rows=SAMPLE_ROWS))
    numeric = [name for name in columns if is_numeric(sample[name])]
    categorical = [name for name in columns if name not in numeric]
    if not categorical:
        raise DataError("no column looks categorical: write a config that names them", file=str(file))
    return {"data": {"path": str(path), "label": label, "categorical": categorical, "numeric": numeric}}


def is_numeric(values: pd.Series[str]) -> bool:
    """Whether a column of text reads as measurements: many distinct numbers, some of them not whole."""
    present = values.dropna()
    numbers = pd.to_numeric(present, errors="coerce")
    if present.empty or numbers.isna().any():
        return False
    return bool((numbers % 1 != 0).any() and numbers.nunique() >= min(MANY_DISTINCT, len(numbers)))


def _first_rows(frames: Iterator[pd.DataFrame]) -> pd.DataFrame:
    for frame in frames:
        return frame.head(SAMPLE_ROWS)
    raise DataError("holds no row")
