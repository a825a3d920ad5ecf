"""The most frequent values of a column, in bounded memory."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

CAPACITY = 1_000
LONGEST = 200  # characters of a value that are kept


class Frequent:
    """Misra and Gries' counters, merged a chunk at a time (Agarwal et al., "Mergeable summaries", PODS 2012).

    A count is too small by at most :attr:`lost`, which is at most the number of rows over the capacity: no value with
    more rows than that is missed.
    """

    def __init__(self) -> None:
        self.lost = 0
        self._hashes, self._counts = np.zeros(0, np.uint64), np.zeros(0, np.int64)
        self._texts: list[str] = []

    def add(self, hashes: np.ndarray, counts: np.ndarray, values: pa.Array) -> None:
        """Take in different values ``[n]``, with their hashes and rows."""
        merged, inverse = np.unique(np.concatenate([self._hashes, hashes]), return_inverse=True)
        totals = np.zeros(len(merged), np.int64)
        np.add.at(totals, inverse, np.concatenate([self._counts, counts]))
        if len(merged) > CAPACITY:
            least = int(np.partition(totals, len(totals) - CAPACITY - 1)[len(totals) - CAPACITY - 1])
            totals -= least
            self.lost += least
        known = dict(zip(inverse[: len(self._hashes)].tolist(), self._texts, strict=True))
        kept = np.flatnonzero(totals > 0)
        where = np.zeros(len(merged), np.int64)
        where[inverse[len(self._hashes) :]] = np.arange(len(values))
        new = [place for place in kept.tolist() if place not in known]
        texts = pc.utf8_slice_codeunits(values.take(pa.array(where[new])), 0, LONGEST).to_pylist()
        known |= dict(zip(new, texts, strict=True))
        self._hashes, self._counts = merged[kept], totals[kept]
        self._texts = [known[place] for place in kept.tolist()]

    def values(self) -> list[tuple[int, str, int]]:
        """Hash, text and count (at least), by falling count, then by text."""
        return sorted(
            zip(self._hashes.tolist(), self._texts, self._counts.tolist(), strict=True),
            key=lambda one: (-one[2], one[1]),
        )
