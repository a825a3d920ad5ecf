"""What counting leaves for encoding, so that raw cells are read and parsed once.

A part's rows are kept in blocks: every feature's cells as places among the block's own distinct values (a run of the
part's :class:`~recsys_embed.data.tally.Tally`), numbers, splits and labels. Each column is an array in numpy's format,
one after the other, in as few bytes a number as hold it exactly: half of what is written, and read again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa

from recsys_embed.data.bags import Bag, offsets_of
from recsys_embed.data.tally import Tally, open_runs

BLOCK_BYTES = 128 << 20
"""Bytes of cells, as Arrow holds them, that are held before they become a block: those of a part of a file mostly."""

Cut = tuple[pa.Array, np.ndarray]
"""Cells of a multi-valued feature: values ``[N]`` and offsets ``[rows + 1]``."""


@dataclass(frozen=True)
class Block:
    """Rows of a part. ``words [F]`` are runs of hash, value and count; ``codes [F]`` the places in them, ``[rows]``
    int32 (−1: missing) or a bag; ``numbers [n]`` float64, then weights where there are any; ``splits`` int8
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
        rows.write_bytes(b"")
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
        if self._numbers[-1]:
            self._flush()
        self._tally.close()

    def _flush(self) -> None:
        *numbers, splits, labels = (np.concatenate(held) for held in self._numbers)
        train = splits == 0
        with open(self._rows, "ab") as file:
            for feature, held in zip(self.missing, self._cells, strict=True):
                if isinstance(held[0], tuple):
                    self._bags(file, [one for one in held if isinstance(one, tuple)], train)
                else:
                    codes = self._tally.add([one for one in held if not isinstance(one, tuple)], train)
                    self.missing[feature] += int((codes[train] < 0).sum())
                    _write(file, codes)
            for column in (*numbers, splits, labels):
                _write(file, column)
        for cells in self._cells:
            cells.clear()
        for pieces in self._numbers:
            pieces.clear()
        self._nbytes = 0

    def _bags(self, file: IO[bytes], held: Sequence[Cut], train: np.ndarray) -> None:
        lengths = np.concatenate([np.diff(offsets) for _, offsets in held])
        _write(file, self._tally.add([values for values, _ in held], np.repeat(train, lengths)))
        _write(file, lengths)


def _write(file: IO[bytes], column: np.ndarray) -> None:
    column = np.ascontiguousarray(_narrowed(column))
    np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(column))
    file.write(column.data)  # numpy's own way loses what the disk said


def _narrowed(column: np.ndarray) -> np.ndarray:
    """The same numbers, of a narrower type where that holds them all."""
    if column.dtype == np.float64:
        with np.errstate(over="ignore"):
            single = column.astype(np.float32)
        return single if np.array_equal(single.astype(np.float64).view(np.int64), column.view(np.int64)) else column
    if column.dtype.kind == "i" and len(column):
        return column.astype(np.min_scalar_type(-1 - max(int(column.max()), 0)))  # signed: the least is -1
    return column


def read_blocks(runs: Path, rows: Path, bags: Sequence[bool], numbers: int) -> Iterator[Block]:
    """The blocks of a part, one in memory at a time; ``bags [F]`` are the features that are multi-valued, ``numbers``
    the columns of numbers, weights included."""
    words = open_runs(runs)
    with open(rows, "rb") as file:

        def read(kind: type[np.generic]) -> np.ndarray:
            column: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
            return column.astype(kind, copy=False)

        for first in range(0, words.num_record_batches, len(bags)):
            yield Block(
                tuple(words.get_batch(first + f) for f in range(len(bags))),
                tuple(Bag(read(np.int32), offsets_of(read(np.int64))) if bag else read(np.int32) for bag in bags),
                tuple(read(np.float64) for _ in range(numbers)),
                read(np.int8),
                read(np.float32),
            )
