"""Raw rows from files in one of the formats: a file, a folder, a glob pattern, an archive or members of one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa

from recsys_embed.data.chunks import Chunk, rebatch
from recsys_embed.data.formats import format_of
from recsys_embed.errors import DataError

CHUNK_ROWS = 65_536


def find_files(path: str | Path, format: str = "auto") -> list[Path]:
    """The files a path stands for, in the order of their names: itself, a folder's, or those of a pattern.

    In a folder or an archive only files named like data of the format count; of CSV, TSV and Parquet these are
    ``.csv``, ``.tsv``, ``.txt``, ``.parquet``, with ``.gz`` or ``.zst`` on top.

    Raises:
        DataError: there is none.
    """
    return format_of(format).find(path)


def read_frames(
    path: str | Path,
    columns: Sequence[str],
    *,
    format: str = "auto",
    separator: str | None = None,
    chunk_rows: int = CHUNK_ROWS,
) -> Iterator[pd.DataFrame]:
    """Stream some columns of raw rows as data frames of text, NaN where a cell is missing.

    ``separator`` is that of CSV files in format ``auto``; by default a tab for ``.tsv``, else a comma.

    Raises:
        DataError: what cannot be read, with file, column and row.
    """
    for file in find_files(path, format):
        for chunk in read_chunks(file, columns, format=format, separator=separator, chunk_rows=chunk_rows):
            yield pa.table({name: chunk.text(name, exact=False) for name in columns}).to_pandas()


def read_chunks(
    file: Path,
    columns: Sequence[str],
    *,
    format: str = "auto",
    separator: str | None = None,
    chunk_rows: int = CHUNK_ROWS,
    part: tuple[int, int] | None = None,
    first_row: int = 1,
    skip: bool = False,
) -> Iterator[Chunk]:
    """Stream some columns of one file in chunks of ``chunk_rows`` rows, typed as they are in the file.

    A ``part`` is from which to which row group of Parquet, or byte of text; its first row is ``first_row``. With
    ``skip``, rows that cannot be read are refused by their chunks, where the format has it.

    Raises:
        DataError: what cannot be read, with file, column and row.
    """
    known, refused, row = format_of(format, separator), list[DataError](), first_row
    if skip and known.read_skipping is not None:
        tables = known.read_skipping(file, columns, part, first_row, refused)
    else:
        tables = known.read(file, columns, part, first_row)
    for table in rebatch(tables, chunk_rows):
        last = row + table.num_rows
        yield Chunk(table, str(file), row, refused=tuple(_before(last, refused)))
        row = last


def _before(row: int, errors: list[DataError]) -> list[DataError]:
    """Take out the errors of rows before ``row``."""
    here = [error for error in errors if error.row is not None and error.row < row]
    errors[:] = [error for error in errors if error.row is not None and error.row >= row]
    return here


def column_names(file: Path, separator: str | None = None, format: str = "auto") -> list[str]:
    """The columns of a file, in its order."""
    return format_of(format, separator).names(file)
