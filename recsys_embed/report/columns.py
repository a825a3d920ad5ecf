"""Tables in CSV with a kind for every column: ``text``, ``json``, ``int``, ``float`` or ``flag``.

Writing and reading are symmetrical to the last bit of every number. Missing: "" in text and json, <NA>, NaN, False.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recsys_embed.errors import DataError
from recsys_embed.seals import intact

_LOG = logging.getLogger("recsys_embed")


def format_table(rows: pd.DataFrame | Sequence[Mapping[str, Any]], columns: Mapping[str, str]) -> str:
    """The text of a file. Columns that ``rows`` lacks stay empty; dicts in the JSON columns become JSON.

    Raises:
        DataError: a column that the file does not have.
    """
    frame = rows.copy() if isinstance(rows, pd.DataFrame) else pd.DataFrame(list(rows), dtype=object)
    unknown = [str(name) for name in frame.columns if name not in columns]
    if unknown:
        raise DataError(f"unknown column; known: {', '.join(columns)}", column=unknown[0])
    out = {
        name: _column(frame[name] if name in frame else pd.Series([None] * len(frame), dtype=object), kind)
        for name, kind in columns.items()
    }
    return pd.DataFrame(out).to_csv(index=False, lineterminator="\n")


def _column(values: pd.Series[Any], kind: str) -> list[str]:
    """A column as text: floats in their shortest exact form, flags as true and false."""

    def text(value: Any) -> str:
        if isinstance(value, (dict, list, tuple)):
            return json.dumps(value, ensure_ascii=False)
        if value is None or value is pd.NA or (isinstance(value, float) and np.isnan(value)):
            return "false" if kind == "flag" else ""
        if kind == "flag":
            return "true" if value else "false"
        if kind == "int":
            return str(int(value))
        if kind == "float":
            return repr(float(value))
        return str(value)

    return [text(value) for value in values.astype(object)]


def read_table(
    path: str | Path, columns: Mapping[str, str], *, what: str, younger: Collection[str] = ()
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The cells of a file as text, and as values. Other columns are left out; a file that was edited is said to be.

    Args:
        what: what the file is taken for, to say where it is not.
        younger: columns that may be absent, and are then read as missing.

    Raises:
        DataError: the file is missing or no CSV, a column is missing, or a value is not of its column's kind. Names
            file, column and row.
    """
    file = str(path)
    try:
        if not intact(path):
            _LOG.warning("%s: has changed since it was written; read as it is", file)
        raw = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise DataError(f"cannot be read as {what}: {error}", file=file) from error
    for name in columns:
        if name in younger and name not in raw.columns:
            raw[name] = ""
        if name not in raw.columns:
            raise DataError("the column is missing", file=file, column=name)
    return raw, pd.DataFrame({name: _parse(raw[name], kind, file, name) for name, kind in columns.items()})


def _parse(raw: pd.Series[Any], kind: str, file: str, column: str) -> pd.Series[Any]:
    if kind == "text":
        return raw
    if kind == "json":
        refuse(~raw.map(_is_json_object), raw, "is not a JSON object", file, column)
        return raw
    if kind == "flag":
        lower = raw.str.lower()
        refuse(~lower.isin(["true", "false", "1", "0", ""]), raw, "is neither true nor false", file, column)
        return lower.isin(["true", "1"])
    values = [_number(text) for text in raw]
    wrong = [value is None or (kind == "int" and not (np.isnan(value) or value == int(value))) for value in values]
    refuse(pd.Series(wrong), raw, "is not a whole number" if kind == "int" else "is not a number", file, column)
    if kind == "float":
        return pd.Series(values, dtype="float64")
    return pd.Series([_whole(text) if text else pd.NA for text in raw], dtype="Int64")


def _number(text: str) -> float | None:
    """The number, NaN where the text is empty or says so, None where it is neither; infinity is no measurement."""
    try:
        value = float(text) if text else float("nan")
    except ValueError:
        return None
    return None if np.isinf(value) else value


def _whole(text: str) -> Any:
    if text.lstrip("+-").isdigit():
        return int(text)
    return pd.NA if np.isnan(float(text)) else int(float(text))


def _is_json_object(text: str) -> bool:
    try:
        return not text or isinstance(json.loads(text), dict)
    except ValueError:
        return False


def refuse(wrong: pd.Series[Any], raw: pd.Series[Any], message: str, file: str, column: str) -> None:
    """Raise a DataError for the first row that is wrong, if there is one."""
    places = np.flatnonzero(np.asarray(wrong, dtype=bool))
    if len(places):
        row = int(places[0])
        raise DataError(message, file=file, column=column, row=row + 1, value=str(raw.iloc[row]))
