"""The file of a split: pieces written in any order are read as one."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.feather as feather
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys_embed.data.bags import Bag, offsets_of
from recsys_embed.data.columns import Columns
from recsys_embed.data.loader import batches
from recsys_embed.data.storage import SplitFile, open_split
from recsys_embed.data.stored import StoredRows
from recsys_embed.errors import CheckpointError

NAMES = ["user", "tags", "dense:price", "label:clicked"]


def columns(rows: int, widths: tuple[int, int]) -> Columns:
    """Ids of 4 or 8 bytes, so large that no other width would do."""
    draw = np.random.default_rng(0)
    lengths = draw.integers(0, 4, rows)
    user, tags = (
        draw.integers(0, 2 ** (8 * width - 1), count).astype(f"i{width}")
        for width, count in zip(widths, (rows, int(lengths.sum())), strict=True)
    )
    numbers = draw.random((2, rows)).astype(np.float32)
    return Columns((user, Bag(tags, offsets_of(lengths))), (numbers[0],), numbers[1])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(0, 40),
    st.lists(st.integers(0, 40), max_size=5),
    st.tuples(st.sampled_from([4, 8]), st.sampled_from([4, 8])),
    st.randoms(use_true_random=False),
)
def test_pieces_in_any_order(
    tmp_path: Path, rows: int, inner: list[int], widths: tuple[int, int], draw: object
) -> None:
    whole, path = columns(rows, widths), tmp_path / "split.arrow"
    _, bag = whole.ids
    assert isinstance(bag, Bag)
    file = SplitFile.create(path, rows, NAMES, [None, len(bag.values)], widths)
    assert SplitFile.of(file.tree()) == file
    edges = sorted({0, rows, *(min(one, rows) for one in inner)})
    pieces = list(itertools.pairwise(edges))
    draw.shuffle(pieces)  # type: ignore[attr-defined]
    for first, last in pieces:
        file.write(path, first, [0, int(bag.offsets[first])], whole.take(np.arange(first, last)))
    found = open_split(path, 2)
    user, tags = found.ids
    assert isinstance(tags, Bag)
    pairs = [(user, whole.ids[0]), (tags.values, bag.values), (tags.offsets, bag.offsets)]
    pairs += [(found.dense[0], whole.dense[0]), (found.label, whole.label)]
    for one, other in pairs:
        assert one.dtype == other.dtype  # type: ignore[union-attr]
        np.testing.assert_array_equal(one, other)  # type: ignore[arg-type]
    expected = [whole.ids[0], bag.offsets, bag.values, whole.dense[0], whole.label]
    assert b"".join(file.blocks(path)) == b"".join(array.tobytes() for array in expected)  # type: ignore[union-attr]
    frame: pd.DataFrame = feather.read_feather(path)
    assert list(frame.columns) == NAMES
    assert [list(cell) for cell in frame["tags"]] == [
        bag.values[a:b].tolist() for a, b in zip(bag.offsets, bag.offsets[1:], strict=False)
    ]


@pytest.mark.parametrize("weighted", [False, True])
def test_rows_that_are_read_are_those_that_are_mapped(tmp_path: Path, weighted: bool) -> None:
    widths = (8, 4)
    whole, path = columns(50, widths), tmp_path / "split.arrow"
    whole = replace(whole, weight=whole.label + 1 if weighted else None)
    _, bag = whole.ids
    assert isinstance(bag, Bag)
    file = SplitFile.create(path, 50, [*NAMES, *["weight:w"] * weighted], [None, len(bag.values)], widths)
    file.write(path, 0, [0, 0], whole)
    rows = StoredRows(path, 2)
    assert SplitFile.open(path, 2) == file
    assert (len(rows), rows.nbytes) == (50, whole.nbytes)
    for memory in (whole.nbytes, whole.nbytes // 3):
        found, expected = (list(batches(one, 7, 5, memory=memory)) for one in (rows, rows.whole()))
        assert len(found) == len(expected) == 8
        for one, other in zip(found, expected, strict=True):
            pairs = [(one.ids.values, other.ids.values), (one.ids.offsets, other.ids.offsets)]
            pairs += [(one.dense, other.dense), (one.label, other.label)]
            assert all(torch.equal(a, b) for a, b in pairs)  # type: ignore[arg-type]
            assert (one.weight is not None) == weighted
            assert one.weight is None or torch.equal(one.weight, one.label + 1)
    with open(path, "r+b") as cut:
        cut.truncate(file.numbers[-1] + 4 * 49)
    with pytest.raises(CheckpointError, match="cannot be read: it is cut short"):
        rows.read(0, 50)
    assert len(rows.read(0, 49)) == 49
