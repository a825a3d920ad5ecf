"""Compositional embeddings: the contract for every operation, complementary partitions, sound initial weights."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recsys_embed import EmbeddingLayer, Feature
from recsys_embed.config import CompositionalConfig
from recsys_embed.embeddings.compositional import Compositional, split_radices
from recsys_embed.embeddings.index_maps import Digits
from recsys_embed.ids import Ids
from recsys_embed.testing import StrategyContract


class TestMultiply(StrategyContract):
    config = CompositionalConfig()


class TestAdd(StrategyContract):
    config = CompositionalConfig(operation="add")


class TestConcat(StrategyContract):
    config = CompositionalConfig(operation="concat")


class TestThreeDigits(StrategyContract):
    config = CompositionalConfig(partitions=3)


@given(size=st.integers(2, 5000), partitions=st.integers(2, 4), share=st.floats(0, 1))
def test_partitions_are_complementary_and_use_all_rows(size: int, partitions: int, share: float):
    least = Compositional.least(CompositionalConfig(partitions=partitions), [Feature("x", size)], 1)
    rows = least + int(share * max(0, size - least))
    radices = split_radices(size, partitions, rows)
    assert sum(radices) == rows
    divisors = [math.prod(radices[:digit]) for digit in range(partitions)]
    digits = Digits([divisors], [radices])(Ids(torch.arange(size).unsqueeze(0), 1))[0]
    assert torch.unique(digits, dim=1).shape[1] == size


def test_quotients_are_exact_beyond_float32():
    ids = torch.tensor([[2**24 + 1, 2**31 - 5, 2**40 + 3]])
    digits = Digits([[1, 4]], [[4, 2**31 - 1]])(Ids(ids, 1))[0]
    assert digits.tolist() == [[1, 3, 3], [2**22, 2**29 - 2, 2**38 % (2**31 - 1)]]


@pytest.mark.parametrize("operation", ["multiply", "add", "concat"])
@pytest.mark.parametrize("partitions", [2, 3])
def test_initial_vectors_are_distinct_and_scaled_as_full(operation: str, partitions: int):
    config = CompositionalConfig(operation=operation, partitions=partitions)
    emb = EmbeddingLayer([Feature("x", 20_000)], 12, strategy={"*": config}, budget=0.05, exact=())
    vectors = emb.vectors("x", torch.arange(20_000))
    full = EmbeddingLayer([Feature("x", 20_000)], 12).vectors("x", torch.arange(20_000))
    assert torch.unique(vectors, dim=0).shape[0] == 20_000
    assert vectors.std().item() == pytest.approx(full.std().item(), rel=0.2)
    assert abs(vectors.mean()) < 0.01
