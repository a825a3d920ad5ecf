"""Runs in MLflow, read back from its store; and that no store can stop a training."""

from __future__ import annotations

import logging
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from recsys_embed import tracking
from recsys_embed.config import Config, parse_config
from recsys_embed.errors import CheckpointError, ConfigError, StackError
from recsys_embed.features import Feature
from recsys_embed.tracking import Tracker, fetch_config, flatten

pytest.importorskip("mlflow")

ROW: dict[str, Any] = {
    "dataset": "clicks",
    "fingerprint": "f" * 32,
    "strategy": "hash",
    "settings": {"user": 10},
    "budget_requested": "0.5",
    "seed": 1,
    "dim": 8,
    "val_auc": 0.7,
    "test_auc": 0.71,
    "auc_unseen": None,
    "test_ne": float("inf"),
    "serve_bytes": 320,
    "coarse": False,
    "run": "abc",
    "status": "ok",
    "error": "",
}
HISTORY = [{"epoch": 1, "val_auc": 0.6, "train_loss": 0.5}, {"epoch": 2, "val_auc": 0.7, "train_loss": float("nan")}]
LEDGER = pd.DataFrame({"part": ["hash"], "feature": ["user"], "table": ["user"], "rows": [10], "width": [8],
                       "train_bytes": [640], "serve_bytes": [320]})  # fmt: skip


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


def config(**tracking: Any) -> Config:
    return parse_config(
        {
            "data": {"path": "clicks.csv", "categorical": ["user"]},
            "embedding": {"strategy": {"user*": {"name": "hash"}}, "budget": 0.5},
            "tracking": {"experiment": "clicks", **tracking},
        }
    )


def client(uri: str = "sqlite:///mlflow.db") -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri)


def test_a_report_is_a_run_with_a_nested_run_per_training(tmp_path: Path) -> None:
    tracker = Tracker(config(), "report clicks", job="report")
    assert not Path("mlflow.db").exists()  # nothing is opened before there is something to log
    nested = tracker.training(config(), ROW, history=HISTORY, ledger=LEDGER, features=[Feature("user", 20)])
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
    assert child.data.params["embedding.strategy"] == '{"user*": {"name": "hash"}}'
    assert "version.torch" in parent.data.tags
    # Finite numbers only; the curve and the final value do not overwrite each other.
    assert child.data.metrics["test_auc"] == 0.71
    assert child.data.metrics["serve_bytes"] == 320
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


def test_a_single_training_logs_epochs_as_they_come() -> None:
    tracker = Tracker(config(), "train", job="train")
    for epoch in HISTORY:
        tracker.epoch(epoch)
    assert client().get_run(tracker.run_id).info.status == "RUNNING"
    assert tracker.training(config(), ROW, ledger=LEDGER, nested=False) == tracker.run_id
    tracker.close("FAILED")
    run = client().get_run(tracker.run_id)
    assert run.info.status == "FAILED"
    assert run.data.metrics["val_auc"] == 0.7
    assert run.data.tags["run"] == "abc"


def test_an_active_run_is_used_and_left_open() -> None:
    import mlflow

    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri("sqlite:///own.db")
    try:
        with mlflow.start_run() as active:
            mlflow.log_param("model.dim", "theirs")
            tracker = Tracker(config(), "report", job="report")
            nested = tracker.training(config(), ROW)
            tracker.close()
            assert tracker.run_id == active.info.run_id
            assert mlflow.get_run(active.info.run_id).info.status == "RUNNING"
        assert mlflow.get_run(nested).data.tags["mlflow.parentRunId"] == active.info.run_id
        assert mlflow.get_run(active.info.run_id).data.params["model.dim"] == "theirs"
        assert mlflow.get_run(active.info.run_id).data.params["embedding.budget"] == "0.5"
        assert not Path("mlflow.db").exists()
    finally:
        mlflow.set_tracking_uri(before)


def test_the_environment_names_the_store_where_the_config_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///theirs.db")
    assert tracking.tracking_uri(config().tracking) == "sqlite:///theirs.db"
    assert tracking.tracking_uri(config(uri="sqlite:///mine.db").tracking) == "sqlite:///mine.db"


@pytest.mark.parametrize("silent", [False, True], ids=["refuses", "never answers"])
def test_a_dead_server_costs_one_warning_and_little_time(
    silent: bool, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if silent:
            server.listen(8)
        port = server.getsockname()[1]
        with caplog.at_level(logging.WARNING):
            begin = time.monotonic()
            tracker = Tracker(config(uri=f"http://user:secret@127.0.0.1:{port}"), "report", job="report")
            for _ in range(5):
                assert tracker.training(config(), ROW, history=HISTORY) is None
                tracker.epoch(HISTORY[0])
            tracker.artifacts([Path("x")])
            tracker.close()
            assert time.monotonic() - begin < 15
    warned = [record for record in caplog.records if record.name == "recsys_embed.tracking"]
    assert len(warned) == 1
    assert "everything else goes on" in warned[0].getMessage()
    assert "secret" not in caplog.text


def test_tracking_can_be_off() -> None:
    tracker = Tracker(config(enabled=False), "report", job="report")
    assert tracker.training(config(), ROW) is None
    tracker.close()
    assert not Path("mlflow.db").exists()


def test_without_mlflow_only_an_explicit_store_is_an_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tracking.importlib.util, "find_spec", lambda name: None)
    with caplog.at_level(logging.WARNING):
        assert Tracker(config(), "report", job="report").training(config(), ROW) is None
    assert "pip install" in caplog.text
    with pytest.raises(StackError, match="pip install"):
        Tracker(config(uri="http://mlflow:5000"), "report", job="report")


def test_a_logged_config_comes_back_and_only_as_it_was_logged() -> None:
    tracker = Tracker(config(), "report", job="report")
    tracker.artifacts([])
    assert tracker.run_id is not None
    assert fetch_config(tracker.run_id, config().tracking) == config().to_toml()
    with pytest.raises(ConfigError, match="nosuchrun"):
        fetch_config("nosuchrun", config().tracking)
    client().log_text(tracker.run_id, "changed = true", "config.toml")
    with pytest.raises(CheckpointError):
        fetch_config(tracker.run_id, config().tracking)


def test_several_threads_log_into_one_store() -> None:
    trackers = [Tracker(config(), f"run {n}", job="train") for n in range(3)]
    trackers[0].epoch(HISTORY[0])  # creates the store
    threads = [threading.Thread(target=tracker.epoch, args=(HISTORY[0],)) for tracker in trackers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({tracker.run_id for tracker in trackers} - {None}) == 3


def test_parameters_stay_within_limits() -> None:
    flat = flatten({"a": {"b": [1, 2], "c": None}, "long": "x" * 9000, "p": {"user*": 1}})
    assert flat == {"a.b": "[1, 2]", "long": "x" * 6000, "p": '{"user*": 1}'}
