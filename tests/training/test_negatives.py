"""Down-sampled negatives: probabilities over the rows there were, wherever they are given."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from recsys_embed import jobs
from recsys_embed.config import parse_config
from recsys_embed.errors import CheckpointError
from recsys_embed.export import load
from recsys_embed.program import save_program
from recsys_embed.recommender import Recommender
from recsys_embed.report.results import read_predictions
from recsys_embed.report.study import run_study
from recsys_embed.report.summary import summarise
from recsys_embed.report.tables.protocol import protocol
from recsys_embed.training.evaluation import counts, predict
from recsys_embed.training.metrics import auc, calibration, evaluate, logloss
from recsys_embed.training.trainer import train
from tests.clicks import data_of
from tests.training.runs import build, settings

RATE = 0.1


def sampled(data: Any, seed: int = 3) -> Any:
    """The toy data with a share of its negatives, in every split; ``whole`` keeps the rows there were."""
    draw = np.random.default_rng(seed)
    data.whole, data.whole_truth = dict(data.split), dict(data.truth)
    for split, columns in list(data.split.items()):
        kept = np.flatnonzero((columns.label > 0) | (draw.random(len(columns)) < RATE))
        data.split[split], data.truth[split] = columns.take(kept), data.truth[split][kept]
    return data


@pytest.fixture(scope="module")
def trained(toy: Any) -> tuple[Recommender, Any]:
    data = sampled(toy(rows=40_000))
    config = settings(epochs=6, model={"name": "dcn_v2", "dim": 4}).model_copy()
    config = config.model_copy(update={"data": config.data.model_copy(update={"negative_rate": RATE})})
    model = build(config, data)
    train(model, data, config.training, progress=False)
    return model, data


def test_predictions_are_calibrated_on_the_rows_there_were(trained: tuple[Recommender, Any]) -> None:
    model, data = trained
    kept = data.split["test"]
    own = evaluate(
        data.labels("test"), predict(model, data, "test", 512), weights=counts(data, "test", model.negative_rate)
    )
    data.split["test"] = data.whole["test"]
    try:
        labels, scores = data.labels("test"), predict(model, data, "test", 512)
        model.negative_rate = 1.0
        raw = predict(model, data, "test", 512)
    finally:
        data.split["test"], model.negative_rate = kept, RATE
    truth = data.whole_truth["test"]
    whole = evaluate(labels, scores)
    assert whole["calibration"] == pytest.approx(1, abs=0.05)
    assert calibration(labels, raw) > 1.4
    assert logloss(labels, scores) - logloss(labels, truth) < 0.03
    assert logloss(labels, raw) - logloss(labels, truth) > 0.3
    assert auc(labels, scores) == auc(labels, raw)
    # The rows that were kept, counted as those they stand for, measure the same.
    for name, tolerance in (("auc", 0.02), ("logloss", 0.04), ("ne", 0.06), ("calibration", 0.06)):
        assert own[name] == pytest.approx(whole[name], abs=tolerance), name


def test_the_correction_is_the_papers_formula() -> None:
    model = Recommender(torch.nn.Identity(), torch.nn.Identity(), negative_rate=RATE)  # type: ignore[arg-type]
    q = torch.linspace(0.001, 0.999, 101, dtype=torch.float64)
    torch.testing.assert_close(model.probabilities(torch.logit(q)), q / (q + (1 - q) / RATE), rtol=1e-12, atol=0)
    assert Recommender(torch.nn.Identity(), torch.nn.Identity()).shift == 0.0  # type: ignore[arg-type]


def test_a_checkpoint_of_another_rate_is_not_continued(toy: Any, tmp_path: Path) -> None:
    data, config = toy(rows=200), settings(epochs=1)
    train(build(config, data), data, config.training, checkpoints=tmp_path, progress=False)
    other = config.model_copy(update={"data": config.data.model_copy(update={"negative_rate": 0.5})})
    with pytest.raises(CheckpointError, match=r"negative_rate is None there and 0\.5 here"):
        train(build(other, data), data, config.training, checkpoints=tmp_path, progress=False)


def test_all_that_is_shipped_gives_corrected_probabilities(clicks: Path, tmp_path: Path) -> None:
    """The trainer's test scores, the model folder, the program, and the MLflow model, which is that folder."""
    tree: dict[str, Any] = {
        "data": data_of(clicks) | {"negative_rate": RATE, "weight": "heavy", "multi_valued": {}},
        "model": {"name": "dcn_v2", "dim": 4, "hidden": [8]},
        "training": {"batch_size": 256, "epochs": 1, "threads": 1},
        "tracking": {"enabled": False},
        "study": {"strategies": ["full", "hash"], "budgets": [0.5], "seeds": [0]},
    }
    frame = pd.read_csv(clicks)
    frame["heavy"] = np.random.default_rng(0).integers(0, 4, len(frame))
    tree["data"]["path"] = str(tmp_path / "clicks.csv")
    frame.to_csv(tree["data"]["path"], index=False)
    config = parse_config(tree)
    folder, done = jobs.train(config, tmp_path / "out", progress=False)
    rows = frame[frame["part"] == "test"].drop(columns=["heavy", "clicked"])
    predictor = load(folder)
    scores = predictor.predict(rows).to_numpy()
    np.testing.assert_allclose(scores, done.scores, atol=1e-6)
    batch = predictor.encoder.encode(rows)
    with torch.no_grad():
        logits = predictor.model(batch)
    expected = torch.sigmoid(logits.double() + math.log(RATE)).numpy()
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    predictor.model.negative_rate = 1.0
    p = predictor.predict(rows).to_numpy()
    np.testing.assert_allclose(scores, p * RATE / (p * RATE + 1 - p), rtol=1e-12)
    predictor.model.negative_rate = RATE
    program = torch.export.load(save_program(predictor.model, batch.dense.shape[1], tmp_path / "m.pt2")).module()
    np.testing.assert_allclose(program(batch.ids.values.long(), batch.dense).detach(), expected, atol=1e-6)
    # Metrics, stored scores and the page agree on what rows count.
    run_study(config, tmp_path / "study", progress=False)
    (section,) = summarise(tmp_path / "study")
    told = dict(protocol(section))
    assert told["Sample weights"].startswith("column heavy, in the training loss")
    assert told["Negatives"].startswith("kept with probability 0.1 before")
    test = frame[frame["part"] == "test"]
    for row in section.runs.itertuples():
        stored = read_predictions(tmp_path / "study", row.run)
        assert stored is not None
        np.testing.assert_array_equal(stored["weight"], test["heavy"] / np.where(test["clicked"], 1, RATE))
        again = evaluate(test["clicked"], stored["score"], stored["bucket"], stored["weight"])
        names = ("test_auc", "test_logloss", "test_ne", "test_calibration", "auc_head", "auc_tail")
        for name in names:
            assert getattr(row, name) == pytest.approx(again[name.removeprefix("test_")], rel=1e-4), name
