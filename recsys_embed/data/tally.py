"""Counting distinct values in bounded memory, exactly.

A :class:`Tally` counts in memory. What grows beyond a limit goes to the disk as a *run*: its values with their counts,
sorted by hash. :func:`merge` adds runs up, one range of hashes after the other, so that no more than a range is in
memory; which values were counted in which run makes no difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc as ipc

from recsys_embed.data.text_hash import hash_text

RUN_BYTES = 96 << 20
"""Bytes of cells of one worker's tallies together, as Arrow holds them, before they are counted; where the distinct
values are more than half of that, they go to the disk."""

RANGE_VALUES = 4_000_000
"""Values of one range of hashes, about."""

SCHEMA = pa.schema([("hash", pa.uint64()), ("value", pa.large_string()), ("count", pa.int64())])


class Tally:
    """Counts the occurrences of each value, in memory proportional to the number of values.

    Cells are counted many at once: of a part of a file all, if there is room.
    """

    def __init__(self) -> None:
        self.missing = self.nbytes = 0
        self._cells: list[pa.Array] = []
        self._summed = pa.table({"value": pa.array([], pa.large_string()), "count": pa.array([], pa.int64())})

    def add(self, values: pa.Array) -> None:
        """Take in strings; nulls count as missing."""
        self.missing += values.null_count
        self._cells.append(values.drop_null())
        self.nbytes += self._cells[-1].nbytes

    def settle(self) -> None:
        """Count what came in."""
        if self._cells:
            counted = pc.value_counts(pa.chunked_array(self._cells))
            values = counted.field("values").cast(pa.large_string())
            table = pa.table({"value": values, "count": counted.field("counts")})
            self._summed = _sum([self._summed, table]) if len(self._summed) else table
        self._cells, self.nbytes = [], self._summed.nbytes

    def table(self) -> pa.Table:
        """Columns value and count, each value once, in no particular order."""
        self.settle()
        return self._summed

    def run(self) -> pa.RecordBatch:
        """All that was counted, as a run, and begin again."""
        table = self.table().combine_chunks()
        values = _whole(table["value"])
        hashes = hash_text(values)
        order = np.argsort(hashes, kind="stable")
        batch = pa.record_batch([hashes[order], values.take(order), _whole(table["count"]).take(order)], schema=SCHEMA)
        self._summed, self.nbytes = self._summed.slice(0, 0), 0
        return batch


class Tallies:
    """Tallies of several names, whose runs go to one file when together they exceed ``RUN_BYTES``."""

    def __init__(self, names: Sequence[str], path: Path) -> None:
        self.of = {name: Tally() for name in names}
        self.runs: dict[str, list[int]] = {name: [] for name in names}
        self._writer = ipc.new_file(str(path), SCHEMA)
        self._batches = 0

    def spill(self) -> None:
        """Write runs where memory asks for it."""
        if sum(tally.nbytes for tally in self.of.values()) > RUN_BYTES:
            for tally in self.of.values():
                tally.settle()
            if sum(tally.nbytes for tally in self.of.values()) > RUN_BYTES // 2:
                self._flush()

    def close(self) -> None:
        """Write the rest."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        for name, tally in self.of.items():
            self._writer.write_batch(tally.run())
            self.runs[name].append(self._batches)
            self._batches += 1


def merge(runs: Sequence[tuple[Path, int]]) -> Iterator[pa.Table]:
    """The sums of some runs (a file and the number of a batch in it), as tables of value and count."""
    batches = [ipc.open_file(pa.memory_map(str(path))).get_batch(number) for path, number in runs]
    ranges = max(1, -(-sum(batch.num_rows for batch in batches) // RANGE_VALUES))
    edges = [int(2**64 * i / ranges) for i in range(1, ranges)]
    cuts = [
        [0, *np.searchsorted(batch.column(0).to_numpy(), np.array(edges, np.uint64)).tolist(), batch.num_rows]
        for batch in batches
    ]
    for i in range(ranges):
        parts = [batch.slice(c[i], c[i + 1] - c[i]) for batch, c in zip(batches, cuts, strict=True)]
        yield _sum([pa.Table.from_batches([part]).select(["value", "count"]) for part in parts])


def _sum(parts: Sequence[pa.Table]) -> pa.Table:
    if len(parts) == 1:
        return parts[0]
    sums = pa.concat_tables(parts).group_by("value", use_threads=False).aggregate([("count", "sum")])
    return pa.table({"value": sums["value"], "count": sums["count_sum"]})


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
