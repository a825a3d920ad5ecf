"""Encoded rows, column by column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from recsys_embed.data.bags import Bag


@dataclass(frozen=True)
class Columns:
    """Encoded rows by column: per feature ids ``[rows]`` (int32; hashes int64) or a :class:`Bag`; dense columns, label
    and, where rows are weighted, weight float32."""

    ids: tuple[np.ndarray | Bag, ...]
    dense: tuple[np.ndarray, ...]
    label: np.ndarray
    weight: np.ndarray | None = None

    @classmethod
    def of(cls, ids: tuple[np.ndarray | Bag, ...], numbers: Sequence[np.ndarray], *, weighted: bool) -> Columns:
        """What has these :attr:`numbers`."""
        *dense, label = numbers[:-1] if weighted else numbers
        return cls(ids, tuple(dense), label, numbers[-1] if weighted else None)

    def __len__(self) -> int:
        return len(self.label)

    @property
    def numbers(self) -> tuple[np.ndarray, ...]:
        """The columns that are no ids, in the order of the file: dense, label, and weight where there is one."""
        return (*self.dense, self.label, *(() if self.weight is None else (self.weight,)))

    @property
    def nbytes(self) -> int:
        """Of all columns."""
        return sum(column.nbytes for column in (*self.ids, *self.numbers))

    def take(self, rows: np.ndarray) -> Columns:
        """Some of the rows, in the order given."""
        return Columns(
            tuple(ids.take(rows) for ids in self.ids),
            tuple(column.take(rows) for column in self.dense),
            self.label.take(rows),
            None if self.weight is None else self.weight.take(rows),
        )

    def read(self, first: int, last: int) -> Columns:
        """Rows ``first`` to ``last``, as views."""
        return Columns(
            tuple(ids.slice(first, last) if isinstance(ids, Bag) else ids[first:last] for ids in self.ids),
            tuple(column[first:last] for column in self.dense),
            self.label[first:last],
            None if self.weight is None else self.weight[first:last],
        )
