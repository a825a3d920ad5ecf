"""Weighted rows: a row of weight n is that row n times, in training and in every metric."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from recsys_embed.data.columns import Columns
from recsys_embed.data.loader import batches
from recsys_embed.errors import DataError
from recsys_embed.recommender import Recommender
from recsys_embed.report.statistics import bootstrap_rows, resampled_auc
from recsys_embed.training.evaluation import predict
from recsys_embed.training.metrics import evaluate, logloss
from recsys_embed.training.optimizers import Optimizers
from recsys_embed.training.step import step
from recsys_embed.training.trainer import train
from tests.backends import EVERY
from tests.training.runs import build, settings
from tests.training.staged import fit, same_state, stop_after, without_times

SGD = {"dense": "sgd", "dense_lr": 0.1}


def with_weights(columns: Columns, weights: np.ndarray) -> Columns:
    return Columns(columns.ids, columns.dense, columns.label, weights.astype(np.float32))


def weights_of(model: Recommender) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


# --- training -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["full", "unified", "compositional"])
@pytest.mark.parametrize("backend", EVERY)
def test_steps_by_whole_weights_are_steps_by_repeated_rows(toy: Any, backend: str, strategy: str) -> None:
    """Batch by batch the same rows, some of them never: the same weights after ten steps of SGD, and the same loss."""
    if backend == "fused":
        pytest.importorskip("fbgemm_gpu")
    data, size, count = toy(rows=400), 40, 10
    times = np.random.default_rng(0).poisson(1.0, 400)
    rows = data.split["train"]
    heavy = list(batches(with_weights(rows, times), size))
    options = {"strategy": strategy, "backend": backend, "budget": 0.5 if strategy != "full" else None, "exact": []}
    config = settings("sgd", embedding=options, optimizer=SGD)
    trained, losses = [], []
    for weighted in (True, False):
        model = build(config, data)
        optimizers = Optimizers(model, config.training)
        for place in range(count):
            batch = heavy[place]
            if not weighted:
                chosen = np.arange(place * size, (place + 1) * size)
                (batch,) = batches(rows.take(np.repeat(chosen, times[chosen])), 10_000)
            done = step(model, batch, optimizers)
            losses.append(done.loss.item())
            assert done.weight == times[place * size : (place + 1) * size].sum()
            assert done.samples == (size if weighted else done.weight)
        trained.append(weights_of(model))
    assert losses[:count] == pytest.approx(losses[count:], rel=1e-5)
    for name, tensor in trained[0].items():
        torch.testing.assert_close(tensor, trained[1][name], rtol=1e-4, atol=1e-6)
    before = weights_of(build(config, data))
    assert any(not torch.equal(before[name], tensor) for name, tensor in trained[0].items())


def test_only_ratios_of_weights_matter(toy: Any) -> None:
    data, config = toy(rows=200), settings("sgd", optimizer=SGD)
    found = []
    for scale in (1e-6, 1.0, 1e6):
        weights = scale * np.random.default_rng(0).gamma(1.0, size=200)
        model = build(config, data)
        optimizers = Optimizers(model, config.training)
        for batch in batches(with_weights(data.split["train"], weights), 50):
            step(model, batch, optimizers)
        found.append(weights_of(model))
    for other in found[1:]:
        for name, tensor in found[0].items():
            torch.testing.assert_close(tensor, other[name], rtol=1e-4, atol=1e-6)


def test_a_batch_without_weight_moves_nothing(toy: Any) -> None:
    data, config = toy(rows=50), settings("sgd", optimizer=SGD)
    model = build(config, data)
    optimizers, before = Optimizers(model, config.training), weights_of(model)
    (batch,) = batches(with_weights(data.split["train"], np.zeros(50)), 50)
    done = step(model, batch, optimizers)
    assert (done.loss.item(), done.weight, done.samples) == (0.0, 0.0, 50)
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights_of(model).items())


def test_a_run_counts_its_rows_by_their_weights(toy: Any) -> None:
    """At a learning rate of almost nothing: losses and metrics of the initial weights on repeated rows."""
    data = toy(rows=1050)
    draw = np.random.default_rng(1)
    times = {split: draw.poisson(1.0, data.rows(split)) for split in ("train", "val")}
    config = settings("sgd", epochs=1, optimizer={"tables_lr": 1e-30, "dense": "sgd", "dense_lr": 1e-30})
    initial = build(config, data)
    scores = {split: predict(initial, data, split, 300) for split in times}
    for split, counts in times.items():
        data.split[split] = with_weights(data.split[split], counts)
    result = train(build(config, data), data, config.training, progress=False)
    labels = {split: np.repeat(data.labels(split), counts) for split, counts in times.items()}
    expected = logloss(labels["train"], np.repeat(scores["train"], times["train"]))
    assert result.history[0]["train_loss"] == pytest.approx(expected, rel=1e-6)
    buckets = np.repeat(data.buckets("val"), times["val"])
    assert result.val == pytest.approx(evaluate(labels["val"], np.repeat(scores["val"], times["val"]), buckets))
    assert result.history[0]["val_auc"] == result.val["auc"]
    assert result.history[0]["val_logloss"] == result.val["logloss"]
    assert result.samples_seen == 1050


def test_a_weighted_run_goes_on_as_if_never_stopped(toy: Any, tmp_path: Path) -> None:
    """In the middle of an epoch: the same weights, and the same mean loss of the epoch."""
    data, config = toy(rows=600, weighted=True), settings(epochs=2)
    straight, expected = fit(config, data)
    assert stop_after(config, data, 3, tmp_path) is not None
    resumed, result = fit(config, data, checkpoints=tmp_path)
    assert same_state(straight, resumed)
    assert without_times(result) == without_times(expected)
    assert result.val == expected.val


def test_what_counts_nothing_judges_nothing(toy: Any) -> None:
    data, config = toy(rows=200), settings(epochs=1)
    labels = data.labels("val")
    for weights, told in ((np.zeros(50), "every weight of the val split is 0"), (labels, "every label .* is 1")):
        data.split["val"] = with_weights(data.split["val"], weights)
        with pytest.raises(DataError, match=told):
            train(build(config, data), data, config.training, progress=False)


# --- metrics --------------------------------------------------------------------------------------------------

rows = st.lists(st.tuples(st.integers(0, 1), st.integers(1, 7), st.integers(0, 3), st.integers(0, 3)), max_size=40)


@given(rows)
def test_every_metric_of_whole_weights_is_that_of_repeated_rows(data: list[tuple[int, int, int, int]]) -> None:
    labels, scores, buckets, times = (np.array([row[i] for row in data], dtype=int) for i in range(4))
    weighted = evaluate(labels, scores / 8, buckets, times)
    repeated = evaluate(*(np.repeat(one, times) for one in (labels, scores / 8, buckets)))
    assert weighted == pytest.approx(repeated, rel=1e-12, nan_ok=True)


@pytest.mark.parametrize("levels", [3, 10**6])
def test_a_weighted_resample_is_one_of_repeated_rows(levels: int) -> None:
    draw = np.random.default_rng(levels)
    labels = (draw.random(200) < 0.3).astype(np.int8)
    scores = (np.floor((draw.normal(size=200) + labels) * levels) / levels).astype(np.float32)
    times, counts = draw.poisson(1.5, 200), draw.poisson(1.0, (10, 200)).astype(np.uint8)
    repeated = resampled_auc(*(np.repeat(one, times) for one in (labels, scores)), np.repeat(counts, times, axis=1))
    assert resampled_auc(labels, scores, counts, times) == pytest.approx(repeated, rel=1e-12)
    subset = np.flatnonzero(draw.random(200) < 0.5)
    every, some = bootstrap_rows(labels, [scores, -scores], [None, subset], resamples=5, weights=times)
    # The first column is the sample itself.
    assert every[0, 0] == pytest.approx(evaluate(labels, scores, weights=times)["auc"], rel=1e-12)
    assert some[1, 0] == pytest.approx(evaluate(labels[subset], -scores[subset], weights=times[subset])["auc"])
    one_class = resampled_auc(labels, scores, counts, np.where(labels, times, 0))
    assert all(map(math.isnan, one_class))
