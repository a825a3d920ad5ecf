"""Values of a column, counted in bounded memory: all of them up to a limit, beyond it a random sample.

Kept are the values with the smallest 64-bit hashes (k minimum values: Bar-Yossef et al., "Counting distinct elements
in a data stream", 2002; Beyer et al., SIGMOD 2007). Which values these are does not depend on their order or frequency,
and the largest hash that is kept only ever falls: so a value that is kept at the end was kept from its first row on,
and what is counted of it is exact.
"""

from __future__ import annotations

import numpy as np

LIMIT = 65_536
FOLDS = 4


class Sample:
    """The ``limit`` values with the smallest hashes, in the order of their hashes.

    ``hashes [n]`` uint64; ``counts [n, FOLDS, labels]`` int64, rows by fold and label; ``rows [n]`` uint64, the sum of
    the hashes of the rows a value stands in, which is as good as the set of them; ``numbers [n]`` float64, what the
    value reads as, NaN where it is no number.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit, self.cut = limit, False
        self.hashes = np.zeros(0, np.uint64)
        self.counts = np.zeros((0, FOLDS, 1), np.int64)
        self.rows = np.zeros(0, np.uint64)
        self.numbers = np.zeros(0)

    @property
    def share(self) -> float:
        """The share of all values that is here, as the largest hash tells."""
        return (float(self.hashes[-1]) + 1) / 2.0**64 if self.cut else 1.0

    @property
    def distinct(self) -> int:
        """How many values there are: exact up to the limit, beyond it with a standard error of 1/√limit (0.4 %)."""
        return round((self.limit - 1) / self.share) if self.cut else len(self.hashes)

    @property
    def totals(self) -> np.ndarray:
        """Rows of each value, ``[n]`` int64."""
        return np.asarray(self.counts.sum((1, 2)))

    @property
    def once(self) -> float:
        """The share of the values that stand in one row."""
        return float((self.totals == 1).mean()) if len(self.hashes) else 0.0

    def add(self, hashes: np.ndarray, counts: np.ndarray, rows: np.ndarray, numbers: np.ndarray) -> None:
        """Take in different values, as the attributes describe them; there are as many labels as ever, or more."""
        if self.cut:
            near = hashes <= self.hashes[-1]
            hashes, counts, rows, numbers = hashes[near], counts[near], rows[near], numbers[near]
        wider = ((0, 0), (0, 0), (0, counts.shape[2] - self.counts.shape[2]))
        mine = np.pad(self.counts, wider) if wider[2][1] else self.counts
        places = np.searchsorted(self.hashes, hashes)
        known = places < len(self.hashes)
        known[known] = self.hashes[places[known]] == hashes[known]
        mine[places[known]] += counts[known]
        self.rows[places[known]] += rows[known]
        self.counts = mine
        if known.all():
            return
        new = ~known
        merged = np.concatenate([self.hashes, hashes[new]])
        self.cut = self.cut or len(merged) > self.limit
        order = np.argsort(merged, kind="stable")[: self.limit]
        self.hashes = merged[order]
        self.counts = np.concatenate([mine, counts[new]])[order]
        self.rows = np.concatenate([self.rows, rows[new]])[order]
        self.numbers = np.concatenate([self.numbers, numbers[new]])[order]
