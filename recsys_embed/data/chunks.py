"""A run of rows from one file, which knows where they stand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pyarrow as pa

from recsys_embed.data.values import CellError, column_of, to_numbers, to_text
from recsys_embed.errors import DataError


@dataclass(frozen=True)
class Chunk:
    """Rows ``first_row``, ``first_row + 1``, … of ``file`` (data rows count from 1; None is a data frame).

    ``file_number`` counts the files from 0. ``split`` is set where each file is a split; ``probability [rows]`` where
    the truth is known (planted data). ``refused`` are rows that could not be read: their cells mean nothing.
    """

    table: pa.Table
    file: str | None = None
    first_row: int = 1
    split: str | None = None
    file_number: int = 0
    probability: np.ndarray | None = None
    refused: tuple[DataError, ...] = ()

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def text(self, column: str, *, exact: bool = True) -> pa.Array:
        """Cells as strings, null where missing. Raises DataError with the cell's place."""
        try:
            return to_text(self.cells(column), exact=exact)
        except CellError as error:
            raise self.error(str(error), column, error.index, error.value) from error

    def numbers(self, column: str) -> np.ndarray:
        """Cells as float64 ``[rows]``, NaN where missing. Raises DataError with the cell's place."""
        try:
            return to_numbers(self.cells(column))
        except CellError as error:
            raise self.error(str(error), column, error.index, error.value) from error

    def error(self, message: str, column: str | None, index: int | None, value: object = None) -> DataError:
        """A DataError about the cell at ``index`` of this chunk."""
        row = None if index is None else self.first_row + index
        return DataError(message, file=self.file, column=column, row=row, value=value)

    def cells(self, column: str) -> pa.Array:
        """A column as it was read."""
        cells = self.table.column(column).combine_chunks()
        return cells.combine_chunks() if isinstance(cells, pa.ChunkedArray) else cells


def frame_chunks(frame: pd.DataFrame, columns: Sequence[str], rows: int, *, skip: bool = False) -> Iterator[Chunk]:
    """A data frame in chunks of ``rows`` rows. With ``skip``, rows with cells that are not scalars are refused by the
    chunk alone.

    Raises:
        DataError: a column that is missing or given twice, or a cell that is not a scalar.
    """
    names = frame.columns.tolist()
    for name in columns:
        if names.count(name) > 1:
            raise DataError("the data frame has this column twice", column=name)
    require(columns, [_name(name) for name in names], None)
    for start in range(0, len(frame), rows):
        part = frame.iloc[start : start + rows]
        cells, refused = {}, list[DataError]()
        for name in columns:
            found: dict[int, CellError] = {}
            cells[name] = column_of(part[name], found)
            for index, error in found.items():
                named = DataError(str(error), column=name, row=start + 1 + index, value=error.value)
                if not skip:
                    raise named from error
                refused.append(named)
        yield Chunk(pa.table(cells), first_row=start + 1, refused=tuple(refused))


def _name(column: object) -> str:
    return column if isinstance(column, str) else f"{type(column).__name__} {column!r}"


def rebatch(tables: Iterable[pa.Table | pa.RecordBatch], rows: int) -> Iterator[pa.Table]:
    """The same rows in tables of exactly ``rows`` rows, the last one shorter."""
    held: list[pa.Table] = []
    count = 0
    for piece in tables:
        table = pa.Table.from_batches([piece]) if isinstance(piece, pa.RecordBatch) else piece
        held.append(table)
        count += table.num_rows
        while count >= rows:
            whole = pa.concat_tables(held)
            yield whole.slice(0, rows)
            held, count = [whole.slice(rows)], count - rows
    if count:
        yield pa.concat_tables(held)


def require(wanted: Iterable[str], found: Sequence[str], file: str | None) -> None:
    """Check that all columns are there.

    Raises:
        DataError: the first that is missing, with the nearest names.
    """
    import difflib

    for name in wanted:
        if name not in found:
            near = difflib.get_close_matches(name, found, n=3, cutoff=0.5)
            hint = f"did you mean {', '.join(map(repr, near))}?" if near else f"there are {', '.join(found[:20])}"
            raise DataError(f"there is no such column; {hint}", file=file, column=name)
