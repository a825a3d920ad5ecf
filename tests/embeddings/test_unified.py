"""Unified embedding: the contract, chunk order, and what the theory says of gradients (2305.12102, section 4.2)."""

import pytest
import torch

from recsys_embed import ConfigError, EmbeddingLayer, Feature
from recsys_embed.config import UnifiedConfig
from recsys_embed.testing import HashedContract, StrategyContract


class TestUnified(StrategyContract):
    config = UnifiedConfig()


class TestUnifiedInManyTables(StrategyContract):
    config = UnifiedConfig(chunks=3, tables=2)


class TestUnifiedWithManyChunks(StrategyContract):
    # More than ten: a lexicographic order of chunks would show.
    config = UnifiedConfig(chunks=12)


class TestUnifiedOfHashes(HashedContract):
    config = UnifiedConfig(chunks=3, tables=2)


def test_chunks_must_divide_the_width():
    with pytest.raises(ConfigError, match=r"dim 10 is not a multiple of chunks = 3"):
        EmbeddingLayer([Feature("x", 100)], 10, strategy={"*": {"name": "unified", "chunks": 3}}, budget=0.5, exact=())


def test_budget_sets_the_table_whatever_the_features():
    for features in ([Feature("a", 5000)], [Feature("a", 2000), Feature("b", 3000)]):
        emb = EmbeddingLayer(features, 8, strategy="unified", budget=16_000, exact=())
        assert emb.plan.settings == {"unified.0": 1000}


def test_gradient_of_a_row_lies_in_the_span_of_the_read_outs_that_hit_it():
    emb = EmbeddingLayer([Feature("a", 300), Feature("b", 300)], 8, strategy={"*": UnifiedConfig(chunks=1)}, budget=320)
    theta = torch.randn(2, 8, generator=torch.Generator().manual_seed(0))
    ids = torch.stack([torch.arange(300), torch.arange(300)])
    (emb(ids) * theta).sum(dim=(1, 2)).square().sum().backward()
    (store,) = emb.parameters()
    assert store.grad is not None
    assert torch.linalg.matrix_rank(torch.cat([store.grad, theta]).double(), rtol=1e-4) == 2
    # Without feature b every row's gradient is parallel to a's read-out.
    store.grad = None
    (emb(ids)[:, 0] * theta[0]).sum(dim=1).square().sum().backward()
    assert torch.linalg.matrix_rank(torch.cat([store.grad, theta[:1]]).double(), rtol=1e-4) == 1


def test_collisions_within_a_feature_are_those_of_the_whole_table():
    # (n - 1) / M expected collisions of an id with others of its feature, against N/M in a table of its own.
    features = [Feature("a", 2000), Feature("b", 18_000)]
    unified = EmbeddingLayer(features, 4, strategy={"*": UnifiedConfig(chunks=1)}, budget=0.2, exact=())
    own = EmbeddingLayer(features, 4, strategy="hash", budget=0.2, exact=())

    def colliding_pairs(emb: EmbeddingLayer) -> int:
        _, counts = torch.unique(emb.vectors("a", torch.arange(2000)), dim=0, return_counts=True)
        return int((counts * (counts - 1) // 2).sum())

    rows = 4000
    assert colliding_pairs(unified) == pytest.approx(2000 * 1999 / 2 / rows, rel=0.15)
    assert colliding_pairs(own) == pytest.approx(2000 * 1999 / 2 / 400, rel=0.15)
