"""What all strategies that prune to the budget promise: the planted ranks, and exact resumption in every stage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from recsys_embed import EmbeddingLayer, Feature
from recsys_embed.config import DnisConfig, MagnitudeConfig, PepConfig, StrategyNode
from recsys_embed.training.trainer import train
from tests.embeddings import ranked
from tests.embeddings.ranked import RANKS, Ranked
from tests.training.staged import record, same_state, stop_after_step

CONFIGS = {
    "dnis": DnisConfig(blocks=2, search_epochs=5, alpha_lr=0.04),
    "magnitude": MagnitudeConfig(),
    "pep": PepConfig(blocks=2),
}
TURNED = {"a": RANKS["noise"], "b": RANKS["second"], "c": RANKS["all"], "d": RANKS["first"]}
"""The same ranks under other names, in another order."""


def widths(
    config: StrategyNode, ranks: Mapping[str, tuple[int, ...]] = RANKS, *, shuffled: bool = False
) -> list[float]:
    """Weights an id keeps on average, by feature."""
    model = ranked.model(config, ranks)
    train(model, Ranked(24_000, ranks=ranks, shuffled=shuffled), ranked.training(epochs=1), progress=False)
    found = [kept.sum().item() for kept in ranked.kept_shares(model.embedding).values()]
    assert sum(found) == pytest.approx(20)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_it_finds_planted_ranks_whatever_features_are_called(name: str) -> None:
    """The true order, near the true widths, without the noise; under other names and in another order the same."""
    every, first, second, noise = widths(CONFIGS[name])
    assert every > 13.5
    assert 1.8 < first < 3
    assert 1.8 < second < 3
    assert noise < 1
    noise, second, every, first = widths(CONFIGS[name], TURNED)
    assert every > 13.5
    assert 1.8 < first < 3
    assert 1.8 < second < 3
    assert noise < 1


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_shuffled_labels_show_no_preference(name: str) -> None:
    """About 5 of 16 dimensions for each feature, up to the noise of what is learned by a block and dimension."""
    assert all(3 < width < 7 for width in widths(CONFIGS[name], shuffled=True))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_weights_per_id_are_those_that_stay(config: StrategyNode) -> None:
    """All while nothing is pruned; then K in all, by a count of what the vectors of each block have left."""
    features = (Feature("a", 50), Feature("b", 7), Feature("c", 50, vocabulary="a"))
    emb = EmbeddingLayer(features, 5, strategy=config, budget=0.4, exact=())
    strategy = ranked.strategy_of(emb)
    assert strategy.weights_per_id(4) == {"a": [5.0] * 4, "b": [5.0] * 4}
    for stage in strategy.stages():
        emb.begin_stage(stage.name)
        emb.end_stage()
    found = strategy.weights_per_id(4)
    for name, size in (("a", 50), ("b", 7)):
        left = (emb.vectors(name, torch.arange(size)) != 0).sum(1).tolist()
        members = [[left[id_] for id_ in range(size) if id_ * 4 // size == block] for block in range(4)]
        assert found[name] == pytest.approx([sum(one) / len(one) for one in members])
    total = {name: means[0] for name, means in strategy.weights_per_id(1).items()}
    assert 50 * total["a"] + 7 * total["b"] == pytest.approx(strategy.kept)
    assert 0 < strategy.kept < 57 * 5


@pytest.mark.parametrize("tables", ["adagrad", "adam"])
@pytest.mark.parametrize(
    ("config", "epochs_before"),
    [(MagnitudeConfig(warm_up_epochs=2), 2), (PepConfig(blocks=2, search_epochs=2), 2)],
    ids=lambda one: getattr(one, "name", None),
)
def test_resumed_in_every_stage(
    config: StrategyNode, epochs_before: int, tables: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped before and after pruning, and at the edges: the same to the last bit."""
    data = Ranked(600)
    training = ranked.training(
        optimizer={"tables": tables, "tables_lr": 0.05, "dense_lr": 0.003}, patience=2, batch_size=200
    )
    kept = record(monkeypatch)
    straight = ranked.model(config)
    train(straight, data, training, progress=False)
    losses = list(kept.losses)
    edge = 3 * epochs_before
    assert len(losses) == 2 * (edge + 3 * 2)
    for k in (1, edge - 1, edge, edge + 1, edge + 4):
        kept.losses.clear()
        stop_after_step(ranked.model(config), data, training, k, tmp_path / str(k))
        assert len(kept.losses) == 2 * k
        resumed = ranked.model(config)
        train(resumed, data, training, progress=False, checkpoints=tmp_path / str(k))
        assert kept.losses == losses
        assert same_state(straight, resumed)
    assert not torch.equal(
        ranked.strategy_of(straight.embedding).mask, ranked.model(config).embedding.strategies[0].mask
    )
