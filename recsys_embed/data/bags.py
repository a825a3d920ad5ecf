"""Multi-valued cells: a bag of any number of values per row."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


@dataclass(frozen=True)
class Bag:
    """Ids of a multi-valued feature: row i holds ``values[offsets[i]:offsets[i + 1]]``.

    ``values [N]`` int32 or, of hashes, int64; ``offsets [rows + 1]`` int64.
    """

    values: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def nbytes(self) -> int:
        """Of values and offsets."""
        return self.values.nbytes + self.offsets.nbytes

    def slice(self, first: int, last: int) -> Bag:
        """Rows ``first`` to ``last``; the values are a view."""
        begin, end = self.offsets[first], self.offsets[last]
        return Bag(self.values[begin:end], self.offsets[first : last + 1] - begin)

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """How many values each of some rows holds."""
        return np.asarray(self.offsets[rows + 1] - self.offsets[rows])

    def take(self, rows: np.ndarray) -> Bag:
        """Some of the rows, in the order given."""
        lengths = self.lengths(rows)
        return Bag(self.values[spans(self.offsets[rows], lengths)], offsets_of(lengths))


def split_cells(text: pa.Array, separator: str) -> tuple[pa.Array, np.ndarray]:
    """Cut cells into values: strings ``[N]`` and offsets ``[rows + 1]`` int64. Empty values are left out."""
    lists = pc.split_pattern(text.fill_null(""), separator)
    values, cuts = lists.flatten(), lists.offsets.to_numpy()
    kept = pc.not_equal(values, "")
    before = offsets_of(kept.to_numpy(zero_copy_only=False))
    return values.filter(kept), before[cuts - cuts[0]]


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    """Where bags of these lengths begin, and the end: ``[n + 1]`` int64."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def spans(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The positions start, start + 1, … of all bags, one after the other."""
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return np.asarray(np.repeat(starts - (ends - lengths), lengths) + np.arange(total))
