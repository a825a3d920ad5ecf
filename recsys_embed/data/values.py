"""Cells to text or to numbers, without ever guessing a type.

The text of a cell is what stands in a CSV file. For typed columns (Parquet, data frames) it is fixed here:
whole numbers in decimal digits, exactly; floats as the shortest text that reads back, without a fraction where
they are whole (a column of whole numbers that pandas turned into floats, because of a blank, keeps its text);
booleans as ``true`` and ``false``. Missing is the empty string, null, None, NaN and NaT, and nothing else:
"NA", "None" and "nan" are text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

# Above this, whole numbers that differ may be equal as floats.
EXACT_FLOAT = 2**53


class CellError(ValueError):
    """A cell that cannot be converted: its index in the column and its value. The reader adds the place."""

    def __init__(self, message: str, *, index: int | None = None, value: object = None) -> None:
        super().__init__(message)
        self.index, self.value = index, value


def column_of(series: pd.Series) -> pa.Array:
    """A pandas column as Arrow; a mixed one as text.

    Raises:
        CellError: a cell holds something that is not a scalar.
    """
    try:
        column = pa.Array.from_pandas(series)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError):
        column = pa.array([_scalar_text(value, index) for index, value in enumerate(series)], pa.string())
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def to_text(column: pa.Array, *, exact: bool = True) -> pa.Array:
    """Cells as strings, null where missing.

    Raises:
        CellError: a nested type, text that is not UTF-8, or (with ``exact``) a float that may have lost digits.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        return to_text(column.cast(kind.value_type), exact=exact)
    if pa.types.is_nested(kind):
        raise CellError(f"holds {kind} cells: one value a cell is expected (several as text with a separator)")
    if pa.types.is_floating(kind):
        return _float_text(column.cast(pa.float64()), exact)
    try:
        text = column.cast(pa.string())
    except pa.ArrowInvalid as error:
        raise CellError(f"cannot be read as text: {error}") from error
    empty = pc.equal(text, "")
    return pc.if_else(empty, None, text) if pc.any(empty).as_py() else text


def to_numbers(column: pa.Array) -> np.ndarray:
    """Cells as float64 ``[rows]``, NaN where missing. Text must be a number; blanks around it are ignored.

    Raises:
        CellError: the first cell that is not a number, or is infinite.
    """
    if pa.types.is_dictionary(column.type):
        return to_numbers(column.cast(column.type.value_type))
    try:
        if pa.types.is_floating(column.type) or pa.types.is_integer(column.type) or pa.types.is_decimal(column.type):
            numbers = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        elif pa.types.is_boolean(column.type):
            numbers = column.cast(pa.int8()).cast(pa.float64()).to_numpy(zero_copy_only=False)
        else:
            numbers = _parse(to_text(column))
    except pa.ArrowInvalid as error:
        raise CellError(f"holds {column.type} cells, not numbers: {error}") from error
    infinite = np.isinf(numbers)
    if infinite.any():
        index = int(infinite.argmax())
        raise CellError("infinite number in a numeric column", index=index, value=column[index].as_py())
    return np.asarray(numbers, np.float64)


def canonical(value: object) -> str:
    """A label's value for comparison: 4, "4" and "4.0" are one, and so are True, "true" and 1."""
    text = str(value).strip()
    if text.lower() in ("true", "false"):
        return "1" if text.lower() == "true" else "0"
    try:
        number = float(text) if "_" not in text else math.nan
    except ValueError:
        return text
    if not math.isfinite(number) or abs(number) >= EXACT_FLOAT:
        return text
    return str(int(number)) if number == int(number) else repr(number)


def _float_text(column: pa.Array, exact: bool) -> pa.Array:
    numbers = column.to_numpy(zero_copy_only=False)
    missing = np.isnan(numbers)
    with np.errstate(invalid="ignore"):
        lossy = np.isfinite(numbers) & (np.abs(numbers) >= EXACT_FLOAT)
        whole = (numbers == np.floor(numbers)) & ~lossy & np.isfinite(numbers)
    if exact and lossy.any():
        index = int(lossy.argmax())
        raise CellError(
            "a whole number of 2**53 or more in a column of floats: different ids may already be equal; "
            "give the column as text or integers",
            index=index,
            value=float(numbers[index]),
        )
    digits = pa.array(np.where(whole, numbers, 0).astype(np.int64)).cast(pa.string())
    rest = pa.array(np.where(whole, 0.0, numbers)).cast(pa.string()) if not (whole | missing).all() else digits
    return pc.if_else(pa.array(missing), None, pc.if_else(pa.array(whole), digits, rest))


def _parse(text: pa.Array) -> np.ndarray:
    trimmed = pc.utf8_trim_whitespace(text)
    try:
        return np.asarray(trimmed.cast(pa.float64()).to_numpy(zero_copy_only=False), np.float64)
    except pa.ArrowInvalid:
        index = _first_bad(trimmed)
        raise CellError("text in a numeric column", index=index, value=text[index].as_py()) from None


def _first_bad(text: pa.Array) -> int:
    """The first cell that does not parse, found by halving."""
    first, last = 0, len(text)
    while last - first > 1:
        middle = (first + last) // 2
        try:
            text[first:middle].cast(pa.float64())
            first = middle
        except pa.ArrowInvalid:
            last = middle
    return first


def _scalar_text(value: object, index: int) -> str | None:
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple, dict, set, np.ndarray)):
        raise CellError("one value a cell is expected (several as text with a separator)", index=index, value=value)
    if value is None or pd.isna(value):  # type: ignore[call-overload]
        return None
    if isinstance(value, bytes):
        return value.decode("utf-8")
    try:
        whole: Sequence[str | None] = to_text(pa.array([value])).to_pylist()
        return whole[0]
    except (OverflowError, pa.ArrowInvalid, pa.ArrowTypeError):
        return str(value)
