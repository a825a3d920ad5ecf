"""From a feature's values to ids, ranked by training frequency."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import xxhash

from recsys_embed.data.checked import read_checked
from recsys_embed.data.text_hash import FEW, hash_one, hash_text

LARGEST = 2**31 - 1
"""The most ids that a vocabulary can have: they are int32."""

_NARROW = 2**31 - 1  # bytes of text that Arrow's string type can hold


class Vocabulary:
    """Values by id: 1 is the most frequent, ties in the order of their UTF-8 bytes, so that row order is no matter.

    Id 0 stands for what is missing, unseen in training or too rare. ``counts [cardinality]`` are training
    frequencies; ``counts[0]`` adds up the missing and the rare.

    Later nights append values, and leave *holes*: a null is an id whose value was taken away, and which no value has
    until another is put there. The counts of the ids it was born with stay as they were at birth, those of later ones
    are what their values had when they got them.
    """

    def __init__(self, values: pa.Array, counts: np.ndarray) -> None:
        self.values, self.counts = values, counts

    @classmethod
    def of(
        cls, counted: Iterable[pa.Table], missing: int = 0, *, min_count: int = 1, max_size: int | None = None
    ) -> Vocabulary:
        """The vocabulary of the values that were counted at least ``min_count`` times, ``max_size`` of them at most.

        ``counted`` are tables of value and count, in which no value is twice.
        """
        total, kept = 0, pa.table({"value": pa.array([], pa.large_string()), "count": pa.array([], pa.int64())})
        for table in counted:
            total += int(pc.sum(table["count"]).as_py() or 0)
            kept = pa.concat_tables([kept, table.filter(pc.greater_equal(table["count"], min_count))])
            if max_size is not None and len(kept) > 2 * max_size:
                kept = _ranked(kept).slice(0, max_size).combine_chunks()
        kept = _ranked(kept).slice(0, max_size)
        counts = kept["count"].to_numpy()
        values = narrowed(kept["value"])
        return cls(values, np.concatenate([[missing + total - counts.sum()], counts]).astype(np.int64))

    @property
    def cardinality(self) -> int:
        """The number of ids, 0 and holes included."""
        return len(self.values) + 1

    @property
    def known(self) -> np.ndarray:
        """Which ids have a value, ``[cardinality]`` bool; 0 has none."""
        return np.append(False, self.values.is_valid().to_numpy(zero_copy_only=False))

    def encode(self, values: pa.Array) -> np.ndarray:
        """Ids ``[rows]`` int32 of strings; 0 for null and for what is not in the vocabulary."""
        if len(values) <= FEW:
            return np.array([self._id(value) for value in values.to_pylist()], np.int32)
        cells = values.dictionary_encode()
        ids = np.append(self.ids(cells.dictionary), np.int32(0))
        return np.asarray(ids[cells.indices.fill_null(-1).to_numpy(zero_copy_only=False)])

    def ids(self, words: pa.Array, sought: np.ndarray | None = None) -> np.ndarray:
        """Ids ``[n]`` int32 of distinct strings; fastest in the order of ``sought``, their hashes where known."""
        ids = np.zeros(len(words), np.int32)
        hashes, order, seed = self._index
        if len(hashes) and len(words):
            if sought is None or seed:
                sought = hash_text(words, seed)
            places = np.searchsorted(hashes, sought)
            hit = np.flatnonzero(hashes[np.minimum(places, len(hashes) - 1)] == sought)
            found = order[places[hit]]
            same = pc.equal(self.values.take(found).cast(words.type), words.take(hit)).to_numpy(zero_copy_only=False)
            ids[hit] = np.where(same, found + 1, 0)
        return ids

    def _id(self, value: str | None) -> int:
        hashes, order, seed = self._index
        if value is None or not len(hashes):
            return 0
        sought = hash_one(value, seed)
        place = int(hashes.searchsorted(np.uint64(sought)))
        if place == len(hashes) or int(hashes[place]) != sought:
            return 0
        found = int(order[place])
        return found + 1 if self.values[found].as_py() == value else 0

    def ids_in(self, other: Vocabulary) -> np.ndarray:
        """The id that each of its ids' values has in another vocabulary, ``[cardinality]`` int32; 0 where it has none,
        as holes have none."""
        return np.append(np.int32(0), other.encode(self.values))

    @cached_property
    def _index(self) -> tuple[np.ndarray, np.ndarray, int]:
        """Hashes in rising order ``[n]`` uint64, the value's place of each ``[n]`` int32, and their seed: the first by
        which no two are equal. Holes are left out."""
        seed, values, places = 0, self.values.drop_null(), np.flatnonzero(self.known) - 1
        while True:
            hashes = hash_text(values, seed)
            order = np.argsort(hashes)
            hashes = hashes[order]
            if not (hashes[1:] == hashes[:-1]).any():
                return hashes, places[order].astype(np.int32), seed
            seed += 1

    def digest(self) -> bytes:
        """A checksum of values and counts."""
        digest = xxhash.xxh3_128()
        values = pa.concat_arrays([self.values]).cast(pa.large_string())  # its own buffers, from their beginning
        if values.null_count:
            digest.update(np.packbits(self.known).data)
            values = values.fill_null("")
        for buffer in values.buffers()[1:]:
            digest.update(b"" if buffer is None else memoryview(buffer))
        digest.update(np.ascontiguousarray(self.counts).data)
        return digest.digest()

    def save(self, path: Path) -> None:
        """A Parquet file of columns value and count whose row number is the id."""
        values = pa.concat_arrays([pa.nulls(1, self.values.type), self.values])
        pq.write_table(pa.table({"value": values, "count": self.counts}), path, write_page_checksum=True)

    @classmethod
    def load(cls, path: Path) -> Vocabulary:
        """Read what :meth:`save` wrote.

        Raises:
            CheckpointError: the file is missing or damaged.
        """
        table = read_checked(path, ["value", "count"])
        return cls(narrowed(table["value"].slice(1)), table["count"].to_numpy())


def _ranked(table: pa.Table) -> pa.Table:
    return table.sort_by([("count", "descending"), ("value", "ascending")])


def narrowed(column: pa.ChunkedArray) -> pa.Array:
    """One array, of Arrow's string type where its text fits into it."""
    text = pc.sum(pc.binary_length(column)).as_py() or 0
    kind = pa.string() if text <= _NARROW else pa.large_string()
    column = column.cast(pa.large_string())
    return (pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], pa.large_string())).cast(kind)
