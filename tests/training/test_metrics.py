"""Metrics against scikit-learn and against counting pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import log_loss, roc_auc_score

from recsys_embed.errors import DataError, DivergedError
from recsys_embed.training.metrics import auc, calibration, evaluate, logloss, normalised_entropy

rows = st.lists(
    st.tuples(st.integers(0, 1), st.integers(0, 6), st.integers(0, 3)), min_size=0, max_size=40
)  # few distinct scores: many ties


@settings(max_examples=200, deadline=None)
@given(rows)
def test_auc_counts_pairs(data: list[tuple[int, int, int]]) -> None:
    labels, scores, weights = (np.array([row[i] for row in data], dtype=float) for i in range(3))
    won = possible = 0.0
    for i in range(len(data)):
        for j in range(len(data)):
            if labels[i] == 1 and labels[j] == 0:
                pair = weights[i] * weights[j]
                possible += pair
                won += pair * (scores[i] > scores[j]) + pair / 2 * (scores[i] == scores[j])
    got = auc(labels, scores, weights)
    assert math.isnan(got) if possible == 0 else got == pytest.approx(won / possible, rel=1e-12)


@pytest.mark.parametrize("decimals", [1, 3, 17])
@pytest.mark.parametrize("weighted", [False, True])
def test_oracle(decimals: int, weighted: bool) -> None:
    draw = np.random.default_rng(decimals)
    scores = draw.uniform(size=5000).round(decimals).clip(1e-9, 1 - 1e-9)
    labels = (draw.uniform(size=5000) < scores).astype(np.float32)
    weights = draw.uniform(size=5000) if weighted else None
    assert auc(labels, scores, weights) == pytest.approx(
        roc_auc_score(labels, scores, sample_weight=weights), rel=1e-12
    )
    assert logloss(labels, scores, weights) == pytest.approx(log_loss(labels, scores, sample_weight=weights), rel=1e-12)


def test_auc_is_exact() -> None:
    labels, scores = [0, 1, 0, 1], [0.1, 0.2, 0.3, 0.4]
    assert auc(labels, scores) == 0.75
    assert auc(labels, [7.0] * 4) == 0.5
    assert auc([1, 0], [-1e308, 1e308]) == 0.0
    # Neighbouring float64 numbers that float32 would tie.
    assert auc([0, 1], [0.5, np.nextafter(0.5, 1)]) == 1.0


@pytest.mark.parametrize("labels", [[], [1, 1, 1], [0, 0]])
def test_one_class_is_undefined(labels: list[int]) -> None:
    scores = np.linspace(0.1, 0.9, len(labels))
    assert math.isnan(auc(labels, scores))
    assert math.isnan(normalised_entropy(labels, scores))
    assert math.isnan(logloss(labels, scores)) == (not labels)
    assert math.isnan(calibration(labels, scores)) == (1 not in labels)


def test_known_answers() -> None:
    assert logloss([1, 0], [0.5, 0.5]) == pytest.approx(math.log(2))
    assert logloss([1, 0], [0.0, 1.0]) == pytest.approx(-math.log(1e-15), rel=1e-3)
    assert normalised_entropy([1, 0, 0, 0], [0.25] * 4) == pytest.approx(1)
    assert normalised_entropy([1, 0, 0, 0], [0.9, 0.1, 0.1, 0.1]) < 1
    assert calibration([1, 0, 0, 0], [0.5] * 4) == 2


def test_buckets() -> None:
    labels = np.array([0, 1, 0, 1, 1, 1, 0, 1])
    scores = np.array([0.1, 0.9, 0.9, 0.1, 0.5, 0.6, 0.4, 0.4])
    result = evaluate(labels, scores, np.array([0, 0, 1, 1, 2, 2, 3, 3], dtype=np.int8))
    assert (result["auc_head"], result["auc_torso"], result["auc_unseen"]) == (1, 0, 0.5)
    assert math.isnan(result["auc_tail"])
    assert result["auc"] == pytest.approx(roc_auc_score(labels, scores), rel=1e-12)
    assert list(result) == [
        *("auc", "logloss", "ne", "calibration"),
        *("auc_head", "auc_torso", "auc_tail", "auc_unseen"),
    ]
    assert math.isnan(evaluate(labels, scores)["auc_head"])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_score_that_is_not_finite_is_never_dropped(bad: float) -> None:
    for metric in (auc, logloss, normalised_entropy, calibration, evaluate):
        with pytest.raises(DivergedError, match="row 1"):
            metric([0, 1, 1], [0.5, bad, 0.5])


def test_bad_input() -> None:
    with pytest.raises(DataError, match="row 2"):
        auc([0, 2], [0.1, 0.2])
    with pytest.raises(DataError, match="one row each"):
        auc([0, 1], [0.1])
    with pytest.raises(DataError, match="negative"):
        auc([0, 1], [0.1, 0.2], [1, -1])
    with pytest.raises(DataError, match="buckets"):
        evaluate([0, 1], [0.1, 0.2], [0])
