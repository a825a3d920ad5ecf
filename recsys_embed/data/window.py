"""Some runs of rows, held in memory row by row: a row taken out of many is near the cache once, not once a column.

Shapes: W rows, C columns of four bytes: ids of single-valued features, two columns for a hash, then numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from recsys_embed.data.bags import Bag
from recsys_embed.data.columns import Columns

_AT_ONCE = 1024  # rows: they stay in the cache while their columns are written side by side


class Window:
    """Room for ``rows`` rows, filled again and again."""

    def __init__(self, rows: int) -> None:
        self._rows = rows
        self._words = np.empty((0, 0), np.int32)  # [W, C]
        self._bags: list[_Bags] = []
        self._features: list[slice | None] = []  # the columns of each feature; None is a bag's
        self._weighted = False

    def fill(self, parts: Iterable[Columns]) -> None:
        """Hold these rows, in the place of the ones before."""
        at = 0
        for part in parts:
            if not self._words.size:
                self._make(part)
            singles = [ids for ids in part.ids if not isinstance(ids, Bag)]
            columns = [column.view(np.int32).reshape(-1, column.itemsize // 4) for column in (*singles, *part.numbers)]
            words = [words for column in columns for words in column.T]
            for begin in range(0, len(part), _AT_ONCE):
                rows = self._words[at + begin : at + min(begin + _AT_ONCE, len(part))]
                for place, column in enumerate(words):
                    rows[:, place] = column[begin : begin + _AT_ONCE]
            for held, bag in zip(self._bags, (ids for ids in part.ids if isinstance(ids, Bag)), strict=True):
                held.put(at, bag)
            at += len(part)

    def take(self, rows: np.ndarray) -> Columns:
        """Some of the rows, in the order given."""
        words = self._words.take(rows, axis=0)
        bags = iter(self._bags)
        ids = tuple(next(bags).bag.take(rows) if place is None else _ids(words[:, place]) for place in self._features)
        first = max((place.stop for place in self._features if place is not None), default=0)
        numbers = tuple(words[:, place].view(np.float32) for place in range(first, words.shape[1]))
        return Columns.of(ids, numbers, weighted=self._weighted)

    def _make(self, part: Columns) -> None:
        self._bags = [_Bags(self._rows, ids.values.dtype) for ids in part.ids if isinstance(ids, Bag)]
        self._features, width = [], 0
        for ids in part.ids:
            words = 0 if isinstance(ids, Bag) else ids.itemsize // 4
            self._features.append(slice(width, width + words) if words else None)
            width += words
        self._weighted = part.weight is not None
        self._words = np.empty((self._rows, width + len(part.numbers)), np.int32)


def _ids(words: np.ndarray) -> np.ndarray:
    """Of one or two words: int32, or the int64 of a hash."""
    return np.ascontiguousarray(words).view(np.int64)[:, 0] if words.shape[1] == 2 else words[:, 0]


class _Bags:
    """The bags of a feature; room for their values is made as it is needed."""

    def __init__(self, rows: int, kind: np.dtype[Any]) -> None:
        self.bag = Bag(np.empty(0, kind), np.zeros(rows + 1, np.int64))

    def put(self, at: int, part: Bag) -> None:
        """Hold bags as rows ``at``, ``at + 1``, …; those before are held already."""
        values, offsets = self.bag.values, self.bag.offsets
        begin = offsets[at] if at else 0
        end = begin + len(part.values)
        if end > len(values):
            values = np.empty(max(end, len(values) * 5 // 4), values.dtype)
            values[:begin] = self.bag.values[:begin]
            self.bag = Bag(values, offsets)
        values[begin:end] = part.values
        offsets[at + 1 : at + 1 + len(part)] = part.offsets[1:] + begin
