"""How often ids occur, where nobody can list them: a count-min sketch (Cormode and Muthukrishnan, 2005).

Four rows of 2¹⁷ counters; an id adds to one of each row, by hashes of its own, and its estimate is the least of the
four. It is never below the count. It is above it by more than e / 2¹⁷ of all occurrences (21 of a million) with a
chance of e⁻⁴ (1.8 %) at most. The sketch of some rows and that of others add up to the sketch of all, in any order, and
it takes 4 MiB however many ids there are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys_embed.data.checked import read_checked
from recsys_embed.data.text_hash import mix64
from recsys_embed.seeds import seed_of

WIDTH_BITS, DEPTH = 17, 4
WIDTH = 1 << WIDTH_BITS
_SEEDS = [np.uint64(seed_of("count-min", row) % 2**64) for row in range(DEPTH)]


class FrequencySketch:
    """Counts of ids, any 64-bit integers; ``counters [DEPTH, WIDTH]`` int64."""

    def __init__(self, counters: np.ndarray | None = None) -> None:
        self.counters = np.zeros((DEPTH, WIDTH), np.int64) if counters is None else counters

    def add(self, ids: np.ndarray, counts: np.ndarray | int = 1) -> None:
        """Count ids ``[n]`` int64, each once or ``counts [n]`` times."""
        for row, places in zip(self.counters, self._places(ids), strict=True):
            np.add.at(row, places, counts)

    def estimate(self, ids: np.ndarray) -> np.ndarray:
        """Counts ``[n]`` int64, or more; 0 is exact."""
        found = [row[places] for row, places in zip(self.counters, self._places(ids), strict=True)]
        return np.asarray(np.minimum.reduce(found))

    @property
    def occurrences(self) -> int:
        """All that was counted."""
        return int(self.counters[0].sum())

    @property
    def error(self) -> float:
        """What an estimate exceeds the count by with a chance of e⁻⁴ at most."""
        return math.e / WIDTH * self.occurrences

    @property
    def blindness(self) -> float:
        """The chance that an id that was never counted has an estimate above 0."""
        return float(np.prod((self.counters > 0).mean(1)))

    def save(self, path: Path) -> None:
        """A Parquet file with a column for each row of counters."""
        columns = {str(place): row for place, row in enumerate(self.counters)}
        pq.write_table(pa.table(columns), path, compression="zstd", write_page_checksum=True)

    @classmethod
    def load(cls, path: Path) -> FrequencySketch:
        """Read what :meth:`save` wrote.

        Raises:
            CheckpointError: the file is missing or damaged.
        """
        return cls(np.stack([column.to_numpy() for column in read_checked(path).columns]))

    @staticmethod
    def _places(ids: np.ndarray) -> list[np.ndarray]:
        keys = np.ascontiguousarray(ids, np.int64).view(np.uint64)
        return [(mix64(keys + seed) >> np.uint64(64 - WIDTH_BITS)).astype(np.intp) for seed in _SEEDS]


def sketch_file(place: int) -> str:
    """The name of the file of a hashed vocabulary's sketch, at a place in their order."""
    return f"sketch-{place}.parquet"


def described(folder: Path, names: Iterable[str]) -> dict[str, dict[str, float]]:
    """How much the saved sketches know, in plain values by name: ``occurrences`` in training, the ``error`` of a count,
    and the share of never-seen ids that are told from seen ones, ``unseen_found``."""
    known: dict[str, dict[str, float]] = {}
    for place, name in enumerate(names):
        one = FrequencySketch.load(folder / sketch_file(place))
        known[name] = {"occurrences": one.occurrences, "error": one.error, "unseen_found": 1 - one.blindness}
    return known
