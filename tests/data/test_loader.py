"""Blocks: every row once, in an order of seed and place alone, out of no more memory than was given."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import recsys_embed.data.loader as loader
import recsys_embed.data.order as order
from recsys_embed.data.batches import Batch
from recsys_embed.data.columns import Columns
from recsys_embed.data.loader import batches
from recsys_embed.data.order import BlockShuffle
from recsys_embed.data.window import Window
from recsys_embed.share import Share
from tests.data.test_batches import columns, one_by_one


def labels(found: list[Batch]) -> list[int]:
    """A row's label is its number."""
    return [int(x) for batch in found for x in batch.label]


@given(
    rows=st.integers(1, 120),
    size=st.integers(1, 25),
    block=st.integers(1, 50),
    room=st.floats(0, 1),
    kinds=st.sampled_from(["s", "m", "smms", "sSs", "sMSm"]),
    ranks=st.integers(1, 3),
    weighted=st.booleans(),
    seed=st.integers(0, 2**63),
    data=st.data(),
)
def test_every_row_once_from_any_batch_on_for_any_ranks(
    rows: int,
    size: int,
    block: int,
    room: float,
    kinds: str,
    ranks: int,
    weighted: bool,
    seed: int,
    data: st.DataObject,
) -> None:
    source = columns(rows, kinds)
    source = replace(source, weight=2 * source.label if weighted else None)
    memory = int(room * (source.nbytes - 1))
    with mock.patch.object(order, "BLOCK_ROWS", block):
        whole = list(batches(source, size, seed, memory=memory))
        start = data.draw(st.integers(0, len(whole) + 1))
        shares = [list(batches(source, size, seed, start, Share(r, ranks), memory)) for r in range(ranks)]
    assert sorted(labels(whole)) == list(range(rows))
    assert [len(batch.label) for batch in whole] == [min(size, rows - n) for n in range(0, rows, size)]
    assert all(len(share) == len(whole[start:]) for share in shares)
    for number, batch in enumerate(whole[start:]):
        assert torch.equal(torch.cat([share[number].label for share in shares]), batch.label)
    for batch in (*whole, *(batch for share in shares for batch in share)):
        values, offsets, dense = one_by_one(source, [int(row) for row in batch.label])
        assert batch.ids.values.flatten().tolist() == values
        assert batch.ids.offsets is None or batch.ids.offsets.tolist() == offsets
        assert (batch.ids.features, batch.ids.batch) == (len(kinds), len(batch.label))
        assert batch.dense.tolist() == dense
        assert (batch.weight is not None) == weighted
        assert batch.weight is None or torch.equal(batch.weight, 2 * batch.label)


@given(
    st.integers(1, 2_000),
    st.integers(1, 200),
    st.integers(4, 500),
    st.integers(0, 2 * 10**5),
    st.integers(0, 2**63 - 1),
)
def test_windows_divide_the_rows_and_fit(rows: int, size: int, row_bytes: int, memory: int, seed: int) -> None:
    shuffle = BlockShuffle.within(memory, rows, rows * row_bytes, size)
    assert shuffle.window % size == 0
    assert (
        rows * row_bytes <= memory
        or shuffle.window == size
        or shuffle.window * (row_bytes + order.ORDER_BYTES) <= memory
    )
    spans = [shuffle.spans(seed, window) for window in range(shuffle.windows)]
    sizes = [sum(last - first for first, last in found) for found in spans]
    assert sorted(row for found in spans for span in found for row in range(*span)) == list(range(rows))
    assert sizes[:-1] == [shuffle.window] * (shuffle.windows - 1)
    assert 0 < sizes[-1] <= shuffle.window
    assert all(found == sorted(found) for found in spans)
    for found in spans[:-1] if shuffle.windows > 1 else []:  # a sample of many runs, none longer than a block
        assert max(last - first for first, last in found) <= shuffle.block
        assert len(found) >= min(order.LEAST_BLOCKS, shuffle.window)


