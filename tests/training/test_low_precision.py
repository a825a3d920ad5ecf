"""Low-precision tables in training: they learn what fp32 learns, through stochastic rounding, and resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recsys_embed import EmbeddingLayer, Feature
from recsys_embed.config import Config, parse_config
from recsys_embed.recommender import Recommender, build_recommender
from recsys_embed.tables import store
from recsys_embed.training.metrics import auc
from recsys_embed.training.trainer import TrainResult, predict, train


def settings(storage: str, budget: float, **training: Any) -> Config:
    optimizer = {"tables": "rowwise_adagrad", "tables_lr": 0.1, "dense_lr": 0.005}
    strategy = {"name": "hash", "storage": storage}
    return parse_config(
        {
            "data": {"path": "unused"},
            "model": {"name": "dcn_v2", "dim": 4, "cross_layers": 1, "hidden": [16]},
            "embedding": {"strategy": strategy, "budget": budget, "exact": [], "backend": "reference"},
            "training": {"batch_size": 200, "optimizer": optimizer, **training},
        }
    )


def fit(storage: str, budget: float) -> tuple[EmbeddingLayer, float, float]:
    """Hashed tables alone, whose rows are summed to a logit, by SGD on planted logits: layer, AUC, best possible AUC.

    A step moves a weight by at most 0.003 for each of its occurrences: mostly below half of int8's quantum of 0.01.
    """
    draw = np.random.default_rng(0)
    users, items = draw.normal(size=300), draw.normal(size=200)
    ids = np.stack([draw.integers(0, 300, 24_000), draw.integers(0, 200, 24_000)])
    truth = users[ids[0]] + items[ids[1]]
    label = (draw.random(24_000) < 1 / (1 + np.exp(-truth))).astype(np.float32)
    features = [Feature("user", 300), Feature("item", 200)]
    strategy = {"name": "hash", "storage": storage}
    emb = EmbeddingLayer(features, 4, strategy=strategy, budget=budget, exact=(), backend="reference")
    optimizer = emb.optimizer("sgd", lr=0.3)
    for _ in range(8):
        for start in range(0, 20_000, 100):
            logits = emb(torch.tensor(ids[:, start : start + 100])).sum((1, 2))
            target = torch.tensor(label[start : start + 100])
            optimizer.zero_grad()
            torch.nn.functional.binary_cross_entropy_with_logits(logits, target).backward()
            optimizer.step()
    with torch.no_grad():
        scores = emb(torch.tensor(ids[:, 20_000:])).sum((1, 2)).double().numpy()
    return emb, auc(label[20_000:], scores), auc(label[20_000:], truth[20_000:])


def test_int8_learns_what_fp32_learns_and_rounding_to_nearest_does_not(monkeypatch: pytest.MonkeyPatch):
    # As many rows, and so the same collisions, in a quarter of the bytes.
    fp32, whole, best = fit("fp32", 1.0)
    int8, quarter, _ = fit("int8", 0.25)
    assert int8.plan.settings == fp32.plan.settings
    assert int8.plan.serve_bytes * 4 == fp32.plan.serve_bytes
    monkeypatch.setattr(store, "noise_of", half)
    _, nearest, _ = fit("int8", 0.25)
    assert 0.65 < whole < best
    assert quarter > whole - 0.01
    assert nearest < whole - 0.1


def half(seeds: Tensor, rows: Tensor, width: int, step: int) -> Tensor:
    """Noise that rounds to nearest."""
    return torch.full((len(rows), width), 0.5)


def test_a_resumed_run_ends_in_the_same_bits(toy: Any, tmp_path: Path):
    data = toy(rows=2000)
    weights, scores = [], []
    for epochs in ([3], [1, 3]):
        for last in epochs:
            model, result = stop_after(last, settings("int8", 0.2, epochs=3), data, tmp_path / str(len(epochs)))
        assert result is not None
        weights.append(model.state_dict())
        scores.append(predict(model, data, "val", 500))
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert {t.dtype for name, t in weights[0].items() if ".tables." in name} == {torch.int8}
    np.testing.assert_array_equal(*scores)


def stop_after(epoch: int, config: Config, data: Any, folder: Path) -> tuple[Recommender, TrainResult | None]:
    """Train, and be interrupted after an epoch unless it is the last."""

    class Stopped(Exception):
        pass

    def seen(line: dict[str, Any]) -> None:
        if line["epoch"] == epoch < config.training.epochs:
            raise Stopped

    model = build_recommender(config, data.features, data.num_dense)
    try:
        return model, train(model, data, config.training, progress=False, checkpoints=folder, on_epoch=seen)
    except Stopped:
        return model, None
