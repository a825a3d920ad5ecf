"""Counting distinct values in bounded memory, exactly.

A :class:`Tally` writes what is distinct among some cells to its file as a *run*: the values with their counts, sorted
by hash. :func:`merge` adds runs up, one range of hashes after the other, so that no more than a range is in memory;
which values were counted in which run makes no difference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.ipc as ipc

from recsys_embed.data.text_hash import hash_text

RANGE_VALUES = 4_000_000
"""Values of one range of hashes, about."""

SCHEMA = pa.schema([("hash", pa.uint64()), ("value", pa.large_string()), ("count", pa.int64())])


class Tally:
    """A file of runs, under construction."""

    def __init__(self, path: Path) -> None:
        self._writer, self.runs = ipc.new_file(str(path), SCHEMA), 0

    def add(self, cells: Sequence[pa.Array], counted: np.ndarray | None = None) -> np.ndarray:
        """Write a run of the values in ``cells``, pieces of one column of strings.

        ``counted [n]`` bool says which cells count, by default all; a value in none of them has the count 0. Returns
        the place of every cell's value in the run, ``[n]`` int32, and −1 where the cell is missing.
        """
        encoded = pa.chunked_array(cells, pa.string()).dictionary_encode()
        words = encoded.chunk(encoded.num_chunks - 1).dictionary if encoded.num_chunks else pa.array([], pa.string())
        codes = np.empty(len(encoded), np.int32)
        begin = 0
        for piece in encoded.chunks:
            codes[begin : begin + len(piece)] = piece.indices.fill_null(len(words)).to_numpy()
            begin += len(piece)
        hashes = hash_text(words)
        order = np.argsort(hashes)
        places = np.empty(len(words) + 1, np.int32)
        places[order], places[-1] = np.arange(len(words), dtype=np.int32), -1
        codes = places[codes]
        counts = np.bincount((codes if counted is None else codes[counted]) + 1, minlength=len(words) + 1)[1:]
        values = words.cast(pa.large_string()).take(pa.array(order))
        self._writer.write_batch(pa.record_batch([hashes[order], values, counts.astype(np.int64)], schema=SCHEMA))
        self.runs += 1
        return codes

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()


def open_runs(path: Path) -> ipc.RecordBatchFileReader:
    """The runs of a file that is finished, mapped into memory."""
    return ipc.open_file(pa.memory_map(str(path)))


def merge(runs: Sequence[tuple[Path, int]]) -> Iterator[pa.Table]:
    """The sums of some runs (a file and the number of a run in it), as tables of value and count."""
    files = {path: open_runs(path) for path, _ in runs}
    batches = [files[path].get_batch(number) for path, number in runs]
    ranges = max(1, -(-sum(batch.num_rows for batch in batches) // RANGE_VALUES))
    edges = [int(2**64 * i / ranges) for i in range(1, ranges)]
    cuts = [
        [0, *np.searchsorted(batch.column(0).to_numpy(), np.array(edges, np.uint64)).tolist(), batch.num_rows]
        for batch in batches
    ]
    for i in range(ranges if batches else 0):
        parts = [batch.slice(c[i], c[i + 1] - c[i]) for batch, c in zip(batches, cuts, strict=True)]
        yield _sum([pa.Table.from_batches([part]) for part in parts])


def _sum(parts: Sequence[pa.Table]) -> pa.Table:
    if len(parts) == 1:
        return parts[0].select(["value", "count"])
    # Equal values have equal hashes and are neighbours after sorting; that equal hashes are of equal values is checked.
    whole = pa.concat_tables(parts).combine_chunks()
    hashes = whole["hash"].to_numpy()
    order = np.argsort(hashes, kind="stable")
    hashes = hashes[order]
    first = np.flatnonzero(np.concatenate([[True], hashes[1:] != hashes[:-1]])) if len(hashes) else np.zeros(0, np.intp)
    values = _whole(whole["value"])
    leaders = np.repeat(order[first], np.diff(np.append(first, len(order))))
    again = leaders != order
    if not pc.all(pc.equal(values.take(leaders[again]), values.take(order[again]))).as_py():
        sums = whole.group_by("value", use_threads=False).aggregate([("count", "sum")])
        return pa.table({"value": sums["value"], "count": sums["count_sum"]})
    counts = np.add.reduceat(whole["count"].to_numpy()[order], first) if len(first) else np.zeros(0, np.int64)
    return pa.table({"value": values.take(order[first]), "count": counts})


def _whole(column: pa.ChunkedArray) -> pa.Array:
    return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
