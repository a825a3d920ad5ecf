"""PEP: the contract, gradients of thresholds against float64, and how far thresholds travel on planted data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recsys_embed import ConfigError, EmbeddingLayer
from recsys_embed.config import PepConfig
from recsys_embed.embeddings.base import TableAccess
from recsys_embed.embeddings.bits import unpack_bits
from recsys_embed.embeddings.pep import Pep, soft_threshold
from recsys_embed.layer import parse_strategy
from recsys_embed.stages import EVERYTHING, Step
from recsys_embed.testing import BAGS, FEATURES, StrategyContract, draw_ids
from recsys_embed.training.optimizers import Optimizers
from recsys_embed.training.step import step
from recsys_embed.training.trainer import train
from tests.backends import EVERY
from tests.embeddings import ranked
from tests.embeddings.ranked import RANKS, D, N, Ranked


class TestPep(StrategyContract):
    config = PepConfig()


class TestPepInOneBlockAtAnOddWidth(StrategyContract):
    config = PepConfig(blocks=1, s_start=-3.5)  # a threshold among the initial weights
    dim = 9


class TestPepInMoreBlocksThanIds(StrategyContract):
    config = PepConfig(blocks=1000, s_start=-3.5)
    budget = 0.5


def pep_of(emb: EmbeddingLayer) -> Pep:
    found = emb.strategies[0]
    assert isinstance(found, Pep)
    return found


def with_drawn_thresholds(features: Any = FEATURES, *, budget: float = 0.2, backend: str = "reference") -> Any:
    """A layer with a tables optimizer, thresholds of 0.007 to 0.05 around initial weights up to 0.05; in its search."""
    config = PepConfig(blocks=4)
    emb = EmbeddingLayer(features, 12, strategy={"*": config}, budget=budget, exact=(), backend=backend)
    optimizer = emb.optimizer("adagrad", lr=0.1)
    with torch.no_grad():
        pep_of(emb).s.uniform_(-5, -3, generator=torch.Generator().manual_seed(1))
    emb.begin_stage("search")
    return emb, optimizer


# --- thresholds and the loss ----------------------------------------------------------------------------------


def test_the_published_start_has_no_gradient_in_fp32() -> None:
    """At -150 the loss cannot move s at all; at the default it can, and starts below are refused where it hardly
    could."""
    values = torch.tensor([-0.05, 0.02, 0.3])
    gradients = {}
    for start in (-150.0, PepConfig().s_start):
        s = torch.full((3,), start, requires_grad=True)
        soft_threshold(values, s.sigmoid()).square().sum().backward()
        gradients[start] = s.grad
    assert torch.equal(gradients[-150.0], torch.zeros(3))
    g = 1 / (1 + np.exp(8))
    expected = -2 * (np.abs(values.numpy()) - g) * g * (1 - g)
    np.testing.assert_allclose(gradients[-8.0], expected, rtol=1e-4)
    with pytest.raises(ConfigError, match="s_start"):
        parse_strategy({"name": "pep", "s_start": -150})


@pytest.mark.parametrize("backend", EVERY)
@pytest.mark.parametrize("features", [FEATURES, BAGS], ids=["single", "bags"])
def test_the_gradient_of_s_equals_a_slow_loop_in_float64(features: Any, backend: str) -> None:
    """Weight by weight: -dL/dv' · sign(v) · g (1 - g) of the weights beyond their threshold, summed by block."""
    if backend == "fused":
        pytest.importorskip("fbgemm_gpu")
    emb, _ = with_drawn_thresholds(features, backend=backend)
    strategy, ids = pep_of(emb), draw_ids(features, 50)
    vectors = emb(ids)
    vectors.square().sum().backward()
    outer = 2 * vectors.detach().double().numpy()  # dL / d vector, [B, F, D]
    s = strategy.s.detach().double().numpy()
    g = 1 / (1 + np.exp(-s))
    sizes = {feature.name: feature.size for feature in features}
    first = {name: 4 * place for place, name in enumerate(sorted(sizes))}
    flat = ids.jagged()
    assert flat.offsets is not None
    offsets, values = flat.offsets.tolist(), flat.values.tolist()
    expected, inside = np.zeros_like(s), 0
    for f, feature in enumerate(features):
        table = emb.tables.get(feature.name).detach().double().numpy()
        for sample in range(50):
            bag = values[offsets[f * 50 + sample] : offsets[f * 50 + sample + 1]]
            for id_ in bag:
                block = first[feature.name] + id_ * 4 // sizes[feature.name]
                beyond = np.abs(table[id_]) > g[block]
                inside += int((~beyond).sum())
                per_id = outer[sample, f] / (len(bag) if feature.pooling == "mean" and feature.multi_valued else 1)
                expected[block] -= per_id * np.sign(table[id_]) * g[block] * (1 - g[block]) * beyond
    assert inside > 100
    assert (expected != 0).mean() > 0.9
    np.testing.assert_allclose(strategy.s.grad.numpy(), expected, rtol=1e-4, atol=1e-7)


