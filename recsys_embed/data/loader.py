"""Rows of a split as batches: in their order or shuffled, from any batch on, and a rank's share of each.

The rows are read in runs, and never mapped for that: what is held does not grow with them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np

from recsys_embed.data.batches import Batch, cut
from recsys_embed.data.columns import Columns
from recsys_embed.data.order import BLOCK_ROWS, BlockShuffle
from recsys_embed.data.window import Window
from recsys_embed.share import WHOLE, Share

_NUMBERS = 1 << 17  # gathered at once: so many stay in the cache, and a batch is not too few for steps of Python


class Rows(Protocol):
    """Rows of a split, wherever they lie. ``nbytes``: of all of them."""

    @property
    def nbytes(self) -> int: ...

    def __len__(self) -> int: ...

    def read(self, first: int, last: int) -> Columns:
        """Rows ``first`` to ``last``, of which nothing stays in memory when they are no longer held."""


class _Held(Protocol):
    def take(self, rows: np.ndarray) -> Columns: ...


def batches(
    rows: Rows,
    batch_size: int,
    shuffle_seed: int | None = None,
    start: int = 0,
    share: Share = WHOLE,
    memory: int | None = None,
) -> Iterator[Batch]:
    """All rows once, in file order or in an order that the seed fixes; the last batch may be short.

    Shuffled are all rows as a whole where they take at most ``memory`` bytes, or that is None; otherwise by blocks
    (:mod:`~recsys_embed.data.order`). Either way the rows that are permuted are held, without those of other ranks.

    The first ``start`` batches are left out; windows of nothing else are not read. With a ``share``, that piece of
    every batch: as many batches, of which some may be empty.
    """
    if not len(rows):
        return
    numbers = max(1, rows.nbytes // 4 // len(rows)) * batch_size  # of a batch
    many, first = max(1, _NUMBERS // numbers), start * batch_size
    if shuffle_seed is None:
        for part in _read(rows, [(first, len(rows))], many * batch_size):
            yield from _drawn(part, np.arange(len(part)), batch_size, 0, share, many)
        return
    shuffle = BlockShuffle.within(memory, len(rows), rows.nbytes, batch_size)
    window = Window(min(-(-batch_size // share.count) * shuffle.window // batch_size, len(rows)))
    for number in range(first // shuffle.window, shuffle.windows):
        parts = _read(rows, shuffle.spans(shuffle_seed, number), BLOCK_ROWS)
        order = shuffle.order(shuffle_seed, number)
        if share != WHOLE:
            parts, order = _own(parts, order, batch_size, share)
        window.fill(parts)
        yield from _drawn(window, order, batch_size, max(first - number * shuffle.window, 0), share, many)


def _read(rows: Rows, spans: Iterable[tuple[int, int]], at_once: int) -> Iterator[Columns]:
    for first, last in spans:
        for begin in range(first, last, at_once):
            yield rows.read(begin, min(begin + at_once, last))


def _own(
    parts: Iterator[Columns], order: np.ndarray, batch_size: int, share: Share
) -> tuple[Iterator[Columns], np.ndarray]:
    """Those of the rows that a share has part in, and the order of all by their place among these, where they are."""
    own = np.zeros(len(order), bool)
    for _, mine in _pieces(order, batch_size, 0, share, len(order)):
        own[mine] = True
    places = np.cumsum(own, dtype=order.dtype) - 1

    def taken() -> Iterator[Columns]:
        at = 0
        for part in parts:
            yield part.take(np.flatnonzero(own[at : at + len(part)]))
            at += len(part)

    return taken(), places[order]


def _drawn(rows: _Held, order: np.ndarray, batch_size: int, first: int, share: Share, at_once: int) -> Iterator[Batch]:
    """Batches of the rows from number ``first`` of the order on; so many are gathered at once."""
    for count, mine in _pieces(order, batch_size, first, share, at_once):
        yield from cut(rows.take(mine.astype(np.intp)), count)


def _pieces(
    order: np.ndarray, batch_size: int, first: int, share: Share, at_once: int
) -> Iterator[tuple[int, np.ndarray]]:
    """How many batches, and the share's rows in them."""
    whole = len(order) - len(order) % batch_size
    for begin in range(first, whole, at_once * batch_size):
        taken = order[begin : min(begin + at_once * batch_size, whole)].reshape(-1, batch_size)
        yield len(taken), taken[:, slice(*share.of(batch_size))].reshape(-1)
    if max(whole, first) < len(order):
        yield 1, order[whole:][slice(*share.of(len(order) - whole))]
