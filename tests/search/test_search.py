"""The job of a search: its files, what selects, what is done again, and what is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient

from recsys_embed import jobs
from recsys_embed.config import Config, load_config, parse_config
from recsys_embed.errors import BudgetError
from recsys_embed.report import run
from recsys_embed.report.results import read_results
from recsys_embed.search.table import read_search
from tests.clicks import data_of

METHODS = ["full", "uniform", "mde", "optuna", "pareto"]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def config_of(clicks: Path, store: str | None = None, **search: Any) -> Config:
    tracking = {"enabled": False} if store is None else {"uri": store}
    return parse_config(
        {
            "data": data_of(clicks),
            "model": {"name": "dlrm", "dim": 8, "top": [8]},
            "embedding": {"budget": 0.3},
            "training": {"batch_size": 128, "epochs": 2, "threads": 1},
            "search": {"methods": METHODS, "trials": 3, "seeds": [3, 4], **search},
            "tracking": tracking,
        }
    )


@pytest.fixture(scope="module")
def store(quick_stores: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.fixture(scope="module")
def searched(clicks: Path, store: str, tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path, jobs.Search]:
    config, out = config_of(clicks, store), tmp_path_factory.mktemp("search")
    return config, out, jobs.search(config, out, progress=False)


def test_every_trial_and_every_final_is_a_row(searched: tuple[Config, Path, jobs.Search]) -> None:
    _, out, done = searched
    trials, results = read_search(out), read_results(out / "results.csv")
    assert done.exit_code == 0
    assert trials.groupby("method", sort=False).size().to_dict() == {
        "full": 1, "uniform": 1, "mde": 1, "optuna": 3, "pareto": 3,
    }  # fmt: skip
    assert trials.groupby("method")["finalist"].sum().eq(1).all()
    assert list(results["found_by"]) == [name for name in METHODS for _ in range(2)]
    assert list(results["seed"]) == [3, 4] * len(METHODS)
    budget = int(trials["budget_bytes"].iloc[0])
    ended = trials[(trials["status"] == "ok") & (trials["method"] != "full")]
    assert (ended["serve_bytes"] <= budget).all()
    constrained = ended[ended["method"] != "pareto"]
    assert (constrained["left_over"] == budget - constrained["serve_bytes"]).all()


def test_what_was_found_is_trained_as_it_was_judged(searched: tuple[Config, Path, jobs.Search]) -> None:
    """The first seed is that of the trials: its run repeats the trial that was chosen, bit for bit."""
    _, out, _ = searched
    trials, results = read_search(out), read_results(out / "results.csv")
    chosen = trials[trials["finalist"]].set_index("method")["val_auc"]
    finals = results[results["seed"] == 3].set_index("found_by")["val_auc"]
    assert chosen.to_dict() == finals.to_dict()


def test_the_winner_has_the_best_mean_validation_auc_within_the_budget(
    searched: tuple[Config, Path, jobs.Search],
) -> None:
    _, out, done = searched
    results = read_results(out / "results.csv")
    budget = int(read_search(out)["budget_bytes"].iloc[0])
    assert (results.loc[results["found_by"] == "full", "serve_bytes"] > budget).all()
    means = results[results["serve_bytes"] <= budget].groupby("found_by")["val_auc"].mean()
    assert done.best is not None
    best = load_config(done.best)
    winner = results[(results["found_by"] == means.idxmax()) & (results["seed"] == 3)].iloc[0]
    assert winner["val_auc"] == means_of_seed(out / "best" / "model", best, done)
    assert best.training.seed == best.embedding.seed == 3


def means_of_seed(model: Path, best: Config, done: jobs.Search) -> float:
    """The validation AUC of the winner's own training, by training it once more."""
    _, trained = jobs.train(best.model_copy(update={"tracking": best.tracking.model_copy(update={"enabled": False})}),
                            model.parent, progress=False)  # fmt: skip
    return float(trained.row["val_auc"])


def test_best_toml_alone_trains_the_model_that_was_exported(
    searched: tuple[Config, Path, jobs.Search], tmp_path: Path
) -> None:
    _, out, done = searched
    assert done.best is not None
    again, _ = jobs.train(load_config(done.best, ("tracking.enabled=false",)), tmp_path / "again", progress=False)
    files = sorted(path.name for path in again.glob("*.safetensors"))
    assert files
    for name in files:
        digests = [hashlib.sha256((folder / name).read_bytes()).digest() for folder in (again, out / "best" / "model")]
        assert digests[0] == digests[1]


