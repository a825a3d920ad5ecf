"""Rows of a CSV file that are refused one by one: of the wrong length, or not UTF-8."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pacsv

from recsys_embed.data.guarded import MARK
from recsys_embed.errors import DataError


class Ragged:
    """Rows that are refused. Arrow leaves those of the wrong length out, and reads ahead of the batches it gives."""

    def __init__(self, path: Path, first_row: int, refused: list[DataError], *, headed: bool) -> None:
        self._path, self._refused = str(path), refused
        self._before = first_row - (2 if headed else 1)  # Arrow counts from 1, and counts a header
        self._row = first_row  # of the next batch
        self._left_out: deque[tuple[int, DataError]] = deque()

    def __call__(self, found: pacsv.InvalidRow) -> str:
        message = f"has {found.actual_columns} fields instead of {found.expected_columns}"
        row = self._before + found.number
        self._left_out.append((row, DataError(message, file=self._path, row=row, value=_shown(found.text))))
        return "skip"

    @property
    def last(self) -> int | None:
        """The last row that Arrow left out, where none came after it."""
        return self._left_out[-1][0] if self._left_out else None

    def fill(self, batch: pa.RecordBatch, columns: Sequence[str]) -> pa.RecordBatch:
        """The batch with nulls in the places of what was left out before its last row; ``columns`` may be marked."""
        gaps: list[int] = []
        while self._left_out and self._left_out[0][0] - self._row - len(gaps) < batch.num_rows:
            row, error = self._left_out.popleft()
            gaps.append(row - self._row)
            self._refused.append(error)
        if gaps:
            there = np.ones(batch.num_rows + len(gaps), bool)
            there[gaps] = False
            batch = batch.take(pa.array(np.cumsum(there) - 1, mask=~there))
        for name in columns:
            marked = pc.match_substring(batch.column(name), MARK).fill_null(False)
            for index in np.flatnonzero(marked.to_numpy(zero_copy_only=False)).tolist():
                value = _shown(batch.column(name)[index].as_py())
                self._refused.append(
                    DataError("is not UTF-8 text", file=self._path, column=name, row=self._row + index, value=value)
                )
        self._row += batch.num_rows
        return batch


def _shown(text: str) -> str:
    return text.replace(MARK, "\ufffd")[:80]
