"""Rows that cannot be used, left out and counted: ``data.on_bad_rows = "skip"``.

A row is refused for what would be an error otherwise, by the same code. What is not the fault of a row stays an error:
a file that is cut short, a column that is missing, a split without rows. A row counts once, for the first reason found:
how it is written, then split, label, features and numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from recsys_embed.data.chunks import Chunk
from recsys_embed.errors import DataError

Check = tuple[str, Callable[[Chunk], object]]
"""A column, and a function of its cells alone that raises DataError for the first that is wrong."""


@dataclass
class Skipped:
    """How many rows were left out, by column and reason, each with its first row."""

    reasons: dict[tuple[str | None, str], dict[str, Any]] = field(default_factory=dict)

    def add(self, error: DataError) -> None:
        """Count a row."""
        self._add(
            {
                "column": error.column,
                "reason": error.reason,
                "rows": 1,
                "file": error.file,
                "row": error.row,
                "value": None if error.value is None else str(error.value)[:80],
            }
        )

    def merge(self, tree: Sequence[dict[str, Any]]) -> None:
        """Add what another, of later rows, counted."""
        for one in tree:
            self._add(dict(one))

    def tree(self) -> list[dict[str, Any]]:
        """As JSON, the most frequent reason first."""
        return sorted(self.reasons.values(), key=lambda one: -int(one["rows"]))

    @property
    def rows(self) -> int:
        """All of them."""
        return sum(one["rows"] for one in self.reasons.values())

    def _add(self, one: dict[str, Any]) -> None:
        known = self.reasons.setdefault((one["column"], one["reason"]), one)
        if known is not one:
            known["rows"] += one["rows"]


def left_out(schema: dict[str, Any]) -> list[str]:
    """What a data set has not of its input, in sentences."""
    dropped, skipped = schema["dropped"], schema["skipped"]
    out = []
    if dropped["rows"]:
        values = ", ".join(f"{value!r} {count:,}" for value, count in dropped["values"].items())
        out.append(f"{_rows(dropped['rows'])} dropped for a label that is neither positive nor negative: {values}")
    for one in skipped["reasons"]:
        first = DataError("first", file=one["file"], row=one["row"], value=one["value"])
        column = "" if one["column"] is None else f"column {one['column']!r}: "
        out.append(f"{_rows(one['rows'])} skipped: {column}{one['reason']} ({first})")
    return out


def _rows(count: int) -> str:
    return f"{count:,} row" if count == 1 else f"{count:,} rows"


def screen(chunk: Chunk, checks: Sequence[Check], skipped: Skipped) -> tuple[Chunk, np.ndarray | None] | None:
    """The chunk, and which of its rows are bad: ``[rows]`` bool, or None where none is. These hold the cells of another
    row instead, so that nothing fails for them; None where there is no other."""
    found: dict[int, DataError] = {}
    for known in chunk.refused:
        if known.row is not None and known.row < chunk.first_row + len(chunk):
            found.setdefault(known.row - chunk.first_row, known)
    clean = _without(chunk, list(found))
    for column, check in checks:
        if clean is None:
            break
        # A row that is bad already holds what may be another row's fault.
        wrong = {index: error for index, error in refused(clean, column, check) if index not in found}
        found.update(wrong)
        if wrong:
            clean = _without(chunk, list(found))
    for index in sorted(found):
        skipped.add(found[index])
    if clean is None:
        return None
    bad = np.zeros(len(chunk), bool)
    bad[list(found)] = True
    return clean, bad if found else None


def refused(chunk: Chunk, column: str, check: Callable[[Chunk], object]) -> Iterator[tuple[int, DataError]]:
    """The indices of all rows that a check refuses, with its error for each.

    Raises:
        DataError: the check refuses the column as a whole.
    """
    try:
        check(chunk)
        return
    except DataError as error:
        if error.row is None:
            raise
    cells = chunk.cells(column).dictionary_encode()  # each value is judged once
    words = pa.concat_arrays([cells.dictionary, pa.nulls(1, cells.dictionary.type)])
    wrong = dict(_halved(replace(chunk, table=pa.table({column: words}), first_row=0), check))
    codes = cells.indices.fill_null(len(words) - 1).to_numpy(zero_copy_only=False)
    for index in np.flatnonzero(np.isin(codes, list(wrong))).tolist():
        one, row = wrong[int(codes[index])], chunk.first_row + index
        yield index, DataError(one.reason, file=chunk.file, column=one.column, row=row, value=one.value)


def _halved(chunk: Chunk, check: Callable[[Chunk], object]) -> Iterator[tuple[int, DataError]]:
    try:
        check(chunk)
    except DataError as error:
        if len(chunk) == 1:
            yield chunk.first_row, error
            return
        middle = len(chunk) // 2
        yield from _halved(replace(chunk, table=chunk.table.slice(0, middle)), check)
        yield from _halved(replace(chunk, table=chunk.table.slice(middle), first_row=chunk.first_row + middle), check)


def _without(chunk: Chunk, bad: list[int]) -> Chunk | None:
    """The chunk with the cells of a row that is not bad in all that are."""
    if not bad:
        return chunk
    rows = np.arange(len(chunk))
    good = np.delete(rows, bad)
    if not len(good):
        return None
    rows[bad] = good[0]
    return replace(chunk, table=chunk.table.take(rows))
