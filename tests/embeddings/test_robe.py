"""ROBE: the contract, addresses and signs by Python's integers, the spread of both, and budgets to the float."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from recsys_embed import ConfigError, EmbeddingLayer, Feature
from recsys_embed.budget import plan
from recsys_embed.config import RobeConfig
from recsys_embed.embeddings import Robe
from recsys_embed.embeddings.index_maps import Blocks
from recsys_embed.features import resolve
from recsys_embed.ids import Ids
from recsys_embed.seeds import seed_of
from recsys_embed.testing import HashedContract, StrategyContract

MASK = 2**64 - 1


class TestRobe(StrategyContract):
    config = RobeConfig()  # blocks of 8 and 4 in the contract's 12


class TestRobeOfSingleFloats(StrategyContract):
    config = RobeConfig(block=1)


class TestRobeOfWholeVectors(StrategyContract):
    config = RobeConfig(block=100)


class TestRobeWithoutSigns(StrategyContract):
    config = RobeConfig(block=5, signs=False)


class TestRobeOfHashes(HashedContract):
    config = RobeConfig()


# --- the oracle ----------------------------------------------------------------------------------------------


def slow_mix(value: int, seed: int) -> int:
    z = (value + seed) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def slow_entries(value: int, vocabulary: str, strategy: Robe, block: int, seed: int) -> list[int]:
    entries: list[int] = []
    while len(entries) < strategy.dim:
        start = ((slow_mix(value, seed_of(vocabulary, len(entries) // block, seed)) >> 32) * strategy.entries) >> 32
        for k in range(min(block, strategy.dim - len(entries))):
            entries.append((start + k) % strategy.entries)
    return entries


def slow_signs(value: int, vocabulary: str, dim: int, seed: int) -> list[int]:
    bits = [(slow_mix(value, seed_of(vocabulary, -1 - d // 32, seed)) >> (32 + d % 32)) & 1 for d in range(dim)]
    return [1 if bit else -1 for bit in bits]


def robe(names: list[str], dim: int, entries: int, block: int, *, signs: bool = True, seed: int = 0) -> Robe:
    """A strategy whose features read the vocabularies ``names``, which may repeat."""
    features = resolve([Feature(f"f{i}", 10**6, vocabulary=name) for i, name in enumerate(names)])
    return Robe(features, dim, entries=entries, block=block, signs=signs, label="robe", seed=seed)


@given(
    names=st.lists(st.sampled_from(["user", "item", "city"]), min_size=1, max_size=4),
    dim=st.sampled_from([1, 2, 7, 16, 31, 32, 33, 70]),
    block=st.integers(1, 80),
    spare=st.integers(0, 60),
    signs=st.booleans(),
    seed=st.integers(0, 3),
    draw=st.integers(0, 10**6),
    batch=st.integers(1, 4),
)
def test_vectors_equal_unbounded_integers(
    names: list[str], dim: int, block: int, spare: int, signs: bool, seed: int, draw: int, batch: int
):
    strategy = robe(names, dim, dim + spare, block, signs=signs, seed=seed)
    values = torch.randint(0, 10**6, (len(names), batch), generator=torch.Generator().manual_seed(draw))
    array = torch.arange(1.0, strategy.entries + 1)  # an entry is its place, counted from 1

    def check(lookup_rows: Tensor, vectors: Tensor, value: int, name: str) -> None:
        entries = slow_entries(value, name, strategy, block, seed)
        assert lookup_rows.tolist() == entries
        factors = slow_signs(value, name, dim, seed) if signs else [1] * dim
        assert vectors.tolist() == [(entry + 1) * sign for entry, sign in zip(entries, factors, strict=True)]

    matrix = Ids(values, len(names))
    lookup = strategy.address(matrix)
    vectors = strategy.combine({"entries": array[lookup.rows["entries"].permute(2, 0, 1)].unsqueeze(-1)}, lookup)
    jagged = matrix.jagged()
    flat = strategy.address(jagged)
    flat_vectors = strategy.combine({"entries": array[flat.rows["entries"].t()].unsqueeze(-1)}, flat)
    for f, name in enumerate(names):
        for b in range(batch):
            value = int(values[f, b])
            check(lookup.rows["entries"][f, :, b], vectors[b, f], value, name)
            check(flat.rows["entries"][:, f * batch + b], flat_vectors[f * batch + b], value, name)


def test_a_block_goes_round_the_end_of_the_array():
    strategy = robe(["user"], 8, 11, 8)
    rows = strategy.address(Ids(torch.arange(2000).unsqueeze(0), 1)).rows["entries"][0]
    assert torch.equal(rows, (rows[:1] + torch.arange(8).unsqueeze(1)) % 11)
    assert (rows[0] > rows[7]).float().mean() == pytest.approx(7 / 11, abs=0.05)
    # Every entry begins as many blocks as any other, the last ones included.
    assert torch.bincount(rows[0], minlength=11).min() > 120


def test_a_block_is_no_longer_than_its_array():
    with pytest.raises(ValueError, match="between 1 and 4 of them, got 5"):
        Blocks([[1]], 4, 5, 5)


@pytest.mark.parametrize("option", [{"block": 0}, {"block": -8}, {"block": 2.5}, {"signs": "some"}])
def test_wrong_options_are_named(option: dict[str, object]):
    with pytest.raises(ConfigError, match=next(iter(option))):
        EmbeddingLayer([Feature("x", 100)], 8, strategy={"*": {"name": "robe", **option}}, budget=0.5)


# --- spread --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [1, 1000, 4096, 2**31 - 1])
def test_load_is_uniform(stride: int):
    entries, count = 2000, 100_000
    lookup = robe(["user", "item"], 16, entries, 8).address(Ids(torch.arange(count).mul(stride).repeat(2, 1), 2))
    rows = lookup.rows["entries"]
    for feature in range(2):
        for start in (0, 8):
            load = np.bincount(rows[feature, start].numpy(), minlength=entries)
            ratio = ((load - count / entries) ** 2).sum() / (count / entries) / (entries - 1)
            assert abs(ratio - 1) < 5 * math.sqrt(2 / (entries - 1))
    # Blocks of an id, and equal ids of two vocabularies, meet as seldom as any two blocks.
    for one, other in [((0, 0), (0, 8)), ((0, 0), (1, 0)), ((0, 8), (1, 0))]:
        meetings = int((rows[one] == rows[other]).sum())
        assert abs(meetings - count / entries) < 5 * math.sqrt(count / entries)


@pytest.mark.parametrize("stride", [1, 1000, 2**31 - 1])
def test_signs_are_balanced_and_independent(stride: int):
    count, dim = 40_000, 66
    ids = torch.arange(count).mul(stride).repeat(2, 1)
    lookup = robe(["user", "item"], dim, 1000, 8).address(Ids(ids, 2))
    signs = lookup.aux["signs"].double()  # [B, F, D]
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    limit = 5 / math.sqrt(count)
    assert signs.mean(0).abs().max() < limit
    flat = signs.flatten(1)
    between = flat.t() @ flat / count - torch.eye(2 * dim)
    assert between.abs().max() < limit  # between coordinates, within a hash and across two, and between vocabularies
    half = (lookup.rows["entries"] < 500).double().mul(2).sub(1).permute(2, 0, 1)
    assert (signs * half).mean(0).abs().max() < limit  # where a block lies says nothing about its signs


# --- bytes, gradients ----------------------------------------------------------------------------------------


@given(
    sizes=st.lists(st.sampled_from([1, 2, 7, 500, 60_000]), min_size=1, max_size=6),
    dim=st.sampled_from([1, 4, 12, 30]),
    kept=st.floats(0.0001, 1.0),
)
def test_a_budget_is_met_to_the_float(sizes: list[int], dim: int, kept: float):
    features = [Feature(f"f{i}", size, vocabulary=f"f{i}") for i, size in enumerate(sizes)]
    ones = sum(size == 1 for size in sizes)  # what cannot get smaller stays exact
    least = 4 * dim * (ones + (ones < len(sizes)))
    budget = max(2, least, int(kept * 4 * dim * sum(sizes)))
    made = plan(features, dim, {"*": RobeConfig()}, budget, exact=())
    assert made.serve_bytes == budget // 4 * 4


def test_gradient_of_the_array_equals_a_slow_sum():
    # Eleven entries for 2 x 7 vectors of 8: every entry is read many times, also twice by one vector.
    strategy = robe(["user", "item"], 8, 11, 3)
    values = torch.randint(0, 10**6, (2, 7), generator=torch.Generator().manual_seed(0))
    lookup = strategy.address(Ids(values, 2))
    array = torch.randn(11, dtype=torch.float64, requires_grad=True)
    slopes = torch.randn(7, 2, 8, dtype=torch.float64)
    vectors = strategy.combine({"entries": array[lookup.rows["entries"].permute(2, 0, 1)].unsqueeze(-1)}, lookup)
    (vectors * slopes).sum().backward()
    expected = torch.zeros(11, dtype=torch.float64)
    for f, name in enumerate(["user", "item"]):
        for b in range(7):
            value = int(values[f, b])
            signs = slow_signs(value, name, 8, 0)
            for d, entry in enumerate(slow_entries(value, name, strategy, 3, 0)):
                expected[entry] += signs[d] * slopes[b, f, d]
    torch.testing.assert_close(array.grad, expected)


def test_the_seed_of_the_hash_moves_blocks_and_signs():
    ids = Ids(torch.arange(1000).unsqueeze(0), 1)
    one, other = (robe(["user"], 8, 500, 8, seed=seed).address(ids) for seed in (0, 1))
    assert (one.rows["entries"] == other.rows["entries"]).float().mean() < 0.02
    assert (one.aux["signs"] == other.aux["signs"]).float().mean() == pytest.approx(0.5, abs=0.03)
