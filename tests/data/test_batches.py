"""Batches against one made row by row."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import recsys_embed.data.loader as module
from recsys_embed.data.bags import Bag, offsets_of
from recsys_embed.data.batches import Batch
from recsys_embed.data.columns import Columns
from recsys_embed.data.loader import batches


def columns(rows: int, kinds: str, seed: int = 0) -> Columns:
    """``s`` is a single-valued feature, ``m`` a multi-valued one; ``S`` and ``M`` are such of 63-bit hashes."""
    rng = np.random.default_rng(seed)

    def feature(kind: str) -> np.ndarray | Bag:
        offsets = None if kind in "sS" else offsets_of(rng.integers(0, 4, rows))
        count = rows if offsets is None else offsets[-1]
        ids = rng.integers(0, 2**63 - 1, count) if kind in "SM" else rng.integers(0, 1000, count, dtype=np.int32)
        return ids if offsets is None else Bag(ids, offsets)

    dense = tuple(rng.normal(size=rows).astype(np.float32) for _ in range(2))
    return Columns(tuple(map(feature, kinds)), dense, np.arange(rows, dtype=np.float32))


def one_by_one(columns: Columns, rows: list[int]) -> tuple[list[int], list[int], list[list[float]]]:
    """Values and offsets, feature after feature, row after row; and the dense columns."""
    values: list[int] = []
    offsets = [0]
    for ids in columns.ids:
        for row in rows:
            if isinstance(ids, Bag):
                values.extend(int(v) for v in ids.values[ids.offsets[row] : ids.offsets[row + 1]])
            else:
                values.append(int(ids[row]))
            offsets.append(len(values))
    return values, offsets, [[float(column[row]) for column in columns.dense] for row in rows]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_NUMBERS", 60)


@given(
    st.integers(1, 60),
    st.integers(1, 25),
    st.sampled_from(["s", "ss", "m", "sm", "msm", "smms", "S", "sSs", "sMSm"]),
    st.integers(0, 3),
)
def test_batches_hold_what_the_rows_hold(rows: int, size: int, kinds: str, seed: int) -> None:
    source = columns(rows, kinds, seed)
    seen: list[int] = []
    for batch in batches(source, size, shuffle_seed=seed or None):
        there = [int(row) for row in batch.label]  # a row's label is its number
        values, offsets, dense = one_by_one(source, there)
        assert batch.ids.values.dtype == (torch.int64 if "S" in kinds else torch.int32)
        assert batch.ids.values.is_contiguous()
        assert batch.ids.values.flatten().tolist() == values
        assert (batch.ids.features, batch.ids.batch) == (len(kinds), len(there))
        if "m" in kinds:
            assert batch.ids.offsets is not None
            assert batch.ids.offsets.tolist() == offsets
        else:
            assert batch.ids.offsets is None
            assert batch.ids.values.shape == (len(kinds), len(there))
        assert batch.dense.tolist() == dense
        seen += there
    assert len(seen) == rows
    assert sorted(seen) == list(range(rows))
    if not seed:
        assert seen == list(range(rows))


def labels(found: Iterator[Batch]) -> list[float]:
    return [float(x) for batch in found for x in batch.label]


def test_the_shuffle_is_global_and_a_function_of_the_seed() -> None:
    source = columns(5_000, "s")
    one, again, other = (labels(batches(source, 64, seed)) for seed in (1, 1, 2))
    assert one == again
    assert one != other
    assert one != labels(batches(source, 64))
    assert np.abs(np.corrcoef(one, np.arange(5_000))[0, 1]) < 0.05
    assert labels(batches(source, 64, 1)) == labels(batches(source, 7, 1))  # the order is that of rows, not of batches
    assert [len(b.label) for b in batches(source, 64, 1)] == [64] * 78 + [8]


def test_columns_without_rows_or_dense() -> None:
    empty = Columns((np.zeros(3, np.int32),), (), np.zeros(3, np.float32))
    assert next(batches(empty, 2)).dense.shape == (2, 0)
    assert list(batches(empty.take(np.arange(0)), 2)) == []


@pytest.mark.parametrize("kinds", ["ss", "sm"])
@pytest.mark.parametrize("seed", [None, 3])
def test_batches_that_are_skipped(kinds: str, seed: int | None) -> None:
    source = columns(103, kinds)
    whole = list(batches(source, 10, seed))
    for start in range(12):
        rest = list(batches(source, 10, seed, start))
        assert len(rest) == max(11 - start, 0)
        for one, other in zip(rest, whole[start:], strict=True):
            assert torch.equal(one.label, other.label)
            assert torch.equal(one.ids.values, other.ids.values)
            assert torch.equal(one.dense, other.dense)