def test_s_moves_by_the_training_loss_and_its_decay() -> None:
    """In steps of the search, as plain Adam with weight decay by gradients taken apart; without decay by the loss."""
    for decay in (0.0, 0.01):
        model = ranked.model(PepConfig(blocks=2, s_start=-5.0, s_lr=0.02, s_decay=decay))
        model.embedding.begin_stage("search")
        optimizers, s = Optimizers(model, ranked.training()), pep_of(model.embedding).s
        theirs = torch.nn.Parameter(s.detach().clone())
        adam = torch.optim.Adam([theirs], lr=0.02, weight_decay=decay)
        for number, batch in enumerate(Ranked(1000).batches("train", 200)):
            logits = model.interaction(model.embedding(batch.ids), batch.dense)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, batch.label)
            (theirs.grad,) = torch.autograd.grad(loss, s)
            assert theirs.grad.abs().min() > 0
            adam.step()
            step(model, batch, optimizers, Step("train", EVERYTHING | {"s"}))
            torch.testing.assert_close(s, theirs, rtol=0, atol=1e-5)
            assert number or bool((s != -5.0).all())


# --- pruning --------------------------------------------------------------------------------------------------


def margins(emb: EmbeddingLayer) -> Tensor:
    """|v| - g(s) of every weight, vocabulary after vocabulary, in float64."""
    thresholds, found = pep_of(emb).s.detach().double().sigmoid(), []
    for place, (name, size) in enumerate((("city", 60), ("item", 700), ("user", 4000))):
        block = 4 * place + torch.arange(size) * 4 // size
        found.append(emb.tables.get(name).detach().double().abs() - thresholds[block])
    return torch.cat(found)


@pytest.mark.parametrize("backend", EVERY)
@pytest.mark.parametrize("budget", [0.2, 0.9])
def test_pruning_keeps_the_weights_beyond_their_thresholds(
    budget: float, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By sorting; their vectors stay as they were, and retraining moves each of them, those that were 0 included."""
    if backend == "fused":
        pytest.importorskip("fbgemm_gpu")
    monkeypatch.setattr("recsys_embed.embeddings.pruned._CHUNK", 1000)
    emb, optimizer = with_drawn_thresholds(budget=budget, backend=backend)
    strategy, margin, names = pep_of(emb), margins(emb), ("city", "item", "user")
    all_ids = {name: torch.arange(emb.tables.specs[name].rows) for name in names}
    before = torch.cat([emb.vectors(name, all_ids[name]) for name in names])
    emb.end_stage()
    kept = unpack_bits(strategy.mask, 12)
    assert int(kept.sum()) == strategy.kept
    assert margin[kept].min() >= margin[~kept].max() - 1e-6
    assert bool((margin[kept] < 0).any()) == (budget == 0.9)
    after = torch.cat([emb.vectors(name, all_ids[name]) for name in names])
    assert torch.equal(after, before * kept)
    emb.begin_stage("retrain")
    ids = torch.stack([torch.arange(4000) % emb.tables.specs[feature.name].rows for feature in FEATURES])
    (emb(ids) - 1).square().sum().backward()
    optimizer.step()
    moved = torch.cat([emb.vectors(name, all_ids[name]) for name in names]) != after
    assert torch.equal(moved, kept)


# --- how far thresholds travel --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("decay", [0.0, PepConfig().s_decay])
def test_thresholds_travel_among_the_weights(decay: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """480 steps at the defaults: where nothing is planted thresholds end far above the weights, elsewhere far below.

    By the loss alone, without decay: up where nothing is planted, for a good part to where weights are, elsewhere down.
    """
    found: dict[str, Tensor] = {}
    plain = Pep.finish

    def finish(self: Pep, stage: str, tables: TableAccess) -> None:
        if stage == "search":
            found["g"] = self.s.detach().sigmoid().view(len(RANKS), 2, D)
            names = sorted(RANKS)
            found["v"] = torch.stack([tables.get_rows(name, torch.arange(N)).weights.abs() for name in names]).detach()
        plain(self, stage, tables)

    monkeypatch.setattr(Pep, "finish", finish)
    train(ranked.model(PepConfig(blocks=2, s_decay=decay)), Ranked(24_000), ranked.training(epochs=1), progress=False)
    planted = torch.zeros(len(RANKS), D, dtype=torch.bool)
    for place, name in enumerate(sorted(RANKS)):
        planted[place, list(RANKS[name])] = True
    start = torch.tensor(PepConfig().s_start).sigmoid()
    useful = found["g"].transpose(1, 2)[planted]
    noise = found["g"].transpose(1, 2)[~planted]
    weight, other = found["v"].transpose(1, 2)[planted].mean(), found["v"].transpose(1, 2)[~planted].mean()
    if decay:
        assert noise.mean() > 3 * other
        assert noise.mean() > weight > 2 * useful.mean()
        assert useful.min() > 20 * start
    else:
        assert noise.mean() > 0.5 * other
        assert (noise > 10 * start).float().mean() > 0.5
        assert useful.mean() < start
