"""Vectors of ids from a file: a column ``id`` of raw values, and either a column ``vector`` of lists (Parquet) or
columns of numbers ``v0``, ``v1``, …

Shapes: n rows of a block, W the width of a vector.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_embed.data.chunks import Chunk, require
from recsys_embed.data.readers import column_names, read_chunks
from recsys_embed.errors import DataError
from recsys_embed.files import checksum

ID, VECTOR = "id", "vector"


@dataclass(frozen=True)
class Vectors:
    """A block of a file: ``ids [n]`` as text, ``values [n, W]`` float32, all finite."""

    chunk: Chunk
    ids: pa.Array
    values: np.ndarray

    def error(self, message: str, index: int, value: object) -> DataError:
        """A DataError about the row at ``index``."""
        return self.chunk.error(message, None, index, value)


def read_vectors(path: str | Path) -> Iterator[Vectors]:
    """Stream a file; its extra columns are left out.

    Raises:
        DataError: there is no such file, it cannot be read, lacks a column, or holds a cell that is missing, no number
            or not finite, or a vector of another width than the first; with file, column, row and value.
    """
    file = Path(path)
    if not file.is_file():
        raise DataError("there is no such file", file=str(path))
    parts, width = _columns(file), None
    for chunk in read_chunks(file, [ID, *parts]):
        ids = chunk.text(ID)
        if ids.null_count:
            raise chunk.error("an id is missing", ID, ids.is_null().index(True).as_py())
        values = _lists(chunk, width) if parts == [VECTOR] else _numbers(chunk, parts)
        width = values.shape[1]
        bad = ~np.isfinite(values).all(axis=1)
        if bad.any():
            index = int(bad.argmax())
            place = int((~np.isfinite(values[index])).argmax())
            column = VECTOR if parts == [VECTOR] else parts[place]
            value = float(values[index, place])
            raise chunk.error("a number is missing, or is no finite float32", column, index, value)
        yield Vectors(chunk, ids, values)


def width_of(path: str | Path) -> int:
    """The width of the first vector.

    Raises:
        DataError: see :func:`read_vectors`; or there is none.
    """
    first = next(read_vectors(path), None)
    if first is None:
        raise DataError("holds no vector", file=str(path))
    return int(first.values.shape[1])


def contents(files: Mapping[str, str]) -> dict[str, str]:
    """A checksum of each file's bytes, wherever it lies: what a run that reads it is identified by.

    Raises:
        DataError: there is no such file.
    """
    return {name: _checksum(path) for name, path in files.items()}


def _checksum(path: str) -> str:
    try:
        status = Path(path).stat()
        return _checksum_as_of(path, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", file=path) from error


@lru_cache(maxsize=64)
def _checksum_as_of(path: str, size: int, changed: int) -> str:
    return checksum(path)


def _columns(file: Path) -> list[str]:
    """The columns that hold the vectors."""
    names = column_names(file)
    require([ID], names, str(file))
    numbered = [name for name in names if re.fullmatch(r"v\d+", name)]
    if (VECTOR in names) == bool(numbered):
        found = f"{VECTOR!r} and {numbered[0]!r}" if numbered else f"neither, but {', '.join(names[:20])}"
        raise DataError(f"vectors are a column {VECTOR!r} of lists, or columns v0, v1, …; has {found}", file=str(file))
    if not numbered:
        return [VECTOR]
    wanted = [f"v{place}" for place in range(len(numbered))]
    require(wanted, names, str(file))
    return wanted


def _numbers(chunk: Chunk, columns: list[str]) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.stack([chunk.numbers(name).astype(np.float32) for name in columns], axis=1)


def _lists(chunk: Chunk, width: int | None) -> np.ndarray:
    column = chunk.table.column(VECTOR).combine_chunks()
    cells = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    kind = cells.type
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not listed or not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
        raise DataError(f"holds {kind} cells, and lists of numbers are expected", file=chunk.file, column=VECTOR)
    if cells.null_count:
        raise chunk.error("a vector is missing", VECTOR, cells.is_null().index(True).as_py())
    lengths = pc.list_value_length(cells).to_numpy(zero_copy_only=False)
    width = int(lengths[0]) if width is None and len(lengths) else width
    other = lengths != width
    if other.any():
        index = int(other.argmax())
        raise chunk.error(f"a vector has another width than the first, {width}", VECTOR, index, int(lengths[index]))
    if not width:
        raise chunk.error("a vector is empty", VECTOR, 0, [])
    numbers = cells.flatten()
    if not pa.types.is_float32(numbers.type):
        numbers = numbers.cast(pa.float64(), safe=False)
    with np.errstate(over="ignore"):
        return np.asarray(numbers.to_numpy(zero_copy_only=False).astype(np.float32).reshape(len(cells), width))
