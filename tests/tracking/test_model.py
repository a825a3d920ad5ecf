"""A training's model in its MLflow run: scores as `predict`, holds no pickle, and is lost with no server."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from recsys_embed import jobs
from recsys_embed.config import Config, parse_config
from recsys_embed.export import load
from recsys_embed.tracking import deliver
from tests.clicks import data_of

pytest.importorskip("mlflow")
pytestmark = pytest.mark.filterwarnings("ignore:::mlflow")


@pytest.fixture(autouse=True)
def _no_pickles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")


def config_of(clicks: Path, *, seed: int = 0, **tracking: Any) -> Config:
    return parse_config(
        {
            "data": data_of(clicks),
            "model": {"dim": 4, "hidden": [8]},
            "embedding": {"strategy": "unified", "budget": 0.3},
            "training": {"epochs": 1, "batch_size": 256, "threads": 1, "seed": seed},
            "tracking": tracking,
        }
    )


def scores_equal(loaded: Any, model_dir: Path, clicks: Path) -> bool:
    rows = pd.read_csv(clicks).head(300)[["user", "item", "tags", "price"]]
    return np.allclose(loaded.predict(rows), load(model_dir).predict(rows), rtol=0, atol=1e-6)


def test_a_training_logs_its_model_into_its_run(clicks: Path, tmp_path: Path) -> None:
    import mlflow

    config = config_of(clicks, uri=f"sqlite:///{tmp_path}/own.db", log_model=True)
    model_dir, trained = jobs.train(config, "out", progress=False)
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(config.tracking.uri)
    try:
        run = trained.row["mlflow_run_id"]
        assert mlflow.get_run(run).info.status == "FINISHED"
        loaded = mlflow.pyfunc.load_model(f"runs:/{run}/model")
        folder = Path(mlflow.artifacts.download_artifacts(f"runs:/{run}/model"))
    finally:
        mlflow.set_tracking_uri(before)
    assert scores_equal(loaded, model_dir, clicks)
    assert loaded.metadata.signature.inputs.input_names() == ["user", "item", "tags", "price"]
    assert np.isfinite(loaded.predict(loaded.input_example)).all()
    assert {path.suffix for path in folder.rglob("*") if path.is_file()} <= {
        "", ".json", ".parquet", ".py", ".safetensors", ".toml", ".txt", ".yaml", ".yml",
    }  # fmt: skip


def test_a_server_that_was_absent_gets_the_model_later(server: Any, clicks: Path) -> None:
    """And the one of its run: another training in the same folder has written over the first one's model folder."""
    import mlflow

    server.fault = lambda path, number: "500"
    model_dir, _ = jobs.train(config_of(clicks, uri=server.uri, log_model=True), "out", progress=False)
    shutil.copytree(model_dir, "first")
    jobs.train(config_of(clicks, seed=1, uri=server.uri), "out", progress=False)
    assert not server.files
    server.fault = lambda path, number: None
    assert deliver() == 0
    names = [name for name in server.files if "/model/" in name]
    assert len(server.runs) == 2
    assert len({name.split("/")[0] for name in names}) == 1
    assert names[-1].endswith("/model/MLmodel")
    for name in names:
        path = Path("delivered", name.partition("/")[2])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(server.files[name])
    assert scores_equal(mlflow.pyfunc.load_model("delivered/model"), Path("first"), clicks)
    assert not scores_equal(mlflow.pyfunc.load_model("delivered/model"), model_dir, clicks)


def test_a_model_that_cannot_be_packed_costs_one_warning(
    server: Any, clicks: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("recsys_embed.mlflow_model.load", lambda folder: 1 / 0)
    model_dir, trained = jobs.train(config_of(clicks, uri=server.uri, log_model=True), "out", progress=False)
    assert (model_dir / "manifest.json").exists()
    warned = [record.getMessage() for record in caplog.records if record.name == "recsys_embed.tracking"]
    assert len(warned) == 1
    assert "division by zero" in warned[0]
    run = server.runs[trained.row["mlflow_run_id"]]
    assert run["status"] == "FINISHED"
    assert "test_auc" in {metric["key"] for metric in run["metrics"]}
