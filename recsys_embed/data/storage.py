"""A split on the disk: one Arrow file of a single record batch, uncompressed, so that it maps into memory as it is."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc
import xxhash

from recsys_embed.data.bags import Bag
from recsys_embed.data.batches import Columns
from recsys_embed.errors import CheckpointError, DataError


class SplitWriter:
    """Collects encoded rows, in memory-mapped scratch files beside the target, and writes the Arrow file at the end.

    ``bags`` holds, per feature, the number of values its bags have together, or None where it is single-valued.
    """

    def __init__(self, path: Path, rows: int, names: Sequence[str], bags: Sequence[int | None], dense: int) -> None:
        self.path, self.rows, self.names = path, rows, names
        self._scratch: list[Path] = []
        self.columns = Columns(
            tuple(
                self._map(rows, np.int32)
                if total is None
                else Bag(self._map(total, np.int32), self._map(rows + 1, np.int64))
                for total in bags
            ),
            tuple(self._map(rows, np.float32) for _ in range(dense)),
            self._map(rows, np.float32),
        )
        self._row = 0

    def write(self, part: Columns) -> None:
        """Append rows.

        Raises:
            DataError: there are more than announced: the input has changed since it was counted.
        """
        begin, end = self._row, self._row + len(part)
        pairs = [(self.columns.label, part.label), *zip(self.columns.dense, part.dense, strict=True)]
        if end > self.rows:
            raise DataError("the input has changed while it was being read")
        for target, source in pairs:
            target[begin:end] = source
        for kept, new in zip(self.columns.ids, part.ids, strict=True):
            if isinstance(kept, Bag) and isinstance(new, Bag):
                first = int(kept.offsets[begin])
                if first + len(new.values) > len(kept.values):
                    raise DataError("the input has changed while it was being read")
                kept.values[first : first + len(new.values)] = new.values
                kept.offsets[begin : end + 1] = first + new.offsets
            elif isinstance(kept, np.ndarray):
                kept[begin:end] = new
        self._row = end

    def close(self, digest: xxhash.xxh3_128) -> None:
        """Write the Arrow file and remove the scratch files; the columns' bytes go into ``digest``.

        Raises:
            DataError: there are fewer rows than announced.
        """
        if self._row != self.rows:
            raise DataError("the input has changed while it was being read")
        arrays = []
        for ids in self.columns.ids:
            if isinstance(ids, Bag):
                arrays.append(pa.LargeListArray.from_arrays(_wrap(ids.offsets), _wrap(ids.values)))
                digest.update(ids.offsets.data)
            else:
                arrays.append(_wrap(ids))
            digest.update((ids.values if isinstance(ids, Bag) else ids).data)
        for column in (*self.columns.dense, self.columns.label):
            arrays.append(_wrap(column))
            digest.update(column.data)
        batch = pa.RecordBatch.from_arrays(arrays, names=list(self.names))
        with pa.OSFile(str(self.path), "wb") as file, ipc.new_file(file, batch.schema) as writer:
            writer.write_batch(batch)
        del arrays, batch, self.columns
        for scratch in self._scratch:
            scratch.unlink()

    def _map(self, count: int, dtype: type[np.generic]) -> np.ndarray:
        scratch = self.path.with_name(f".{self.path.name}.{len(self._scratch)}")
        self._scratch.append(scratch)
        _reserve(scratch, max(count, 1) * np.dtype(dtype).itemsize)
        return np.asarray(np.memmap(scratch, dtype, "r+", shape=max(count, 1)))[:count]


def open_split(path: Path, features: int) -> Columns:
    """Map a split's columns into memory: the ``features`` first are ids, the last is the label.

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
        return Columns(ids, tuple(c.to_numpy() for c in batch.columns[features:-1]), batch.columns[-1].to_numpy())
    except (pa.ArrowException, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}", file=str(path)) from error


def _reserve(path: Path, size: int) -> None:
    """A file of zeros with room on the disk: a full disk is an error here, and a killed process (SIGBUS) in a map.

    Raises:
        OSError: there is no room.
    """
    with open(path, "wb") as file:
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)


def _wrap(array: np.ndarray) -> pa.Array:
    return pa.Array.from_buffers(pa.from_numpy_dtype(array.dtype), len(array), [None, pa.py_buffer(array)])
