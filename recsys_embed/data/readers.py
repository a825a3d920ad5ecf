"""Raw rows from files in one of the formats: a file, a folder, a glob pattern, an archive or members of one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa

from recsys_embed.data.chunks import Chunk, rebatch
from recsys_embed.data.formats import format_of

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
) -> Iterator[Chunk]:
    """Stream some columns of one file in chunks of ``chunk_rows`` rows, typed as they are in the file.

    A ``part`` is from which to which row group of Parquet, or byte of text; its first row is ``first_row``.

    Raises:
        DataError: what cannot be read, with file, column and row.
    """
    row = first_row
    for table in rebatch(format_of(format, separator).read(file, columns, part, first_row), chunk_rows):
        yield Chunk(table, str(file), row)
        row += table.num_rows


def column_names(file: Path, separator: str | None = None, format: str = "auto") -> list[str]:
    """The columns of a file, in its order."""
    return format_of(format, separator).names(file)
