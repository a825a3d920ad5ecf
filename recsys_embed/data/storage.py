"""A split on the disk: one Arrow file of a single record batch, uncompressed, so that it maps into memory as it is.

The file is laid out at its full size first, with its rows still zeros: every row's place is known from then on, and
any number of processes write theirs into it, in any order, without a second copy and without holding it in memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc

from recsys_embed.data.bags import Bag
from recsys_embed.data.columns import Columns
from recsys_embed.errors import CheckpointError

WEIGHT = "weight:"
"""What the name of the column of weights begins with: the last column, after the label, where there is one."""

_READ = 1 << 24  # bytes


@dataclass(frozen=True)
class SplitFile:
    """Where the columns of a split stand in its file: ``ids`` at bytes ``[F]`` (of a bag, its values), ``bags`` the
    bytes where its offsets begin (int64) or None, then ``numbers``, float32: dense columns, label and, where rows are
    weighted, weight.

    ``values`` holds, per feature, the number of values its bags have together, or None where it is single-valued;
    ``widths`` the bytes of an id: 4 (int32) or, of a hash, 8 (int64).
    """

    rows: int
    values: tuple[int | None, ...]
    ids: tuple[int, ...]
    bags: tuple[int | None, ...]
    numbers: tuple[int, ...]
    widths: tuple[int, ...]
    weighted: bool = False

    @classmethod
    def create(
        cls, path: Path, rows: int, names: Sequence[str], values: Sequence[int | None], widths: Sequence[int]
    ) -> SplitFile:
        """Lay out a file for ``rows`` rows of columns ``names``, features first, and reserve its room on the disk.

        Raises:
            OSError: there is no room.
        """
        counts = [rows if total is None else total for total in values]
        zeros = np.zeros(8 * max([rows, *counts]), np.uint8)  # untouched pages take no memory
        kinds = [pa.int64() if width == 8 else pa.int32() for width in widths]
        arrays = [
            _column(kind, rows, zeros) if total is None else _list(kind, rows, total, zeros)
            for kind, total in zip(kinds, values, strict=True)
        ]
        arrays += [_column(pa.float32(), rows, zeros) for _ in names[len(values) :]]
        batch = pa.RecordBatch.from_arrays(arrays, names=list(names))
        with open(path, "wb") as file:
            with ipc.new_file(pa.PythonFile(_Skipping(file), "w"), batch.schema) as writer:
                writer.write_batch(batch)
            file.flush()
            _reserve(file)
        return cls.open(path, len(values))

    @classmethod
    def open(cls, path: Path, features: int) -> SplitFile:
        """Find the columns of a file that was written: the ``features`` first are ids.

        Raises:
            CheckpointError: the file is missing or not what was written.
        """
        try:
            batch, places = _places(path)
        except (pa.ArrowException, OSError) as error:
            raise CheckpointError(f"{path}: cannot be read: {error}", file=str(path)) from error
        return cls(
            batch.num_rows,
            tuple(len(c.values) if pa.types.is_large_list(c.type) else None for c in batch.columns[:features]),
            tuple(one[-1] for one in places[:features]),
            tuple(one[0] if len(one) == 2 else None for one in places[:features]),
            tuple(one[0] for one in places[features:]),
            tuple(_item(c.type).bit_width // 8 for c in batch.columns[:features]),
            batch.schema.names[-1].startswith(WEIGHT),
        )

    @property
    def nbytes(self) -> int:
        """Of all columns."""
        counts = [self.rows if total is None else total for total in self.values] + [self.rows] * len(self.numbers)
        widths = [*self.widths, *[4] * len(self.numbers)]
        offsets = 8 * (self.rows + 1) * sum(bag is not None for bag in self.bags)
        return offsets + sum(count * width for count, width in zip(counts, widths, strict=True))

    def write(self, path: Path, first: int, begins: Sequence[int], part: Columns) -> None:
        """Write rows ``first``, ``first + 1``, …; ``begins [F]`` is where bags' values go, among those of all rows."""
        with open(path, "r+b") as file:
            columns = zip(part.ids, self.ids, self.bags, begins, self.widths, strict=True)
            for ids, at, bag, begin, width in columns:
                if isinstance(ids, Bag):
                    assert bag is not None
                    _put(file, bag + 8 * (first + 1), ids.offsets[1:] + begin)
                    _put(file, at + width * begin, ids.values)
                else:
                    _put(file, at + width * first, ids)
            for numbers, at in zip(part.numbers, self.numbers, strict=True):
                _put(file, at + 4 * first, numbers)

    def read(self, path: Path, first: int, last: int) -> Columns:
        """Rows ``first`` to ``last``, read rather than mapped.

        Raises:
            CheckpointError: the file is missing or cut short.
        """
        count = last - first
        try:
            with open(path, "rb", buffering=0) as file:
                ids: list[np.ndarray | Bag] = []
                for at, bag, width in zip(self.ids, self.bags, self.widths, strict=True):
                    kind = np.int64 if width == 8 else np.int32
                    if bag is None:
                        ids.append(_get(file, at + width * first, count, kind))
                    else:
                        offsets = _get(file, bag + 8 * first, count + 1, np.int64)
                        values = _get(file, at + width * int(offsets[0]), int(offsets[-1] - offsets[0]), kind)
                        ids.append(Bag(values, offsets - offsets[0]))
                numbers = [_get(file, at + 4 * first, count, np.float32) for at in self.numbers]
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error}", file=str(path)) from error
        return Columns.of(tuple(ids), numbers, weighted=self.weighted)

    def blocks(self, path: Path) -> Iterator[bytes]:
        """The columns' bytes, in their order, in blocks: padding and the file's own words are not among them."""
        with open(path, "rb") as file:
            for at, bag, total, width in zip(self.ids, self.bags, self.values, self.widths, strict=True):
                if bag is not None:
                    yield from _read(file, bag, 8 * (self.rows + 1))
                yield from _read(file, at, width * (self.rows if total is None else total))
            for at in self.numbers:
                yield from _read(file, at, 4 * self.rows)

    def tree(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def of(cls, tree: dict[str, Any]) -> SplitFile:
        """What :meth:`tree` gave."""
        values: dict[str, Any] = {key: tuple(one) if isinstance(one, list) else one for key, one in tree.items()}
        return cls(**values)


def _item(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_large_list(kind) else kind


def open_split(path: Path, features: int) -> Columns:
    """Map a split's columns into memory: the ``features`` first are ids, the last is the label, or the weight after it.

    Raises:
        CheckpointError: the file is missing or not what was written.
    """
    try:
        batch = ipc.open_file(pa.memory_map(str(path))).get_batch(0)
        ids = tuple(
            Bag(column.values.to_numpy(), column.offsets.to_numpy())
            if pa.types.is_large_list(column.type)
            else column.to_numpy()
            for column in batch.columns[:features]
        )
        numbers = [column.to_numpy() for column in batch.columns[features:]]
        weight = numbers.pop() if batch.schema.names[-1].startswith(WEIGHT) else None
        return Columns(ids, tuple(numbers[:-1]), numbers[-1], weight)
    except (pa.ArrowException, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}", file=str(path)) from error


class _Skipping:
    """A file in which Arrow's column buffers become holes."""

    closed = False

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, data: bytes | pa.Buffer) -> int:
        if isinstance(data, pa.Buffer):
            self._file.seek(data.size, os.SEEK_CUR)
            return int(data.size)
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()

    def flush(self) -> None:
        self._file.flush()


def _column(kind: pa.DataType, rows: int, zeros: np.ndarray) -> pa.Array:
    return pa.Array.from_buffers(kind, rows, [None, pa.py_buffer(zeros[: kind.bit_width // 8 * rows])])


def _list(kind: pa.DataType, rows: int, total: int, zeros: np.ndarray) -> pa.Array:
    offsets = np.zeros(rows + 1, np.int64)
    offsets[-1] = total  # all that Arrow looks at
    return pa.Array.from_buffers(
        pa.large_list(kind), rows, [None, pa.py_buffer(offsets)], children=[_column(kind, total, zeros)]
    )


def _places(path: Path) -> tuple[pa.RecordBatch, list[list[int]]]:
    """The rows, and the bytes at which each column's buffers begin: of a list, its offsets and its values."""
    mapped = pa.memory_map(str(path))
    batch = ipc.open_file(mapped).get_batch(0)
    mapped.seek(0)
    start = mapped.read_buffer(1).address
    places = [[buffer.address - start for buffer in column.buffers() if buffer is not None] for column in batch.columns]
    return batch, places


def _reserve(file: IO[bytes]) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, max(os.fstat(file.fileno()).st_size, 1))


def _put(file: IO[bytes], at: int, numbers: np.ndarray) -> None:
    if len(numbers):
        file.seek(at)
        file.write(np.ascontiguousarray(numbers).data)


def _get(file: IO[bytes], at: int, count: int, kind: type[np.generic]) -> np.ndarray:
    """Numbers that stand in a file.

    Raises:
        OSError: it ends before them.
    """
    numbers = np.empty(count, kind)
    left = numbers.view(np.uint8).data
    file.seek(at)
    while left:
        got: int = file.readinto(left)  # type: ignore[attr-defined]
        if not got:
            raise OSError("it is cut short")
        left = left[got:]
    return numbers


def _read(file: IO[bytes], at: int, count: int) -> Iterator[bytes]:
    if count:
        file.seek(at)
    while count:
        block = file.read(min(count, _READ))
        if not block:
            raise CheckpointError(f"{file.name}: is cut short", file=file.name)
        count -= len(block)
        yield block
