from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from recsys_embed.report.statistics import bootstrap_rows, draw_cells, resampled_auc, resamples_for, row_resamples


@pytest.mark.parametrize("levels", [3, 50, 10**9])
def test_resampled_auc_is_the_weighted_auc(levels: int) -> None:
    generator = np.random.default_rng(levels)
    labels = (generator.random(300) < 0.3).astype(np.int8)
    scores = (np.floor((generator.normal(size=300) + labels) * levels) / levels).astype(np.float32)
    counts = generator.poisson(1.0, (20, 300)).astype(np.uint8)
    expected = [roc_auc_score(labels, scores, sample_weight=weight) for weight in counts]
    np.testing.assert_allclose(resampled_auc(labels, scores, counts), expected, rtol=0, atol=1e-12)


def test_a_resample_of_one_class_is_undefined() -> None:
    counts = np.array([[1, 1, 0], [1, 0, 1]], dtype=np.uint8)
    out = resampled_auc(np.array([0, 0, 1]), np.array([0.1, 0.2, 0.3]), counts)
    assert np.isnan(out[0])
    assert out[1] == 1.0


def test_resamples_are_seeded_hold_all_rows_and_begin_with_the_sample() -> None:
    first, again = (np.concatenate(list(row_resamples(500, 30, seed=3))) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert first.shape == (31, 500)
    assert (first[0] == 1).all()
    assert (first.sum(axis=1, dtype=int) == 500).all()


def test_resamples_in_chunks_are_those_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(row_resamples(100, 20)))
    monkeypatch.setattr("recsys_embed.report.statistics._CHUNK_BYTES", 700)
    np.testing.assert_array_equal(np.concatenate(list(row_resamples(100, 20))), whole)


def test_the_number_of_resamples_is_bounded() -> None:
    assert resamples_for(10, 1) == 1000
    assert resamples_for(10**7, 100) == 400


def _interval_of_a_difference(trial: int, *, rows: float, runs: float, seeds: float, delta: float) -> tuple[float, ...]:
    """Two methods of three runs each; what varies: rows that suit a method, rows that suit a run, luck of a seed."""
    generator = np.random.default_rng([trial, 7])
    labels = (generator.random(400) < 0.4).astype(np.int8)
    common = generator.normal(size=400)
    scores, cells, kinds = [], [], []
    for cell in range(2):
        own = rows * generator.normal(size=400)
        for seed in range(3):
            signal = 1 + delta * cell + seeds * generator.normal()
            scores.append(signal * labels + common + own + runs * generator.normal(size=400))
            cells.append(cell)
            kinds.append(seed)
    gap = draw_cells(bootstrap_rows(labels, scores, [None], resamples=200)[0], cells, kinds).difference(1, 0)
    return gap.low, gap.high


@pytest.mark.parametrize(
    ("rows", "runs", "seeds"), [(0.5, 0.0, 0.0), (0.0, 0.6, 0.0), (0.05, 0.02, 0.2), (0.4, 0.4, 0.08)]
)
def test_intervals_cover_whatever_the_spread_comes_from(rows: float, runs: float, seeds: float) -> None:
    trials = 100
    drawn = [_interval_of_a_difference(trial, rows=rows, runs=runs, seeds=seeds, delta=0.0) for trial in range(trials)]
    covered = sum(low <= 0 <= high for low, high in drawn)
    assert covered / trials >= 0.95 - 3 * (0.95 * 0.05 / trials) ** 0.5  # three standard errors below nominal


def test_real_differences_are_found() -> None:
    found = [_interval_of_a_difference(trial, rows=0.2, runs=0.2, seeds=0.02, delta=0.5)[0] > 0 for trial in range(30)]
    assert sum(found) >= 29


def test_one_seed_covers_rows_alone_and_a_lone_run_borrows_the_spread_of_others() -> None:
    generator = np.random.default_rng(0)
    aucs = np.repeat(np.array([[0.70], [0.72], [0.74], [0.72]]), 401, axis=1) + 1e-5 * generator.normal(size=(4, 401))
    alone = draw_cells(aucs[[0, 3]], [0, 1], [0, 0])
    assert alone.draws.std(axis=1).max() < 1e-4
    lone = draw_cells(aucs, [0, 0, 0, 1], [0, 1, 2, 0])
    assert lone.draws[1].std() == pytest.approx(0.02, rel=0.15)


def test_rank_intervals_are_single_where_all_is_clear() -> None:
    generator = np.random.default_rng(0)
    aucs = np.array([[0.8], [0.7], [0.6], [0.6]]) + 1e-3 * generator.normal(size=(4, 401))
    assert draw_cells(aucs, [0, 1, 2, 3], [0] * 4).ranks([0, 1, 2, 3]) == [(1, 1), (2, 2), (3, 4), (3, 4)]
