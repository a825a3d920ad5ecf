"""Any CSV, TSV or Parquet file, told apart by content: columns are named in the file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from recsys_embed.data.delimited import Dialect, header, read_delimited, separator_of
from recsys_embed.data.formats.base import Format
from recsys_embed.data.parquet import cut_row_groups, is_parquet, parquet_names, read_parquet
from recsys_embed.data.parts import Part, count_quoted, cut_lines
from recsys_embed.data.streams import find
from recsys_embed.errors import DataError

_SUFFIXES = (".csv", ".tsv", ".tab", ".txt", ".parquet", ".pq")
_PACKED = (".gz", ".zst", ".zip")


def tables(separator: str | None = None) -> Format:
    """The format with a separator of CSV files; by default a tab for ``.tsv``, else a comma."""

    def dialect(file: Path) -> Dialect:
        return Dialect(separator or separator_of(file))

    def names(file: Path) -> list[str]:
        return parquet_names(file) if is_parquet(file) else header(file, dialect(file))

    def read(
        file: Path,
        columns: Sequence[str],
        part: tuple[int, int] | None = None,
        first_row: int = 1,
        refused: list[DataError] | None = None,
    ) -> Iterator[pa.RecordBatch]:
        if is_parquet(file):
            return read_parquet(file, columns, part)
        return read_delimited(file, columns, dialect(file), None, part, first_row, refused)

    def cut(number: int, file: Path) -> list[Part]:
        return cut_row_groups(number, file) if is_parquet(file) else cut_lines(number, file, count_quoted, headed=True)

    return Format(
        files="CSV, TSV and Parquet files with their own column names",
        roles={},
        find=lambda path: find(path, named_like_data),
        names=names,
        read=read,
        cut=cut,
        read_skipping=read,
    )


def named_like_data(name: str) -> bool:
    """Whether a file of a folder or an archive counts: ``.csv``, ``.tsv``, ``.txt``, ``.parquet``; ``.gz`` on top."""
    return unpacked(name).endswith(_SUFFIXES)


def unpacked(name: str) -> str:
    """A file's name in small letters, without the suffix that says how it is packed."""
    small = name.lower()
    return next((small.removesuffix(suffix) for suffix in _PACKED if small.endswith(suffix)), small)
