"""Runs in MLflow, read back from its store; and that no store can stop a training."""

from __future__ import annotations

import json
import logging
import threading
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from recsys_embed.errors import StackError
from recsys_embed.features import Feature
from recsys_embed.tracking import Tracker
from recsys_embed.tracking.operations import flatten
from recsys_embed.tracking.uris import tracking_uri

pytest.importorskip("mlflow")


def client(uri: str = "sqlite:///mlflow.db") -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def test_a_report_is_a_run_with_a_nested_run_per_training(job: Any, tmp_path: Path) -> None:
    tracker = Tracker(job.config(), "report clicks", job="report")
    assert not Path("mlflow.db").exists()  # nothing is opened before there is something to log
    nested = tracker.training(
        job.config(), job.row, history=job.history, ledger=job.ledger, features=[Feature("user", 20)]
    )
    page = tmp_path / "report.html"
    page.write_text("<p>hello")
    tracker.artifacts([page, tmp_path / "absent"])
    tracker.close()

    store = client()
    experiment = store.get_experiment_by_name("clicks")
    runs = {run.info.run_id: run for run in store.search_runs([experiment.experiment_id])}
    assert set(runs) == {tracker.run_id, nested}
    parent, child = runs[tracker.run_id], runs[nested]
    assert child.data.tags["mlflow.parentRunId"] == tracker.run_id
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert child.data.params["embedding.budget"] == "0.5"
    assert '"user*": {"name": "hash"' in child.data.params["embedding.strategy"]
    assert "version.torch" in parent.data.tags
    # Finite numbers only; the curve and the final value do not overwrite each other.
    assert child.data.metrics["test_auc"] == 0.71
    assert child.data.metrics["serve_bytes"] == 320
    assert child.data.tags["not_finite.test_ne"] == "inf at step 0"
    assert child.data.tags["not_finite.train_loss"] == "nan at step 2"
    assert not {"test_ne", "auc_unseen", "coarse", "seed"} & set(child.data.metrics)
    assert [(m.step, m.value) for m in store.get_metric_history(nested, "val_auc")] == [(1, 0.6), (2, 0.7)]
    assert [m.step for m in store.get_metric_history(nested, "train_loss")] == [1]
    assert child.data.metrics["best_val_auc"] == 0.7
    assert child.inputs.dataset_inputs[0].dataset.digest == "f" * 32
    assert {file.path for file in store.list_artifacts(nested)} == {"config.toml", "ledger.csv", "features.csv"}
    assert "report.html" in {file.path for file in store.list_artifacts(tracker.run_id)}
    assert Path("mlruns").is_dir()  # beside the database
    sizes = pd.read_csv(store.download_artifacts(nested, "features.csv", str(tmp_path)))
    assert sizes.loc[0, ["feature", "cardinality", "rows", "width"]].tolist() == ["user", 20, 10, 8]


def test_a_tuned_run_is_told_from_the_default_one(job: Any) -> None:
    tracker = Tracker(job.config(), "report clicks", job="report")
    tuning = {"epochs": 1, "trial": 2, "values": {"tables_lr": 0.3}}
    ids = [tracker.training(job.config(), job.row | {"tuned": bool(how), "tuning": how}) for how in ({}, tuning)]
    tracker.close()
    default, tuned = (client().get_run(run) for run in ids)
    assert "tuning" not in default.data.tags
    assert json.loads(tuned.data.tags["tuning"]) == tuning
    assert default.info.run_name == "hash 0.5 seed 1"
    assert tuned.info.run_name == "hash 0.5 tuned, epochs 10 seed 1"


def test_a_single_training_logs_epochs_as_they_come(job: Any) -> None:
    tracker = Tracker(job.config(), "train", job="train")
    for epoch in job.history:
        tracker.epoch(epoch)
    assert client().get_run(tracker.run_id).info.status == "RUNNING"
    assert tracker.training(job.config(), job.row, ledger=job.ledger, nested=False) == tracker.run_id
    tracker.close("FAILED")
    run = client().get_run(tracker.run_id)
    assert run.info.status == "FAILED"
    assert run.data.metrics["val_auc"] == 0.7
    assert run.data.tags["run"] == "abc"


def test_an_active_run_is_used_and_left_open(job: Any) -> None:
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri("sqlite:///own.db")
    try:
        with mlflow.start_run() as active:
            mlflow.log_param("model.dim", "theirs")
            tracker = Tracker(job.config(), "report", job="report")
            nested = tracker.training(job.config(), job.row)
            tracker.close()
            assert tracker.run_id == active.info.run_id
            assert mlflow.get_run(active.info.run_id).info.status == "RUNNING"
        assert mlflow.get_run(nested).data.tags["mlflow.parentRunId"] == active.info.run_id
        assert mlflow.get_run(active.info.run_id).data.params["model.dim"] == "theirs"
        assert mlflow.get_run(active.info.run_id).data.params["embedding.budget"] == "0.5"
        assert not Path("mlflow.db").exists()
    finally:
        mlflow.set_tracking_uri(before)


def test_the_environment_names_the_store_where_the_config_does_not(job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///theirs.db")
    assert tracking_uri(job.config().tracking) == "sqlite:///theirs.db"
    assert tracking_uri(job.config(uri="sqlite:///mine.db").tracking) == "sqlite:///mine.db"


def test_a_local_store_that_fails_costs_one_warning(job: Any, caplog: pytest.LogCaptureFixture) -> None:
    Path("broken.db").write_text("this is no database" * 100)
    with caplog.at_level(logging.WARNING):
        tracker = Tracker(job.config(uri="sqlite:///broken.db"), "report", job="report")
        for _ in range(3):
            assert tracker.training(job.config(), job.row, history=job.history) is None
            tracker.epoch(job.history[0])
        tracker.artifacts([Path("x")])
        tracker.close()
    warned = [record.getMessage() for record in caplog.records if record.name == "recsys_embed.tracking"]
    assert len(warned) == 1
    assert "everything else goes on" in warned[0]


def test_tracking_can_be_off(job: Any) -> None:
    tracker = Tracker(job.config(enabled=False), "report", job="report")
    assert tracker.training(job.config(), job.row) is None
    tracker.close()
    assert not Path("mlflow.db").exists()


def test_without_mlflow_only_an_explicit_store_is_an_error(
    job: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with caplog.at_level(logging.WARNING):
        assert Tracker(job.config(), "report", job="report").training(job.config(), job.row) is None
    assert "pip install" in caplog.text
    with pytest.raises(StackError, match="pip install"):
        Tracker(job.config(uri="http://mlflow:5000"), "report", job="report")


def test_several_threads_log_into_one_store(job: Any) -> None:
    trackers = [Tracker(job.config(), f"run {n}", job="train") for n in range(3)]
    trackers[0].epoch(job.history[0])  # creates the store
    threads = [threading.Thread(target=tracker.epoch, args=(job.history[0],)) for tracker in trackers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({tracker.run_id for tracker in trackers} - {None}) == 3


def test_parameters_stay_within_limits() -> None:
    flat = flatten({"a": {"b": [1, 2], "c": None}, "long": "x" * 9000, "p": {"user*": 1}})
    assert flat == {"a.b": "[1, 2]", "long": "x" * 6000, "p": '{"user*": 1}'}
