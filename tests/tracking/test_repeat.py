"""A logged run, run again from another folder."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from recsys_embed.cli import app
from recsys_embed.config import parse_config
from recsys_embed.errors import CheckpointError, ConfigError
from recsys_embed.tracking import Tracker, fetch_config
from tests.clicks import CONFIG

pytest.importorskip("mlflow")


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, [*arguments, "--json", "--quiet"])


def at(folder: Path) -> list[str]:
    return ["--set", f"tracking.uri='sqlite:///{folder}/mlflow.db'"]


@pytest.fixture
def first(tmp_path: Path, clicks: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the first run; the second is to be in ``b``, where the test is."""
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "a")
    Path("data").mkdir()
    shutil.copy(clicks, "data/clicks.csv")
    Path("clicks.toml").write_text(CONFIG.format(path="data/clicks.csv", epochs=2))
    return tmp_path / "a"


@pytest.mark.slow
def test_a_training_repeated_from_another_folder_has_the_same_metric(first: Path) -> None:
    trained = json.loads(run("train", "clicks.toml", *at(first)).stdout)
    os.chdir(first.parent / "b")
    result = run("train", "--from-run", trained["mlflow_run_id"], "--out", "again", *at(first))
    again = json.loads(result.stdout)
    assert (again["test_auc"], again["run"]) == (trained["test_auc"], trained["run"])
    assert again["mlflow_run_id"] not in ("", trained["mlflow_run_id"])
    assert sorted(path.name for path in Path().iterdir()) == ["again"]  # logged where the run was found

    # Overrides go on top, and may name the data.
    moved = first.parent / "moved.csv"
    shutil.move(first / "data/clicks.csv", moved)
    result = run("train", "--from-run", trained["mlflow_run_id"], "--out", "other", *at(first))
    assert result.exit_code == 2
    assert str(first / "data/clicks.csv") in result.stderr
    change = ["--set", f"data.path='{moved}'", "--set", "embedding.seed=5"]
    other = json.loads(run("train", "--from-run", trained["mlflow_run_id"], "--out", "o", *at(first), *change).stdout)
    assert other["fingerprint"] == trained["fingerprint"]
    assert other["test_auc"] != trained["test_auc"]

    # Data that are only here are found here.
    Path("data").mkdir()
    shutil.move(moved, "data/clicks.csv")
    here = json.loads(run("train", "--from-run", trained["mlflow_run_id"], "--out", "h", *at(first)).stdout)
    assert here["test_auc"] == trained["test_auc"]


@pytest.mark.slow
def test_a_report_and_its_trainings_repeated_from_another_folder(first: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    rows = json.loads(run("report", "clicks.toml", "--out", "r", *at(first)).stdout)["results"]
    nested = MlflowClient(f"sqlite:///{first}/mlflow.db").get_run(rows[1]["mlflow_run_id"])
    os.chdir(first.parent / "b")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{first}/mlflow.db")  # names the store as well
    again = json.loads(run("report", "--from-run", nested.data.tags["mlflow.parentRunId"], "--out", "r").stdout)
    assert [row["test_auc"] for row in again["results"]] == [row["test_auc"] for row in rows]
    one = json.loads(run("train", "--from-run", rows[1]["mlflow_run_id"], "--out", "m").stdout)
    assert (one["run"], one["test_auc"]) == (rows[1]["run"], rows[1]["test_auc"])


def test_split_files_and_patterns_are_named_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "a")
    for name in ("train", "val", "test"):
        Path(f"{name}-1.csv").write_text("")
    files = {name: f"{name}-*.csv" for name in ("train", "val")} | {"test": str(tmp_path / "a/test-1.csv")}
    store = {"uri": f"sqlite:///{tmp_path}/mlflow.db"}
    config = parse_config({"data": {"split": {"files": files}}, "tracking": store})
    tracker = Tracker(config, "train", job="train")
    tracker.artifacts([])
    assert tracker.run_id is not None
    assert fetch_config(tracker.run_id, config.tracking)["data"]["split"]["files"] == files
    os.chdir(tmp_path / "b")
    Path("val-2.csv").write_text("")
    (tmp_path / "a/val-1.csv").unlink()
    found = fetch_config(tracker.run_id, config.tracking)["data"]["split"]["files"]
    assert found == {"train": str(tmp_path / "a/train-*.csv"), "val": "val-*.csv", "test": files["test"]}


def test_a_logged_config_comes_back_and_only_as_it_was_logged(job: Any) -> None:
    from mlflow import MlflowClient

    tracker = Tracker(job.config(uri="sqlite:///repeat.db"), "report", job="report")
    tracker.artifacts([])
    assert tracker.run_id is not None
    tracking = job.config(uri="sqlite:///repeat.db").tracking
    assert parse_config(fetch_config(tracker.run_id, tracking)) == job.config(uri="sqlite:///repeat.db")
    with pytest.raises(ConfigError, match="nosuchrun"):
        fetch_config("nosuchrun", tracking)
    with pytest.raises(ConfigError, match=r"no store 'absent\.db'"):
        fetch_config(tracker.run_id, job.config(uri="sqlite:///absent.db").tracking)
    assert not Path("absent.db").exists()
    MlflowClient("sqlite:///repeat.db").log_text(tracker.run_id, "changed = true", "config.toml")
    with pytest.raises(CheckpointError):
        fetch_config(tracker.run_id, tracking)
