"""What counting leaves for encoding, so that raw cells are read and parsed once.

A part's rows are kept in blocks: every feature's cells as places among the block's own distinct values (a run of the
part's :class:`~recsys_embed.data.tally.Tally`), numbers, splits and labels as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.ipc as ipc

from recsys_embed.data.bags import Bag, offsets_of
from recsys_embed.data.tally import Tally, open_runs

BLOCK_BYTES = 128 << 20
"""Bytes of cells, as Arrow holds them, that are held before they become a block: those of a part of a file mostly."""

Cut = tuple[pa.Array, np.ndarray]
"""Cells of a multi-valued feature: values ``[N]`` and offsets ``[rows + 1]``."""


@dataclass(frozen=True)
class Block:
    """Rows of a part. ``words [F]`` are runs of hash, value and count; ``codes [F]`` the places in them, ``[rows]``
    int32 (−1: missing) or a bag; ``numbers [n]`` float64, then weights where there are any, float32; ``splits`` int8
    (−1: dropped) and ``labels`` float32."""

    words: tuple[pa.RecordBatch, ...]
    codes: tuple[np.ndarray | Bag, ...]
    numbers: tuple[np.ndarray, ...]
    splits: np.ndarray
    labels: np.ndarray


class BlockWriter:
    """Writes the runs and the rows of a part; counts are those of training rows."""

    def __init__(self, runs: Path, rows: Path, features: Sequence[str], numbers: int) -> None:
        self.missing = dict.fromkeys(features, 0)
        self._tally, self._rows = Tally(runs), rows
        self._writer: ipc.RecordBatchFileWriter | None = None
        self._cells: list[list[pa.Array | Cut]] = [[] for _ in features]
        self._numbers: list[list[np.ndarray]] = [[] for _ in range(numbers + 2)]
        self._nbytes = 0

    @property
    def blocks(self) -> int:
        """How many there are."""
        return self._tally.runs // max(len(self._cells), 1)

    def add(
        self, cells: Sequence[pa.Array | Cut], numbers: Sequence[np.ndarray], splits: np.ndarray, labels: np.ndarray
    ) -> None:
        """Take in rows: strings ``[rows]`` per feature, or values and offsets."""
        for held, one in zip(self._cells, cells, strict=True):
            held.append(one)
            self._nbytes += one[0].nbytes if isinstance(one, tuple) else one.nbytes
        for column, more in zip(self._numbers, (*numbers, splits, labels), strict=True):
            column.append(more)
            self._nbytes += more.nbytes
        if self._nbytes > BLOCK_BYTES:
            self._flush()

    def close(self) -> None:
        """Write the rest."""
        if self._numbers[-1] or self._writer is None:
            self._flush()
        self._tally.close()
        assert self._writer is not None
        self._writer.close()

    def _flush(self) -> None:
        *numbers, splits, labels = (np.concatenate(held) if held else np.zeros(0) for held in self._numbers)
        train = splits == 0
        arrays: list[pa.Array] = []
        for feature, held in zip(self.missing, self._cells, strict=True):
            if held and isinstance(held[0], tuple):
                arrays.append(self._bags([one for one in held if isinstance(one, tuple)], train))
            else:
                codes = self._tally.add([one for one in held if not isinstance(one, tuple)], train)
                self.missing[feature] += int((codes[train] < 0).sum())
                arrays.append(pa.array(codes))
        arrays += [pa.array(one) for one in (*numbers, splits, labels)]
        batch = pa.RecordBatch.from_arrays(arrays, names=[str(i) for i in range(len(arrays))])
        self._writer = self._writer or ipc.new_file(str(self._rows), batch.schema)
        self._writer.write_batch(batch)
        for cells in self._cells:
            cells.clear()
        for column in self._numbers:
            column.clear()
        self._nbytes = 0

    def _bags(self, held: Sequence[Cut], train: np.ndarray) -> pa.Array:
        lengths = np.concatenate([np.diff(offsets) for _, offsets in held])
        codes = self._tally.add([values for values, _ in held], np.repeat(train, lengths))
        return pa.LargeListArray.from_arrays(offsets_of(lengths), codes)


def read_blocks(runs: Path, rows: Path, features: int) -> Iterator[Block]:
    """The blocks of a part, mapped into memory."""
    words, opened = open_runs(runs), ipc.open_file(pa.memory_map(str(rows)))
    for i in range(opened.num_record_batches):
        batch = opened.get_batch(i)
        codes: list[np.ndarray | Bag] = [
            Bag(one.values.to_numpy(), one.offsets.to_numpy()) if pa.types.is_large_list(one.type) else one.to_numpy()
            for one in batch.columns[:features]
        ]
        *numbers, splits, labels = (one.to_numpy() for one in batch.columns[features:])
        yield Block(
            tuple(words.get_batch(i * features + f) for f in range(features)),
            tuple(codes),
            tuple(numbers),
            splits,
            labels,
        )
