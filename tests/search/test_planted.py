"""Searches whose right answer is planted: the order of the widths is found, and the noise dropped."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import optuna
import pytest
from scipy.stats import spearmanr

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
OPTIMIZER = {"tables": "adagrad", "tables_lr": 0.1, "dense_lr": 0.03}
"""Projections have to learn in sixty steps: with a tenth of their rate, the planted widths are not the best."""


class Searched:
    """Trials of a sampler on planted data; a configuration that was trained is not trained again."""

    known: ClassVar[dict[tuple[str, str], tuple[float, list[float]]]] = {}

    def __init__(
        self,
        sampler: optuna.samplers.BaseSampler,
        ranks: Mapping[str, tuple[int, ...]],
        *,
        shuffled: bool = False,
        seed: int = 0,
        trials: int = TRIALS,
    ) -> None:
        self._ranks, self._data = ranks, Ranked(4000, ranks=ranks, shuffled=shuffled, seed=seed)
        self._space = Space(self._data.features, D, EmbeddingConfig(budget=BUDGET, exact=()))
        self._told = f"{list(ranks)} {shuffled} {seed}"
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(direction="maximize", sampler=sampler)
        study.optimize(self._objective, n_trials=trials)
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
            result = train(model, self._data, training(epochs=3, optimizer=OPTIMIZER), progress=False)
            found = {name: means[0] for one in emb.plan.strategies for name, means in one.weights_per_id(1).items()}
            roles = sorted(self._ranks, key=lambda name: list(RANKS.values()).index(self._ranks[name]))
            self.known[key] = (result.val["auc"], [found[name] for name in roles])
        auc, widths = self.known[key]
        trial.set_user_attr("widths", widths)
        return auc

    @property
    def preferred(self) -> np.ndarray:
        """How the validation AUC of what was trained goes along with each feature's width: Spearman's correlations."""
        found = np.unique(np.column_stack([self.widths, self.aucs]), axis=0)
        return np.array([spearmanr(found[:, place], found[:, -1]).statistic for place in range(4)])


SAMPLERS = {
    "random": lambda: optuna.samplers.RandomSampler(seed=0),
    "gp": lambda: optuna.samplers.GPSampler(seed=0, deterministic_objective=False),
}


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [RANKS, RENAMED], ids=["as planted", "renamed and reordered"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_order_of_the_true_ranks_is_found(sampler: str, ranks: Mapping[str, tuple[int, ...]]) -> None:
    found = Searched(SAMPLERS[sampler](), ranks)
    best = found.widths[0]
    assert best[0] == 16
    assert best[3] <= 2
    assert best[3] <= best[1] + best[2]
    assert found.preferred[0] > 0.6
    assert found.preferred[3] < 0


@pytest.mark.slow
def test_with_shuffled_labels_there_is_no_preference() -> None:
    """Over several shuffles: the trials of one share its rows, and so what these happen to say."""
    found = [Searched(SAMPLERS["random"](), RANKS, shuffled=True, seed=seed, trials=10) for seed in range(4)]
    assert max(np.abs(one.aucs - 0.5).max() for one in found) < 0.06
    assert np.abs(np.mean([one.preferred for one in found], axis=0)).max() < 0.5