def test_windows_are_nearly_equal() -> None:
    shuffle = BlockShuffle.within(1_000_000, 13_000, 13_000 * 96, 100)  # 1.3 times what there is room for
    assert (shuffle.window, shuffle.windows) == (6500, 2)


def test_the_order_is_a_function_of_the_seed() -> None:
    source = columns(5_000, "s")
    memory = source.nbytes // 5
    one, again, other = (labels(list(batches(source, 64, seed, memory=memory))) for seed in (1, 1, 2))
    assert one == again
    assert one != other
    assert one != labels(list(batches(source, 64, 1)))
    assert labels(list(batches(source, 64, 1, memory=source.nbytes))) == labels(list(batches(source, 64, 1)))
    assert labels(list(batches(source, 64, memory=1))) == list(range(5_000))


def test_rows_move_anywhere_and_windows_are_samples() -> None:
    """Where a row comes says nothing of its place in the file, but for its neighbours, and other ones every epoch."""
    rows = 40_000
    source = columns(rows, "s")
    memory = source.nbytes // 8
    shuffle = BlockShuffle.within(memory, rows, source.nbytes, 100)
    places = []
    for seed in range(4):
        place = np.empty(rows, np.int64)
        place[labels(list(batches(source, 100, seed, memory=memory)))] = np.arange(rows)
        places.append(place)
        assert abs(np.corrcoef(place, np.arange(rows))[0, 1]) < 0.15
        thirds = np.histogram2d(place, np.arange(rows), bins=3)[0] / (rows / 9)
        assert 0.4 < thirds.min() < thirds.max() < 1.8
        within = place // shuffle.window
        assert 0.5 < (within[1:] != within[:-1]).sum() / (rows / shuffle.block) < 1.1  # once a block
        window = np.sort(np.flatnonzero(within == 1))
        assert abs(np.corrcoef(place[window], window)[0, 1]) < 0.05  # no order is left inside
    apart = [[np.flatnonzero(np.diff(place // shuffle.window)).tolist()] for place in places]
    assert len({str(one) for one in apart}) == 4
    for one in places[1:]:
        assert abs(np.corrcoef(places[0], one)[0, 1]) < 0.15


def test_windows_that_are_skipped_are_not_read() -> None:
    read: list[int] = []

    class Watched(Columns):
        def read(self, first: int, last: int) -> Columns:
            read.append(last - first)
            return super().read(first, last)

    plain = columns(1_000, "sm")
    source = Watched(plain.ids, plain.dense, plain.label)
    memory = plain.nbytes // 4
    shuffle = BlockShuffle.within(memory, 1_000, plain.nbytes, 10)
    whole = list(batches(source, 10, 3, memory=memory))
    assert shuffle.windows == math.ceil(1_000 / shuffle.window) == 5
    assert sum(read) == 1_000
    for start in (1, 19, 20, 21, 60, 99, 100):
        read.clear()
        rest = list(batches(source, 10, 3, start, memory=memory))
        assert labels(rest) == labels(whole[start:])
        assert sum(read) == 1_000 - start * 10 // shuffle.window * shuffle.window


def test_a_rank_holds_its_own_rows_only(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []

    class Watched(Window):
        def fill(self, parts: Iterable[Columns]) -> None:
            every = list(parts)
            held.append(sum(map(len, every)))
            super().fill(every)

    monkeypatch.setattr(loader, "Window", Watched)
    source = columns(1_000, "sm")
    for memory, filled in ((None, 1), (source.nbytes // 4, 5)):
        for rank in range(4):
            held.clear()
            found = labels(list(batches(source, 40, 3, share=Share(rank, 4), memory=memory)))
            assert sum(held) == len(found) == 250
            assert len(held) == filled


@pytest.mark.parametrize("memory", [None, 1])
def test_no_rows(memory: int | None) -> None:
    assert list(batches(columns(0, "sm"), 4, 1, memory=memory)) == []