def test_the_same_command_again_trains_nothing(
    searched: tuple[Config, Path, jobs.Search], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, out, done = searched
    before = (out / "search.csv").read_bytes()
    monkeypatch.setattr(run, "build_recommender", lambda *args, **kwargs: pytest.fail("it trained"))
    monkeypatch.setattr(jobs, "train", lambda *args, **kwargs: (done.model, None))
    again = jobs.search(config, out, progress=False)
    assert again.results["reused"].all()
    assert (out / "search.csv").read_bytes() == before


def test_runs_are_nested_under_one_of_ours_and_no_trial_twice(
    searched: tuple[Config, Path, jobs.Search], store: str
) -> None:
    client = MlflowClient(tracking_uri=store)
    experiment = client.get_experiment_by_name("recsys_embed")
    runs = client.search_runs([experiment.experiment_id], max_results=500)
    parents = {one.info.run_id for one in runs if "mlflow.parentRunId" not in one.data.tags}
    trials = [one for one in runs if "search_trial" in one.data.tags]
    names = [(one.data.tags["search_method"], one.data.tags["search_trial"]) for one in trials]
    assert {one.data.tags["mlflow.parentRunId"] for one in trials} <= parents
    table = read_search(searched[1])
    assert {name for name in names if name[0] in ("optuna", "pareto")} == {
        (method, str(trial)) for method, trial in zip(table["method"], table["trial"], strict=True)
        if method in ("optuna", "pareto")
    }  # fmt: skip
    sampled = [name for name in names if name[0] in ("optuna", "pareto")]
    assert len(set(sampled)) == len(sampled)


def test_a_search_begins_with_the_best_that_tracking_holds(
    searched: tuple[Config, Path, jobs.Search], clicks: Path, store: str, tmp_path: Path
) -> None:
    earlier = read_search(searched[1])
    earlier = earlier[(earlier["method"] == "optuna") & (earlier["status"] == "ok")]
    best = earlier.sort_values("val_auc", ascending=False)["params"].iloc[0]
    config = config_of(clicks, store, methods=["optuna"], trials=1, warm_start=1, seed=9, seeds=[3])
    jobs.search(config, tmp_path / "warm", progress=False)
    (found,) = read_search(tmp_path / "warm")["params"]
    assert found == best


def test_labels_of_the_test_split_decide_nothing(clicks: Path, tmp_path: Path) -> None:
    rows = pd.read_csv(clicks)
    path, chosen = tmp_path / "clicks.csv", []
    for place in range(2):
        if place:
            test = np.flatnonzero(rows["part"] == "test")
            labels = rows["clicked"].to_numpy().copy()
            labels[test] = np.random.default_rng(0).permutation(labels[test])
            assert not np.array_equal(labels, rows["clicked"])
            rows["clicked"] = labels
        rows.to_csv(path, index=False)
        config = config_of(path, methods=["uniform", "mde", "random", "magnitude"], trials=2, seeds=[0])
        done = jobs.search(config, tmp_path / str(place), progress=False)
        assert done.best is not None
        chosen.append((done.best.read_bytes(), done.results["test_auc"].tolist()))
    assert chosen[0][0] == chosen[1][0]
    assert chosen[0][1] != chosen[1][1]


def test_a_budget_that_nothing_fits_names_the_nearest(clicks: Path, tmp_path: Path) -> None:
    config = config_of(clicks, methods=["uniform", "magnitude"])
    tight = config.model_copy(update={"embedding": config.embedding.model_copy(update={"budget": 40})})
    with pytest.raises(BudgetError) as caught:
        jobs.search(tight, tmp_path / "tight", progress=False)
    fits = config.model_copy(
        update={"embedding": config.embedding.model_copy(update={"budget": caught.value.nearest_bytes})}
    )
    assert jobs.search(fits, tmp_path / "fits", progress=False).best is not None


def test_a_search_in_which_all_diverges_ends_without_a_page(clicks: Path, tmp_path: Path) -> None:
    config = config_of(clicks, methods=["mde"])
    wild = config.training.optimizer.model_copy(update={"tables_lr": 1e30, "dense_lr": 1e30})
    training = config.training.model_copy(update={"optimizer": wild})
    done = jobs.search(config.model_copy(update={"training": training}), tmp_path, progress=False)
    assert (done.page, done.best, done.model, done.exit_code) == (None, None, None, 4)
    assert list(read_search(tmp_path)["status"]) == ["diverged"]
