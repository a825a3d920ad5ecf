"""What the nights have left of a vocabulary, beside its values: when each was seen, and which wait for an id.

Nights are counted from 0, on which the vocabulary was born; each day that continues it is a night more.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recsys_embed.data.checked import read_checked
from recsys_embed.data.vocabulary import Vocabulary, narrowed


@dataclass(frozen=True)
class Life:
    """Of each id, ``[cardinality]``: the night on which its value was ``admitted`` and the last on which it was
    ``seen``, int32, and the ``count`` of its occurrences in the training rows of all nights, int64.

    ``count[0]`` is that of all that has no id: together they are all cells that were ever counted. A hole has zeros.
    """

    admitted: np.ndarray
    seen: np.ndarray
    count: np.ndarray

    def save(self, path: Path) -> None:
        """A Parquet file whose row number is the id."""
        columns = {"admitted": self.admitted, "seen": self.seen, "count": self.count}
        pq.write_table(pa.table(columns), path, compression="zstd", write_page_checksum=True)

    @classmethod
    def load(cls, path: Path) -> Life:
        """Read what :meth:`save` wrote.

        Raises:
            CheckpointError: the file is missing or damaged.
        """
        table = read_checked(path, ["admitted", "seen", "count"])
        return cls(*(column.to_numpy() for column in table.columns))


@dataclass(frozen=True)
class Pending:
    """Values that wait for an id, with the ``counts [n]`` int64 of their occurrences so far; the most frequent first,
    ties in the order of their bytes."""

    values: pa.Array
    counts: np.ndarray

    def save(self, path: Path) -> None:
        """A Parquet file of columns value and count."""
        table = pa.table({"value": self.values, "count": self.counts})
        pq.write_table(table, path, compression="zstd", write_page_checksum=True)

    @classmethod
    def load(cls, path: Path) -> Pending:
        """Read what :meth:`save` wrote.

        Raises:
            CheckpointError: the file is missing or damaged.
        """
        table = read_checked(path, ["value", "count"])
        return cls(narrowed(table["value"]), table["count"].to_numpy())


@dataclass(frozen=True)
class History:
    """Of one vocabulary; ``born`` is the cardinality it had at first."""

    born: int
    life: Life
    pending: Pending

    @classmethod
    def birth(cls, vocabulary: Vocabulary) -> History:
        """That of a vocabulary before its first night."""
        counts, none = np.where(vocabulary.known, vocabulary.counts, 0), np.zeros(vocabulary.cardinality, np.int32)
        counts[0] = vocabulary.counts.sum() - counts.sum()
        return cls(vocabulary.cardinality, Life(none, none, counts), Pending(pa.array([], pa.string()), counts[:0]))

    def save(self, folder: Path, place: int) -> None:
        """Write two files, for the vocabulary at a place in the order of an encoder's; ``born`` is in neither."""
        self.life.save(folder / f"life-{place}.parquet")
        self.pending.save(folder / f"pending-{place}.parquet")

    @classmethod
    def load(cls, folder: Path, place: int, born: int) -> History:
        """Read what :meth:`save` wrote.

        Raises:
            CheckpointError: a file is missing or damaged.
        """
        life, pending = folder / f"life-{place}.parquet", folder / f"pending-{place}.parquet"
        return cls(born, Life.load(life), Pending.load(pending))
