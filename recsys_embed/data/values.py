"""Cells to text or to numbers, without ever guessing a type.

The text of a cell is what stands in a CSV file. For typed columns (Parquet, data frames) it is fixed here:
whole numbers in decimal digits, exactly; floats as the shortest text that reads back, without a fraction where
they are whole (a column of whole numbers that pandas turned into floats, because of a blank, keeps its text);
booleans as ``true`` and ``false``. Missing is the empty string, null, None, NaN and NaT, and nothing else:
"NA", "None" and "nan" are text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

# From here on, whole numbers that differ may be equal as floats, by the bits of the float.
EXACT = {16: 2**11, 32: 2**24, 64: 2**53}
EXACT_FLOAT = EXACT[64]


class CellError(ValueError):
    """A cell that cannot be converted: its index in the column and its value. The reader adds the place."""

    def __init__(self, message: str, *, index: int | None = None, value: object = None) -> None:
        super().__init__(message)
        self.index, self.value = index, value


def column_of(series: pd.Series, refused: dict[int, CellError] | None = None) -> pa.Array:
    """A pandas column as Arrow; a mixed one as text. Cells that cannot be are put into ``refused`` by their index,
    where it is given, and are null.

    Raises:
        CellError: a cell holds something that is not a scalar, is no text, or is a float that may have lost digits.
    """
    try:
        column = pa.Array.from_pandas(series)
    except (pa.ArrowException, OverflowError, UnicodeError):
        column = pa.array([_scalar_text(value, index, refused) for index, value in enumerate(series)], pa.string())
    return unchecked(column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column)


def unchecked(column: pa.Array) -> pa.Array:
    """Strings as the bytes that they may be: a Parquet file, or a data frame on Arrow, may call any bytes so."""
    if pa.types.is_string(column.type):
        return column.cast(pa.binary())
    return column.cast(pa.large_binary()) if pa.types.is_large_string(column.type) else column


def to_text(column: pa.Array, *, exact: bool = True) -> pa.Array:
    """Cells as strings, null where missing. A column of strings is taken to be UTF-8: see :func:`unchecked`.

    Raises:
        CellError: a nested type, text that is not UTF-8, or (with ``exact``) a float that may have lost digits.
    """
    kind = column.type
    if pa.types.is_dictionary(kind):
        return to_text(unchecked(column.cast(kind.value_type)), exact=exact)
    if pa.types.is_nested(kind):
        raise CellError(f"holds {kind} cells: one value a cell is expected (several as text with a separator)")
    if pa.types.is_floating(kind):
        return _float_text(column, exact)
    try:
        text = column.cast(pa.string())
    except pa.ArrowInvalid as error:
        raise _no_text(column, error) from error
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
            column = to_text(column)
            numbers = _parse(column)
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
    bits = column.type.bit_width
    if bits == 16:
        column = column.cast(pa.float32())
    numbers = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    missing = np.isnan(numbers)
    with np.errstate(invalid="ignore"):
        lossy = np.isfinite(numbers) & (np.abs(numbers) >= EXACT[bits])
        whole = (numbers == np.floor(numbers)) & (np.abs(numbers) < EXACT_FLOAT)
    if exact and lossy.any():
        index = int(lossy.argmax())
        raise CellError(
            f"a whole number of 2**{EXACT[bits].bit_length() - 1} or more in a column of {bits}-bit floats: different "
            "ids may already be equal; give the column as text or integers",
            index=index,
            value=float(numbers[index]),
        )
    digits = pa.array(np.where(whole, numbers, 0).astype(np.int64)).cast(pa.string())
    others = pa.array(whole | missing)
    rest = pc.if_else(others, None, column).cast(pa.string()) if not pc.all(others).as_py() else digits
    return pc.if_else(pa.array(missing), None, pc.if_else(pa.array(whole), digits, rest))


def _no_text(column: pa.Array, error: Exception) -> CellError:
    """The first cell that is not UTF-8, where that is what is wrong."""
    kind = column.type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_large_string(kind):
        index = first_refused(column.cast(pa.large_binary()), lambda cells: cells.cast(pa.large_string()))
        if index is not None:
            return CellError("is not UTF-8 text", index=index, value=column[index].as_buffer().to_pybytes()[:80])
    return CellError(f"cannot be read as text: {error}")


def _parse(text: pa.Array) -> np.ndarray:
    try:
        cells = text.cast(pa.float64())
    except pa.ArrowInvalid:  # trimming takes as long as parsing, and most files have nothing to trim
        cells = _trimmed(text)
    numbers = np.asarray(cells.to_numpy(zero_copy_only=False), np.float64)
    there = np.isnan(numbers) & text.is_valid().to_numpy(zero_copy_only=False)  # "nan" is text like any other
    if there.any():
        raise _no_number(text, int(there.argmax()))
    return numbers


def _trimmed(text: pa.Array) -> pa.Array:
    trimmed = pc.utf8_trim_whitespace(text)
    index = first_refused(trimmed, lambda cells: cells.cast(pa.float64()))
    if index is not None:
        raise _no_number(text, index)
    return trimmed.cast(pa.float64())


def _no_number(text: pa.Array, index: int) -> CellError:
    return CellError("text in a numeric column", index=index, value=text[index].as_py())


def first_refused(cells: pa.Array, convert: Callable[[pa.Array], object]) -> int | None:
    """The first cell that Arrow cannot convert, found by halving."""
    first, last = 0, len(cells)
    while last - first > 1:
        middle = (first + last) // 2
        if _converts(cells[first:middle], convert):
            first = middle
        else:
            last = middle
    return None if first == last or _converts(cells[first:last], convert) else first


def _converts(cells: pa.Array, convert: Callable[[pa.Array], object]) -> bool:
    try:
        convert(cells)
    except pa.ArrowInvalid:
        return False
    return True


def _scalar_text(value: object, index: int, refused: dict[int, CellError] | None) -> str | None:
    try:
        return _text_of(value)
    except CellError as error:
        named = CellError(str(error), index=index, value=value)
        if refused is None:
            raise named from error
        refused[index] = named
        return None


def _text_of(value: object) -> str | None:
    if isinstance(value, (list, tuple, dict, set, np.ndarray)):
        raise CellError("one value a cell is expected (several as text with a separator)")
    if value is None or (not isinstance(value, (str, bytes)) and pd.isna(value)):  # type: ignore[call-overload]
        return None
    try:
        if isinstance(value, bytes):
            return value.decode("utf-8")
        whole: Sequence[str | None] = to_text(pa.array([value])).to_pylist()
        return whole[0]
    except UnicodeError as error:
        raise CellError("is not UTF-8 text") from error
    except (OverflowError, pa.ArrowException):
        return str(value)
