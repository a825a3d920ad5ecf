"""A model folder as an MLflow model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recsys_embed import jobs
from recsys_embed.config import parse_config
from recsys_embed.errors import CheckpointError
from recsys_embed.export import load
from recsys_embed.mlflow_model import save_mlflow_model

pytest.importorskip("mlflow")
pytestmark = pytest.mark.filterwarnings("ignore:::mlflow")


RATE = 0.25


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("mlflow")
    frame = pd.DataFrame(
        {
            "user": rng.integers(0, 40, 600),
            "tags": rng.choice(["a", "b|c", "c"], 600),
            "price": rng.random(600),
            "label": rng.integers(0, 2, 600),
        }
    )
    frame.to_csv(folder / "rows.csv", index=False)
    tree = {
        "data": {
            "path": str(folder / "rows.csv"),
            "categorical": ["user"],
            "multi_valued": {"tags": "|"},
            "numeric": ["price"],
            "negative_rate": RATE,
        },
        "model": {"dim": 4, "hidden": [8]},
        "training": {"epochs": 1, "batch_size": 128, "threads": 1},
        "tracking": {"enabled": False},
    }
    return jobs.train(parse_config(tree), folder / "out", progress=False)[0]


def test_it_scores_as_the_folder_does(model_dir: Path, tmp_path: Path):
    import mlflow

    out = save_mlflow_model(model_dir, tmp_path / "packed")
    frame = pd.DataFrame({"user": [1, 2, 10**12], "tags": ["a|b", "", "new"], "price": [0.5, np.nan, 2.0]})
    loaded = mlflow.pyfunc.load_model(str(out))
    np.testing.assert_array_equal(loaded.predict(frame), load(model_dir).predict(frame))
    as_text = frame.assign(user=frame["user"].astype(str))
    np.testing.assert_array_equal(loaded.predict(as_text), load(model_dir).predict(frame))
    example = loaded.input_example
    assert set(example.columns) == {"user", "tags", "price"}
    assert np.isfinite(loaded.predict(example)).all()
    of_sampled_rows = load(model_dir)
    of_sampled_rows.model.negative_rate = 1.0
    p = of_sampled_rows.predict(frame).to_numpy()
    np.testing.assert_allclose(loaded.predict(frame), p * RATE / (p * RATE + 1 - p), rtol=1e-12)  # once
    assert not [path for path in out.rglob("*") if path.suffix in (".pkl", ".pt", ".bin")]


def test_a_damaged_folder_is_refused_and_nothing_is_written(model_dir: Path, tmp_path: Path):
    broken = tmp_path / "model"
    broken.mkdir()
    with pytest.raises(CheckpointError):
        save_mlflow_model(broken, tmp_path / "packed")
    assert not (tmp_path / "packed").exists()
