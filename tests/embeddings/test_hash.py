"""The hashing trick: the contract, and the collisions it is expected to have."""

import math

import torch

from recsys_embed import EmbeddingLayer, Feature
from recsys_embed.config import HashConfig
from recsys_embed.testing import HashedContract, StrategyContract


class TestHash(StrategyContract):
    config = HashConfig()


class TestHashOfHashes(HashedContract):
    config = HashConfig()


def test_share_of_ids_without_a_row_of_their_own():
    # 1 - r(1 - exp(-1/r)) of the ids share a row, r = rows / ids.
    ids = 40_000
    for ratio in (0.5, 1.0):
        emb = EmbeddingLayer([Feature("x", ids)], 4, strategy="hash", budget=ratio, exact=())
        vectors = emb.vectors("x", torch.arange(ids))
        distinct = torch.unique(vectors, dim=0).shape[0]
        assert abs(distinct / ids - ratio * (1 - math.exp(-1 / ratio))) < 0.01


def test_rows_follow_cardinality():
    emb = EmbeddingLayer([Feature("a", 9000), Feature("b", 1000)], 4, strategy="hash", budget=0.1, exact=())
    assert emb.plan.settings == {"a": 900, "b": 100}
