"""Placements as data: the bijection, the balance it brings, and what is refused by name."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recsys_embed import ConfigError
from recsys_embed.embeddings.base import TableSpec
from recsys_embed.tables.base import UpdateRule
from recsys_embed.tables.fbgemm import padded
from recsys_embed.tables.placement import Scatter, column_wise, kinds_of, row_wise, splits_by_row, table_wise

ROWWISE, ADAGRAD = UpdateRule("rowwise_adagrad"), UpdateRule("adagrad")


@given(rows=st.integers(1, 5000), name=st.text(max_size=8))
def test_the_scatter_is_a_bijection(rows: int, name: str):
    scattered = Scatter.of(name, rows)(torch.arange(rows))
    assert torch.equal(scattered.sort().values, torch.arange(rows))


@given(rows=st.integers(1, 2**31 - 1))
def test_products_stay_within_64_bits(rows: int):
    scatter = Scatter.of("table", rows)
    assert math.gcd(scatter.multiplier, rows) == 1
    last = int(scatter(torch.tensor([rows - 1], dtype=torch.int32)))
    assert last == ((rows - 1) * scatter.multiplier + scatter.offset) % rows


def test_the_scatter_is_frozen():
    # Checkpoints hold logical rows, so that this may change; placements printed before would then be wrong.
    found = [Scatter.of(name, rows) for name, rows in (("a", 10), ("b", 97))]
    assert [(one.multiplier, one.offset) for one in found] == [(7, 1), (60, 18)]


@pytest.mark.parametrize(("ranks", "before", "after"), [(2, 0.95, 0.57), (4, 0.92, 0.33), (8, 0.89, 0.21)])
def test_the_head_spreads_over_ranks(ranks: int, before: float, after: float):
    rows = 1_000_000
    weights = 1 / np.arange(1, rows + 1) ** 1.05
    weights /= weights.sum()
    block = -(-rows // ranks)
    assert weights[:block].sum() > before
    for name in ("user", "item", "a", "b", "c"):
        place = Scatter.of(name, rows)(torch.arange(rows)).numpy() // block
        assert np.bincount(place, weights, ranks).max() < after


@given(rows=st.integers(1, 2000), width=st.integers(1, 40), world=st.integers(1, 9))
def test_shards_tile_their_table(rows: int, width: int, world: int):
    spec = TableSpec("t", rows, width)
    placements = [table_wise(spec, world - 1)]
    if splits_by_row(rows, world):
        placements.append(row_wise(spec, world))
    wide = padded(width)
    placements.append(column_wise(spec, [n % world for n in range(wide // 4)], 4))
    for placement in placements:
        seen = np.zeros((rows, wide), int)
        for shard in placement.shards:
            assert shard.rows > 0
            seen[shard.row : shard.row + shard.rows, shard.column : shard.column + shard.columns] += 1
        assert (seen == 1).all()
        assert sum(placement.bytes_on(rank, ADAGRAD) for rank in range(world)) == 2 * 4 * rows * wide


def test_bytes_count_the_state():
    spec = TableSpec("t", 100, 10)
    assert table_wise(spec, 0).bytes_on(0, ROWWISE) == 4 * 100 * (12 + 1)
    assert table_wise(spec, 0).bytes_on(1, ROWWISE) == 0
    assert row_wise(spec, 3).bytes_on(2, None) == 4 * 32 * 12


def test_kinds():
    specs = [TableSpec("user", 10_000, 8), TableSpec("day", 7, 8), TableSpec("flat", 99_999, 1)]
    kinds = kinds_of(specs, {"*": "auto"}, world_size=4, replicate_below=4096, rule=ROWWISE)
    assert kinds == {"user": ("table_wise", "row_wise"), "day": ("data_parallel",), "flat": ("data_parallel",)}
    kinds = kinds_of(specs, {"us*": "column_wise"}, world_size=4, replicate_below=0, rule=ADAGRAD)
    assert kinds["user"] == ("column_wise",)
    assert kinds["day"] == ("table_wise", "row_wise", "column_wise")


@pytest.mark.parametrize(
    ("pinned", "message"),
    [
        ({"usr": "row_wise"}, "pattern 'usr' matches no table"),
        ({"user": "column_wise"}, "'user' cannot be column_wise with rowwise_adagrad: its one sum a row"),
        ({"day": "row_wise"}, "'day' has 5 rows: row-wise over 4 ranks leaves a rank without any"),
        ({"flat": "row_wise"}, "'flat' cannot be row_wise: a row of one float"),
        ({"wide": "table_wise"}, "'wide' cannot be table_wise: FBGEMM returns wrong rows above width 1024"),
    ],
)
def test_what_cannot_be_is_refused_by_name(pinned: dict[str, str], message: str):
    specs = [TableSpec("user", 10_000, 8), TableSpec("day", 5, 8), TableSpec("flat", 99, 1), TableSpec("wide", 9, 2000)]
    with pytest.raises(ConfigError, match=message):
        kinds_of(specs, pinned, world_size=4, replicate_below=0, rule=ROWWISE)
