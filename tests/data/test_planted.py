"""Planted data: the law, the truth and the best possible scores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import log_loss, roc_auc_score

import recsys_embed.data.rows as rows_module
from recsys_embed.config import DataConfig, PlantedConfig
from recsys_embed.data import Planted, planted, prepare
from recsys_embed.errors import ConfigError

SMALL = {"cardinalities": (300, 100, 20), "multi_valued": 1, "numeric": 2}


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def test_fewer_rows_are_the_beginning_of_more() -> None:
    long, _ = planted(rows=70_000, **SMALL)
    short, _ = planted(rows=1_000, **SMALL)
    pd.testing.assert_frame_equal(long.head(1_000), short)
    assert len(long) == 70_000
    other, _ = planted(rows=1_000, seed=1, **SMALL)
    assert not other["c0"].equals(short["c0"])


def test_values_follow_the_law_under_names_that_hide_it() -> None:
    frame, _ = planted(rows=100_000, exponent=1.2, **SMALL)
    counts = frame["c1"].value_counts()
    weights = np.arange(1, 101) ** -1.2
    np.testing.assert_allclose(counts.to_numpy()[:10] / 1e5, (weights / weights.sum())[:10], rtol=0.05)
    numbers = [int(name.split("-")[1], 16) for name in counts.index]
    assert sorted(numbers) == list(range(100))
    assert abs(np.corrcoef(numbers, np.arange(100))[0, 1]) < 0.3
    lengths = frame["m0"].fillna("").map(lambda cell: len([t for t in cell.split("|") if t]))
    assert abs(lengths.mean() - 2) < 0.05
    assert abs(frame["n0"].isna().mean() - 0.05) < 0.005


@pytest.mark.parametrize("noise", [0.0, 1.5])
def test_the_best_scores_are_those_of_the_true_probabilities(noise: float) -> None:
    frame, bayes = planted(rows=30_000, noise=noise, **SMALL)
    truth = Planted(PlantedConfig(rows=30_000, noise=noise, **SMALL))
    logits = truth.logits(frame)
    if noise:  # averaged by brute force
        draws = np.random.default_rng(0).normal(size=2_000)
        probability = np.array([sigmoid(x + noise * draws).mean() for x in logits])
    else:
        probability = sigmoid(logits)
    tolerance = 2e-3 if noise else 1e-12
    assert bayes["auc"] == pytest.approx(roc_auc_score(frame["label"], probability), abs=tolerance)
    assert bayes["logloss"] == pytest.approx(log_loss(frame["label"], probability), abs=tolerance)


def test_labels_are_drawn_with_the_true_probability() -> None:
    frame, _ = planted(rows=200_000, noise=1.0, **SMALL)
    generator = Planted(PlantedConfig(rows=200_000, noise=1.0, **SMALL))
    probability = generator.probability(generator.logits(frame))
    for low, high in ((0.0, 0.2), (0.2, 0.4), (0.4, 0.6), (0.6, 1.0)):
        there = (probability >= low) & (probability < high)
        error = frame["label"][there].mean() - probability[there].mean()
        assert abs(error) < 4 * np.sqrt(0.25 / there.sum())


def test_pairs_matter() -> None:
    """The logits of all pairs of values: a sum of a row's and a column's effect, and a term of rank 2."""
    generator = Planted(PlantedConfig(cardinalities=(30, 20), multi_valued=0, numeric=0))
    grid = [(f"c0-{i:02x}", f"c1-{j:02x}") for i in range(30) for j in range(20)]
    logits = generator.logits(pd.DataFrame(grid, columns=["c0", "c1"])).reshape(30, 20)
    rest = logits - logits.mean(1, keepdims=True) - logits.mean(0, keepdims=True) + logits.mean()
    assert np.abs(rest).mean() > 0.05
    assert np.linalg.matrix_rank(rest, tol=1e-9) == 2


def test_noise_lowers_what_can_be_reached() -> None:
    aucs = [planted(rows=20_000, noise=noise, **SMALL)[1]["auc"] for noise in (0.0, 1.0, 3.0)]
    assert aucs[0] > aucs[1] > aucs[2] > 0.5


def test_the_data_set_knows_its_optimum_on_test_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = DataConfig(planted=PlantedConfig(rows=80_000, **SMALL))
    dataset = prepare(config, tmp_path / "one")
    assert dataset.name == "planted"
    assert [f.name for f in dataset.features] == ["c0", "c1", "c2", "m0"]
    assert dataset.dense == ("n0", "n1", "n0:missing", "n1:missing")
    frame, _ = planted(rows=80_000, **SMALL)
    probability = sigmoid(Planted(PlantedConfig(rows=80_000, **SMALL)).logits(frame))
    from recsys_embed.data.split import uniform

    test = uniform(0, 0, 80_000) >= 0.9
    assert dataset.rows("test") == test.sum()
    assert dataset.bayes is not None
    assert dataset.bayes["auc"] == pytest.approx(roc_auc_score(frame["label"][test], probability[test]), abs=1e-9)
    assert dataset.bayes["logloss"] == pytest.approx(log_loss(frame["label"][test], probability[test]), abs=1e-9)
    np.testing.assert_array_equal(dataset.labels("test"), frame["label"][test])
    monkeypatch.setattr(rows_module, "CHUNK_ROWS", 999)
    assert prepare(config, tmp_path / "two").fingerprint == dataset.fingerprint
    schema = {"label": "label", "categorical": ["c0", "c1", "c2"], "multi_valued": {"m0": "|"}, "numeric": ["n0", "n1"]}
    assert prepare(frame, schema).fingerprint == dataset.fingerprint


def test_impossible_options() -> None:
    with pytest.raises(ConfigError, match="exponnt"):
        planted(exponnt=1)
    with pytest.raises(ConfigError, match=r"data\.planted\.rows"):
        planted(rows=0)
