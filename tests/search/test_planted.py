"""Searches whose right answer is planted: the order of the widths is found, and the noise dropped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import optuna
import pytest

from recsys_embed import EmbeddingLayer
from recsys_embed.config import EmbeddingConfig
from recsys_embed.recommender import Recommender
from recsys_embed.search.space import Space
from recsys_embed.training.trainer import train
from tests.embeddings.ranked import RANKS, D, N, Products, Ranked, training

BUDGET = 4 * (N * 16 + 2 * (N * 2 + 2 * D))
"""Bytes of the planted answer: widths 16, 2, 2 with their projections, and 0."""
RENAMED = {"zebra": RANKS["noise"], "apple": RANKS["second"], "mango": RANKS["all"], "fig": RANKS["first"]}
TRIALS = 24


class Searched:
    """Trials of a sampler on planted data; a configuration that was trained is not trained again."""

    known: ClassVar[dict[tuple[str, str], tuple[float, list[float]]]] = {}

    def __init__(
        self, sampler: optuna.samplers.BaseSampler, ranks: Mapping[str, tuple[int, ...]], *, shuffled: bool = False
    ) -> None:
        self._ranks, self._data = ranks, Ranked(4000, ranks=ranks, shuffled=shuffled)
        self._space = Space(self._data.features, D, EmbeddingConfig(budget=BUDGET, exact=()))
        self._told = f"{list(ranks)} {shuffled}"
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        study.optimize(self._objective, n_trials=TRIALS)
        trials = sorted(study.trials, key=lambda trial: -trial.values[0])
        self.aucs = np.array([trial.values[0] for trial in trials])
        self.widths = np.array([trial.user_attrs["widths"] for trial in trials])
        """``[trials, 4]``, of the true ranks 16, 2, 2 and 0; the best trial first."""

    def _objective(self, trial: optuna.Trial) -> float:
        embedding = self._space.suggest(trial).embedding
        key = (self._told, embedding.model_dump_json())
        if key not in self.known:
            emb = EmbeddingLayer(self._data.features, D, **dict(embedding))
            assert emb.budget_report.serve_bytes <= BUDGET
            model = Recommender(emb, Products())
            result = train(model, self._data, training(epochs=3), progress=False)
            found = {name: means[0] for one in emb.plan.strategies for name, means in one.weights_per_id(1).items()}
            roles = sorted(self._ranks, key=lambda name: list(RANKS.values()).index(self._ranks[name]))
            self.known[key] = (result.val["auc"], [found[name] for name in roles])
        auc, widths = self.known[key]
        trial.set_user_attr("widths", widths)
        return auc


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [RANKS, RENAMED], ids=["as planted", "renamed and reordered"])
def test_gaussian_processes_find_the_true_ranks(ranks: Mapping[str, tuple[int, ...]]) -> None:
    best = Searched(optuna.samplers.GPSampler(seed=0, deterministic_objective=False), ranks).widths[0]
    assert best[0] == 16
    assert best[3] == 0
    assert best[1] > 0
    assert best[2] > 0


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [RANKS, RENAMED], ids=["as planted", "renamed and reordered"])
def test_random_search_prefers_the_order_of_the_true_ranks(ranks: Mapping[str, tuple[int, ...]]) -> None:
    """Its best trials together: alone, any of them may have its bytes where they are of no use."""
    found = Searched(optuna.samplers.RandomSampler(seed=0), ranks)
    preferred = found.widths[: TRIALS // 4].mean(0) - found.widths.mean(0)
    assert preferred[0] > 3
    assert preferred[3] < 0
    assert preferred[0] == preferred.max()


@pytest.mark.slow
def test_with_shuffled_labels_there_is_no_preference() -> None:
    found = Searched(optuna.samplers.RandomSampler(seed=0), RANKS, shuffled=True)
    assert np.abs(found.aucs - 0.5).max() < 0.05
    best = TRIALS // 4
    spread = found.widths.std(0) / best**0.5
    assert (np.abs(found.widths[:best].mean(0) - found.widths.mean(0)) < 3 * spread).all()
