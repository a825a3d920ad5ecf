"""`suggest_layer` in an objective of one's own, with trials of Optuna."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import optuna
import pytest
import torch
from optuna.trial import FixedTrial

import recsys_embed
from recsys_embed import BudgetError, ByteBudget, ConfigError, DataError, EmbeddingLayer, Feature, suggest_layer
from recsys_embed.config import HashConfig
from recsys_embed.testing import draw_ids

FEATURES = [
    Feature("user", 5000),
    Feature("item", 800),
    Feature("history", vocabulary="item", multi_valued=True),
    Feature("u*[r]", 300),
]
STRATEGIES = ["mixed_dimension", "hash", {"name": "compositional", "storage": "int8"}]


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def test_an_objective_of_ones_own() -> None:
    """Every trial is built, trained a step and within its bytes; the best parameters alone give it again."""
    limit = ByteBudget.parse("40KB").resolve(full_bytes=1)
    seen = []

    def objective(trial: optuna.Trial) -> float:
        options = suggest_layer(trial, FEATURES, 8, "40KB", strategies=STRATEGIES, blocks=2)
        emb = EmbeddingLayer(FEATURES, 8, **dict(options))
        assert emb.ledger()["serve_bytes"].sum() == emb.plan.serve_bytes <= limit
        tables = emb.optimizer("rowwise_adagrad", lr=0.1)
        loss = emb(draw_ids(FEATURES, 20)).square().mean()
        loss.backward()
        tables.step()
        emb.after_step()
        seen.append(options)
        return float(loss.detach()) + emb.plan.serve_bytes

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=1, n_startup_trials=5))
    study.optimize(objective, n_trials=12)
    assert {trial.state.name for trial in study.trials} == {"COMPLETE"}
    assert len({options.model_dump_json() for options in seen}) > 6
    names = {node.name for options in seen for node in options.strategy.values()}
    assert names == {"mixed_dimension", "hash", "compositional"}
    again = suggest_layer(FixedTrial(study.best_params), FEATURES, 8, "40KB", strategies=STRATEGIES, blocks=2)
    assert again == seen[study.best_trial.number]


def test_strategies_are_names_tables_or_configs_and_options_those_of_the_layer() -> None:
    trial = FixedTrial({"share.user": 0.6, "share.item": 0.3, "share.u*[r]": 0.3})
    found = [
        suggest_layer(trial, FEATURES, 8, 0.2, strategies=[one], exact=["u*[r]"])
        for one in ("hash", {"name": "hash"}, HashConfig())
    ]
    assert found[0] == found[1] == found[2]
    assert found[0].exact == ("u*[r]",)
    assert suggest_layer(trial, FEATURES, 8, 0.2, strategies=["hash"], exact=()).exact == ()
    with pytest.raises(DataError):  # ids are those of one's own model: unknown ones are errors, as in any other layer
        EmbeddingLayer(FEATURES[:1], 8, **dict(suggest_layer(trial, FEATURES[:1], 8, 0.2)))(torch.tensor([[5000]]))


def test_what_is_refused() -> None:
    trial = FixedTrial({})
    for strategies, path, text in (
        (["hush"], "strategies.0", "hush"),
        ([{"name": "hash", "chunks": 2}], "strategies.0.chunks", "unknown key"),
        ([], "strategies", "at least 1"),
        (["hash", "hash"], "strategies", "lists each once"),
        ([{"name": "hash", "bytes": 100}], "search.strategies", "leave out 'bytes'"),
    ):
        with pytest.raises(ConfigError, match=text) as caught:
            suggest_layer(trial, FEATURES, 8, 0.2, strategies=strategies)
        assert caught.value.path == path
    with pytest.raises(ConfigError, match="blocks"):
        suggest_layer(trial, FEATURES, 8, 0.2, blocks=0)
    with pytest.raises(ConfigError, match="'nobody', which is no feature"):
        suggest_layer(trial, FEATURES, 8, 0.2, exact=["nobody"])
    with pytest.raises(BudgetError) as error:
        suggest_layer(trial, FEATURES, 8, 0.2, exact=["user"])
    assert error.value.nearest_bytes == 5000 * 8 * 4


def test_optuna_is_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anything that answers is a trial."""

    class Trial:
        def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
            return (low + high) / 2

        def suggest_categorical(self, name: str, choices: Sequence[str]) -> str:
            return choices[0]

    for module in [name for name in sys.modules if name.startswith("recsys_embed.search")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "optuna", None)
    found = recsys_embed.suggest_layer(Trial(), FEATURES, 8, 0.2)
    assert EmbeddingLayer(FEATURES, 8, **dict(found)).plan.serve_bytes <= 0.2 * 6100 * 32
