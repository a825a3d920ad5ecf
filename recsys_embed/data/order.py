"""The order in which an epoch reads the rows of a split: every row once, as a function of the seed and the place.

A split that fits in memory is permuted as a whole. A larger one is shuffled by blocks: it is cut into runs of
neighbouring rows, the runs are put in a random order, that order is divided into windows of as many rows as memory
holds, and the rows of a window are permuted. So a row can come anywhere in an epoch, and the rows of a window are a
sample of at least 16 runs; but neighbours in the file come in one window, unless one of the cuts is between them. The
cuts are at other rows for every seed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

BLOCK_ROWS = 1 << 16
"""Rows of a block at most: a quarter of a megabyte of each column are read at once."""

LEAST_BLOCKS = 16
"""Blocks that a window is a sample of, at least."""

ORDER_BYTES = 4
"""Of a row's place in the order of its window."""


_CUTS = 2**63  # a stream of its own, beside those of the windows


@dataclass(frozen=True)
class BlockShuffle:
    """``rows`` rows in runs of ``block``, read in windows of ``window`` rows, which are a whole number of batches.

    The first and the last run are shorter, and the last window may be.
    """

    rows: int
    block: int
    window: int

    @classmethod
    def within(cls, memory: int | None, rows: int, bytes_: int, batch_size: int) -> BlockShuffle:
        """For ``rows`` rows of ``bytes_`` bytes together: one window where that is at most ``memory``, or that is None.

        Otherwise windows of at most ``memory`` bytes, and of a batch at least, as equal as batches leave them.
        """
        if memory is None or bytes_ <= memory:
            return cls(rows, rows, math.ceil(rows / batch_size) * batch_size)
        most = max(1, int(memory / (bytes_ / rows + ORDER_BYTES)) // batch_size)  # batches of a window
        batches = math.ceil(rows / batch_size)
        window = math.ceil(batches / math.ceil(batches / most)) * batch_size
        return cls(rows, min(max(1, window // LEAST_BLOCKS), BLOCK_ROWS), window)

    @property
    def windows(self) -> int:
        """How many there are."""
        return math.ceil(self.rows / self.window)

    def spans(self, seed: int, window: int) -> list[tuple[int, int]]:
        """From which to which row the file is read for a window, in the order of the file."""
        if self.windows == 1:
            return [(0, self.rows)]
        draw = np.random.default_rng([seed, _CUTS])
        cuts = np.arange(int(draw.integers(self.block)) - self.block, self.rows + self.block, self.block)
        cuts = cuts.clip(0, self.rows)
        runs = draw.permutation(len(cuts) - 1)
        ends = np.cumsum(np.diff(cuts)[runs])  # in the order of the epoch
        begin, end = window * self.window, min((window + 1) * self.window, self.rows)
        found = []
        for place in range(np.searchsorted(ends, begin, "right"), np.searchsorted(ends, end) + 1):
            first, last = cuts[runs[place]], cuts[runs[place] + 1]
            start = ends[place] - (last - first)
            found.append((int(first + max(begin - start, 0)), int(last - max(ends[place] - end, 0))))
        return sorted(span for span in found if span[0] < span[1])

    def order(self, seed: int, window: int) -> np.ndarray:
        """The order of a window's rows, by their place in its spans one after the other: int32 where they fit."""
        count = min(self.window, self.rows - window * self.window)
        order = np.arange(count, dtype=np.int32 if count < 2**31 else np.int64)
        np.random.default_rng([seed, window] if window else seed).shuffle(order)
        return order
