"""Raw rows from files: a CSV, TSV or Parquet file, a folder of them, or a glob pattern."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from recsys_embed.data.chunks import Chunk, rebatch, require
from recsys_embed.data.delimited import header, read_delimited, separator_of
from recsys_embed.errors import DataError

CHUNK_ROWS = 65_536
_SUFFIXES = (".csv", ".tsv", ".tab", ".txt", ".parquet", ".pq")


def find_files(path: str | Path) -> list[Path]:
    """The files a path stands for, in the order of their names: itself, a folder's, or those of a pattern.

    In a folder only files named like data count (``.csv``, ``.tsv``, ``.txt``, ``.parquet``; ``.gz`` on top).

    Raises:
        DataError: there is none.
    """
    place = Path(path)
    if place.is_file():
        return [place]
    if place.is_dir():
        found = [file for file in place.iterdir() if file.name.lower().removesuffix(".gz").endswith(_SUFFIXES)]
    else:
        found = [Path(name) for name in glob.glob(str(path), recursive=True)]
    files = sorted(file for file in found if file.is_file() and not file.name.startswith((".", "_")))
    if not files:
        raise DataError("holds no data file" if place.is_dir() else "there is no such file", file=str(path))
    return files


def read_frames(
    path: str | Path, columns: Sequence[str], *, separator: str | None = None, chunk_rows: int = CHUNK_ROWS
) -> Iterator[pd.DataFrame]:
    """Stream some columns of raw rows as data frames of text, NaN where a cell is missing.

    ``separator`` is that of CSV files; by default a tab for ``.tsv``, else a comma.

    Raises:
        DataError: what cannot be read, with file, column and row.
    """
    for file in find_files(path):
        for chunk in read_chunks(file, columns, separator=separator, chunk_rows=chunk_rows):
            yield pa.table({name: chunk.text(name, exact=False) for name in columns}).to_pandas()


def read_chunks(
    file: Path,
    columns: Sequence[str],
    *,
    separator: str | None = None,
    chunk_rows: int = CHUNK_ROWS,
    part: tuple[int, int] | None = None,
    first_row: int = 1,
) -> Iterator[Chunk]:
    """Stream some columns of one file in chunks of ``chunk_rows`` rows, typed as they are in the file.

    A ``part`` is from which to which row group of Parquet, or byte of CSV; its first row is ``first_row``.

    Raises:
        DataError: what cannot be read, with file, column and row.
    """
    if is_parquet(file):
        tables: Iterator[pa.RecordBatch] = _read_parquet(file, columns, chunk_rows, part)
    else:
        tables = read_delimited(file, columns, separator or separator_of(file), part)
    row = first_row
    for table in rebatch(tables, chunk_rows):
        yield Chunk(table, str(file), row)
        row += table.num_rows


def column_names(file: Path, separator: str | None = None) -> list[str]:
    """The columns of a file, in its order."""
    if not is_parquet(file):
        return header(file, separator or separator_of(file))
    with _parquet(file) as parquet:
        return list(parquet.schema_arrow.names)


def is_parquet(file: Path) -> bool:
    """Whether a file begins as Parquet files do.

    Raises:
        DataError: it cannot be opened.
    """
    try:
        with open(file, "rb") as opened:
            return opened.read(4) == b"PAR1"
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", file=str(file)) from error


def _parquet(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file, page_checksum_verification=True, memory_map=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"is not a whole Parquet file: {error}", file=str(file)) from error


def _read_parquet(
    file: Path, columns: Sequence[str], rows: int, part: tuple[int, int] | None
) -> Iterator[pa.RecordBatch]:
    with _parquet(file) as parquet:
        names = parquet.schema_arrow.names
        require(columns, names, str(file))
        for name in columns:
            if names.count(name) > 1:
                raise DataError("stands twice in the file", file=str(file), column=name)
        try:
            groups = None if part is None else list(range(*part))
            for batch in parquet.iter_batches(batch_size=rows, row_groups=groups, columns=list(columns)):
                yield batch.select(list(columns))
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"cannot be read: {error}", file=str(file)) from error
