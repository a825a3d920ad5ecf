"""From a feature's values to ids, ranked by training frequency."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys_embed.errors import CheckpointError

_PENDING = 1_000_000


class Tally:
    """Counts the occurrences of each value, in memory proportional to the number of values."""

    def __init__(self) -> None:
        self.missing = 0
        self._parts: list[pa.Table] = []
        self._pending, self._limit = 0, _PENDING

    def add(self, values: pa.Array) -> None:
        """Take in strings; nulls count as missing."""
        self.missing += values.null_count
        counted = pc.value_counts(values.drop_null())
        self._parts.append(pa.table({"value": counted.field("values"), "count": counted.field("counts")}))
        self._pending += len(counted)
        if self._pending > self._limit:
            merged = self.table()
            self._parts, self._pending = [merged], merged.num_rows
            self._limit = max(_PENDING, 2 * merged.num_rows)

    def table(self) -> pa.Table:
        """Columns value and count, each value once, in no particular order."""
        if not self._parts:
            return pa.table({"value": pa.array([], pa.string()), "count": pa.array([], pa.int64())})
        sums = pa.concat_tables(self._parts).group_by("value", use_threads=False).aggregate([("count", "sum")])
        return pa.table({"value": sums["value"], "count": sums["count_sum"]})


class Vocabulary:
    """Values by id: 1 is the most frequent, ties in the order of their UTF-8 bytes, so that row order is no matter.

    Id 0 stands for what is missing, unseen in training or too rare. ``counts [cardinality]`` are training
    frequencies; ``counts[0]`` adds up the missing and the rare.
    """

    def __init__(self, values: pa.Array, counts: np.ndarray) -> None:
        self.values, self.counts = values, counts
        self._index: dict[str, int] | None = None

    @classmethod
    def of(cls, tally: Tally, min_count: int = 1) -> Vocabulary:
        """The vocabulary of all values that were counted at least ``min_count`` times."""
        table = tally.table().sort_by([("count", "descending"), ("value", "ascending")]).combine_chunks()
        counts = table["count"].to_numpy()
        kept = int((counts >= min_count).sum())
        values = _whole(table["value"].slice(0, kept))
        first = tally.missing + int(counts[kept:].sum())
        return cls(values, np.concatenate([[first], counts[:kept]]).astype(np.int64))

    @property
    def cardinality(self) -> int:
        """The number of ids, 0 included."""
        return len(self.values) + 1

    def encode(self, values: pa.Array) -> np.ndarray:
        """Ids ``[rows]`` int32 of strings; 0 for null and for what is not in the vocabulary."""
        if 8 * len(values) < len(self.values):  # Arrow builds its table anew at each call: not for a few rows
            if self._index is None:
                self._index = {value: i + 1 for i, value in enumerate(self.values.to_pylist())}
            find = self._index.get
            return np.array([find(value, 0) for value in values.to_pylist()], np.int32)
        found = pc.index_in(values, value_set=self.values, skip_nulls=True).fill_null(-1)
        return np.asarray(found.to_numpy(zero_copy_only=False) + 1, np.int32)

    def save(self, path: Path) -> None:
        """A Parquet file of columns value and count whose row number is the id."""
        table = pa.table({"value": pa.concat_arrays([pa.nulls(1, pa.string()), self.values]), "count": self.counts})
        pq.write_table(table, path, write_page_checksum=True)

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        """Read what :meth:`save` wrote.

        Raises:
            CheckpointError: the file is missing or damaged.
        """
        try:
            table = pq.read_table(path, page_checksum_verification=True)
            return cls(_whole(table["value"].slice(1)).cast(pa.string()), table["count"].to_numpy())
        except (pa.ArrowException, OSError, KeyError, ValueError) as error:
            raise CheckpointError(f"{path}: cannot be read: {error}", file=str(path)) from error


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
