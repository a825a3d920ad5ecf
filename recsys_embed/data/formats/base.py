"""What a public format is: which files, which columns, and what these usually mean."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from recsys_embed.data.parts import Part
from recsys_embed.errors import DataError


def alone(file: Path) -> list[Path]:
    """A file that is read without any other."""
    return []


@dataclass(frozen=True)
class Format:
    """``files`` says in a line what it reads, for the documents.

    ``find`` lists the files of a path, each a stream of rows, and raises DataError where there is none. ``beside``:
    further files that the rows of a file depend on. ``names`` are the columns there are. ``roles`` are keys of a
    config's ``data``, which a user's own replace one by one.

    ``cut(number, file)`` are the parts of the file of that number. ``read(file, columns, part, first_row)`` streams
    some columns of a part, from a byte (or row group) to another, or None for the whole file: as text, in the order
    asked for and null where a cell is empty. ``first_row`` is the number of its first row, for the places in errors.
    ``read_skipping`` does the same, but puts the errors of rows that cannot be read into its last argument, before
    the batch that has these rows; None where one such row is an error of the file.
    """

    files: str
    roles: Mapping[str, Any]
    find: Callable[[str | Path], list[Path]]
    names: Callable[[Path], list[str]]
    read: Callable[[Path, Sequence[str], tuple[int, int] | None, int], Iterator[pa.RecordBatch]]
    cut: Callable[[int, Path], list[Part]]
    beside: Callable[[Path], list[Path]] = alone
    read_skipping: (
        Callable[[Path, Sequence[str], tuple[int, int] | None, int, list[DataError]], Iterator[pa.RecordBatch]] | None
    ) = None
