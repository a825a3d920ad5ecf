"""Magnitude pruning: the contract, and the weights that stay by sorting."""

from __future__ import annotations

import pytest
import torch

from recsys_embed import EmbeddingLayer
from recsys_embed.config import MagnitudeConfig
from recsys_embed.embeddings.bits import unpack_bits
from recsys_embed.testing import FEATURES, StrategyContract, draw_ids
from tests.backends import EVERY
from tests.embeddings.ranked import strategy_of


class TestMagnitude(StrategyContract):
    config = MagnitudeConfig()


class TestMagnitudeAtAnOddWidth(StrategyContract):
    config = MagnitudeConfig(warm_up_epochs=1)
    dim = 9
    budget = 0.6


@pytest.mark.parametrize("backend", EVERY)
def test_the_largest_weights_stay_and_the_others_are_zero_from_then_on(backend: str) -> None:
    """Against a sort of all |e| after the warm-up; what is kept goes on to learn."""
    if backend == "fused":
        pytest.importorskip("fbgemm_gpu")
    emb = EmbeddingLayer(FEATURES, 12, strategy="magnitude", budget=0.2, exact=(), backend=backend)
    optimizer, strategy = emb.optimizer("adagrad", lr=0.1), strategy_of(emb)

    def learn(stage: str) -> None:
        emb.begin_stage(stage)
        for seed in range(5):
            emb(draw_ids(FEATURES, 200, seed)).square().sum().backward()
            optimizer.step()
        emb.end_stage()

    learn("warm_up")
    names = [spec.name for spec in strategy.tables()]
    before = torch.cat([emb.tables.get(name).clone() for name in names])
    largest = before.abs().flatten().argsort(descending=True)[: strategy.kept]
    kept = torch.zeros(before.numel(), dtype=torch.bool).index_fill_(0, largest, True).view_as(before)
    assert torch.equal(unpack_bits(strategy.mask, 12), kept)
    learn("retrain")
    after = torch.cat([emb.tables.get(name) for name in names])
    assert bool((after != before)[kept].any())
    assert not bool((after != before)[~kept].any())
    starts = dict(zip(names, (0, 60, 760), strict=True))
    for feature in FEATURES:
        vectors = emb.vectors(feature.name, torch.arange(feature.size))
        start = starts[feature.name]
        expected = after[start:][: feature.size] * kept[start:][: feature.size]
        assert torch.equal(vectors, expected)
