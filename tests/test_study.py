"""The study: cells, reuse, failures that stay alone, and kills that lose nothing."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from recsys_embed.config import Config, UnifiedConfig, load_config, parse_config
from recsys_embed.errors import ConfigError, DataError, DivergedError
from recsys_embed.report import run as run_module
from recsys_embed.report import study
from recsys_embed.report.page import write_page
from recsys_embed.report.results import COLUMNS, read_predictions, read_results
from recsys_embed.report.study import exit_code, expand, run_study
from recsys_embed.report.summary import summarise
from recsys_embed.training.evaluation import predict
from recsys_embed.training.metrics import auc

STORED = {"bytes": None, "storage": "fp32", "scale": None}
"""The options that strategies with a storage share, at their defaults."""


@pytest.fixture(autouse=True)
def _one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def tree(clicks: Path) -> dict[str, Any]:
    return {
        "data": {
            "path": str(clicks),
            "label": "clicked",
            "categorical": ["user", "item"],
            "split": {"column": "part"},
        },
        "model": {"name": "dlrm", "dim": 4, "top": [8]},
        "training": {"batch_size": 256, "epochs": 2, "optimizer": {"tables_lr": 0.2, "dense_lr": 0.01}},
        "study": {"strategies": ["full", "hash"], "budgets": [0.5], "seeds": [0, 1]},
        "tracking": {"enabled": False},
    }


def config(tree: dict[str, Any], *overrides: str) -> Config:
    return parse_config(json.loads(json.dumps(tree)), overrides)


def test_full_is_trained_once_per_seed_and_others_at_every_budget(tree: dict[str, Any]) -> None:
    cells = expand(config(tree, "study.budgets=[0.5, '1kB']", "study.strategies=['full', 'hash', 'unified']"))
    told = [(cell.strategy, cell.budget, cell.seed) for cell in cells]
    assert told == [("full", "", 0), ("full", "", 1)] + [
        (strategy, budget, seed) for strategy in ("hash", "unified") for budget in ("0.5", "1kB") for seed in (0, 1)
    ]
    assert all(cell.config.embedding.seed == cell.seed for cell in cells)
    assert all(cell.config.embedding.hash_seed == 0 for cell in cells)


def test_full_in_fewer_bits_is_a_strategy_with_budgets(tree: dict[str, Any], tmp_path: Path) -> None:
    int8 = {"name": "full", "storage": "int8"}
    tree["study"] |= {"strategies": ["full", int8, {"name": "hash", "storage": "int8"}], "budgets": [0.25, 0.1]}
    rows = run_study(config(tree, "study.seeds=[0]"), tmp_path, progress=False)
    told = rows[["strategy", "budget_requested", "status"]].to_numpy().tolist()
    assert told == [
        ["full", "", "ok"],
        ["full", "0.25", "ok"],
        ["full", "0.1", "infeasible"],
        ["hash", "0.25", "ok"],
        ["hash", "0.1", "ok"],
    ]
    assert rows["serve_bytes"].iloc[1] == rows["full_bytes"].iloc[0] // 4
    (section,) = summarise(tmp_path)
    assert section.full is not None
    assert section.full.bytes == rows["full_bytes"].iloc[0]
    quarter = section.find_budget("0.25")
    assert quarter is not None
    assert [cell.method for cell in section.at(quarter)] == ["full (storage int8)", "hash"]
    assert "full (storage int8)" in write_page(tmp_path).read_text(encoding="utf-8")


def test_the_embedded_study_has_thirty_cells() -> None:
    planted = config(study.PLANTED)
    assert planted.data.planted is not None
    assert planted.data.planted.rows == 300_000
    assert len(expand(planted)) == 3 + 3 * 3 * 3


def test_a_run_is_identified_by_config_data_and_code(tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    cell = expand(config(tree))[0]
    same = expand(config(tree, "tracking.experiment='other'", "study.seeds=[0]"))[0]
    assert cell.digest("f") == same.digest("f")
    assert cell.digest("f") != cell.digest("g")
    assert cell.digest("f") != expand(config(tree, "model.dim=8"))[0].digest("f")
    before = cell.digest("f")
    monkeypatch.setattr(run_module, "code_digest", lambda: "changed")
    assert cell.digest("f") != before


def test_results_can_be_recomputed_and_are_reused(
    tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    tree["training"] |= {"epochs": 5}
    rows = run_study(config(tree), out, progress=False)
    assert list(rows.columns) == list(COLUMNS)
    assert exit_code(rows) == 0
    stored = read_results(out / "results.csv")
    assert stored["status"].eq("ok").all()
    assert not stored["reused"].any()
    assert (stored.loc[stored["strategy"] == "full", "test_auc"] > 0.65).all()
    assert (stored["serve_bytes"] <= stored["full_bytes"]).all()
    measured = ["peak_rss_bytes", "wall_seconds", "predict_microseconds_per_row"]
    measured += ["latency_single_row_microseconds", "predict_rows_per_second"]
    assert (stored[measured] > 0).all(axis=None)
    assert {json.loads(text)["batch"] for text in stored["serving"]} == {256}
    for _, row in stored.iterrows():
        found = read_predictions(out, row["run"])
        assert found is not None
        assert len(found["row"]) == 1000
        assert auc(found["label"], found["score"]) == pytest.approx(row["test_auc"], abs=1e-6)
    assert load_config(out / "config.toml") == config(tree)

    trained = []
    train = run_module.train
    monkeypatch.setattr(run_module, "train", lambda *a, **k: trained.append(1) or train(*a, **k))
    again = run_study(config(tree, "study.seeds=[0, 1, 2]"), out, progress=False)
    assert again["reused"].tolist() == [True, True, False] * 2
    assert len(trained) == 2
    old = again[again["reused"]].reset_index(drop=True)
    assert old["test_auc"].tolist() == rows["test_auc"].tolist()
    # A run without its predictions is no finished run.
    (out / "predictions" / f"{rows['run'][0]}.parquet").unlink()
    assert run_study(config(tree), out, progress=False)["reused"].tolist() == [False, True, True, True]


def test_what_is_served_is_the_shipped_form(
    tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = []
    monkeypatch.setattr(run_module, "serving_speed", lambda model, *rest: served.append((model, *rest)) or {})
    tree["study"] |= {"strategies": [{"name": "full", "storage": "int8"}], "budgets": [0.25], "seeds": [0]}
    (row,) = run_study(config(tree), tmp_path, progress=False).to_dict("records")
    ((model, dataset, batch_size),) = served
    assert (model.training, batch_size) == (False, 256)
    held = {tensor.dtype for name, tensor in model.embedding.state_dict().items() if name.startswith("tables.")}
    assert held == {torch.int8}
    scores = read_predictions(tmp_path, row["run"])
    assert scores is not None
    np.testing.assert_allclose(predict(model, dataset, "test", 256), scores["score"], atol=1e-6)


def test_failures_are_rows_and_take_nothing_with_them(
    tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = run_module.build_recommender

    def broken(config: Config, *args: Any) -> Any:
        if config.embedding.strategy["*"].name == "hash":
            if config.training.seed == 0:
                raise RuntimeError("the disk\nhas melted")
            raise DivergedError("the loss is nan", step=3)
        return build(config, *args)

    monkeypatch.setattr(run_module, "build_recommender", broken)
    rows = run_study(config(tree), tmp_path, progress=False)
    assert rows["status"].tolist() == ["ok", "ok", "failed", "diverged"]
    assert rows["error"].tolist()[2:] == ["RuntimeError: the disk has melted", "DivergedError: the loss is nan"]
    assert exit_code(rows) == 4
    assert exit_code(read_results(tmp_path / "results.csv")) == 4
    assert "Traceback" in (tmp_path / "runs" / rows["run"][2] / "error.txt").read_text()

    monkeypatch.setattr(run_module, "build_recommender", build)
    rows = run_study(config(tree), tmp_path, progress=False)
    assert rows["status"].eq("ok").all()
    assert rows["reused"].tolist() == [True, True, False, False]


def test_an_infeasible_budget_is_a_result_that_names_the_nearest(tree: dict[str, Any], tmp_path: Path) -> None:
    rows = run_study(config(tree, "study.budgets=[7]", "study.seeds=[0]"), tmp_path, progress=False)
    assert rows["status"].tolist() == ["ok", "infeasible"]
    assert exit_code(rows) == 0
    nearest = int(rows["error"][1].split("nearest feasible budget: ")[1].split()[0])
    overrides = (f"study.budgets=[{nearest}]", "study.seeds=[0]", "training.epochs=1")
    assert run_study(config(tree, *overrides), tmp_path, progress=False)["status"].eq("ok").all()


def test_shuffled_labels_give_one_half(tree: dict[str, Any], clicks: Path, tmp_path: Path) -> None:
    frame = pd.read_csv(clicks)
    frame["clicked"] = np.random.default_rng(0).permutation(frame["clicked"])
    frame["part"] = np.resize(["test", "test", "val", "train"], len(frame))
    frame.to_csv(tmp_path / "noise.csv", index=False)
    tree["data"]["path"] = str(tmp_path / "noise.csv")
    rows = run_study(config(tree, "study.seeds=[0]"), tmp_path / "out", progress=False)
    assert (rows["test_auc"] - 0.5).abs().max() < 0.04  # the standard error over 3000 rows is about 0.011


@pytest.mark.parametrize(
    ("override", "error", "match"),
    [
        ("study.strategies=[{'usr*' = 'hash', '*' = 'full'}]", ConfigError, "usr"),
        ("study.budgets=['64XB']", ConfigError, "64XB"),
        ("embedding.exact=['nobody']", ConfigError, "nobody"),
        ("study.strategies=[{name='unified', chunks=3}]", ConfigError, "chunks"),
        ("data.categorical=['user', 'absent']", DataError, "absent"),
        ("data.path='absent.csv'", DataError, "absent"),
    ],
)
def test_a_study_that_cannot_run_trains_nothing(
    tree: dict[str, Any], tmp_path: Path, override: str, error: type[Exception], match: str
) -> None:
    out = tmp_path / "out"
    with pytest.raises(error, match=match):
        run_study(config(tree, override), out, progress=False)
    assert not (out / "results.csv").exists()
    assert "chunks" in override or not out.exists()


def test_several_strategies_in_one_layer_are_called_mixed(tree: dict[str, Any], tmp_path: Path) -> None:
    mixed = "study.strategies=[{'user' = {name='unified', chunks=1, bytes='1KB'}, '*' = 'hash'}]"
    row = run_study(config(tree, mixed, "study.seeds=[0]", "training.epochs=1"), tmp_path, progress=False).iloc[0]
    assert row["strategy"] == "mixed"
    assert row["settings"]["user"] == {"name": "unified", **STORED, "bytes": "1KB", "chunks": 1, "tables": 1}
    assert set(row["settings"]) == {"user", "*", "rows"}


def test_settings_are_every_option_and_then_the_sizes(tree: dict[str, Any], tmp_path: Path) -> None:
    strategies = "study.strategies=['unified', {name='compositional', operation='add'}]"
    overrides = (strategies, "study.budgets=[0.5, 7]", "study.seeds=[0]", "training.epochs=1")
    rows = run_study(config(tree, *overrides), tmp_path, progress=False)
    assert rows["status"].tolist() == ["ok", "infeasible"] * 2
    options = [{**STORED, "chunks": 2, "tables": 1}, {**STORED, "operation": "add", "partitions": 2}]
    assert rows["settings"].tolist()[1::2] == options
    for chosen, (_, row) in zip(options, rows[::2].iterrows(), strict=True):
        ledger = pd.read_csv(tmp_path / "runs" / row["run"] / "ledger.csv")
        assert (ledger["part"] == "vocabulary").sum() == 2
        ledger = ledger[ledger["part"] != "vocabulary"]
        sizes = dict(zip(ledger["table"], ledger["rows"], strict=True))
        assert list(row["settings"].items()) == [*chosen.items(), *sizes.items()]


def test_a_size_with_the_name_of_an_option_takes_nothing_away() -> None:
    settings = run_module._settings({"*": UnifiedConfig()}, {"unified": 9, "tables": 3})
    assert settings == {**STORED, "chunks": 2, "tables": 1, "rows": {"unified": 9, "tables": 3}}


# --- processes and kills -------------------------------------------------------------------------------------


def test_workers_do_what_one_process_does(tree: dict[str, Any], tmp_path: Path) -> None:
    alone = run_study(config(tree, "training.threads=1"), tmp_path / "a", progress=False)
    shared = run_study(config(tree, "training.threads=1", "study.workers=2"), tmp_path / "b", progress=False)
    assert shared["run"].tolist() == alone["run"].tolist()
    assert shared["test_auc"].tolist() == pytest.approx(alone["test_auc"].tolist(), abs=1e-6)


def test_a_cell_that_kills_its_process_fails_alone(
    tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # In a module of its own, which the worker processes can import.
    (tmp_path / "deadly.py").write_text(
        "import os, signal\n"
        "from recsys_embed.report.run import run_cell_by_path\n"
        "def work(cell, dataset, out, checkpoints):\n"
        "    if cell.strategy == 'hash' and cell.seed == 0:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return run_cell_by_path(cell, dataset, out, checkpoints)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import deadly

    monkeypatch.setattr(study, "run_cell_by_path", deadly.work)
    overrides = ("study.workers=2", "training.epochs=1", "study.strategies=['hash', 'full']")
    with caplog.at_level(logging.WARNING):
        rows = run_study(config(tree, *overrides), tmp_path / "out", progress=False)
    assert rows["status"].tolist() == ["failed", "ok", "ok", "ok"]
    assert "killed" in rows["error"][0]
    assert "its process died" in caplog.text  # the kill did happen


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_killed_study_goes_on_where_it_was(tree: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "out"
    long = config(tree, "study.seeds=[0, 1, 2, 3, 4, 5]", "training.epochs=4", "training.patience=4")
    (tmp_path / "config.toml").write_text(long.to_toml())
    command = [sys.executable, "-m", "recsys_embed", "report", "config.toml", "--out", "out", "--quiet"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, cwd=tmp_path, env=environment)
    deadline = time.monotonic() + 100
    while not (out / "results.csv").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = read_results(out / "results.csv")
    assert 1 <= len(kept) < 12
    rows = run_study(long, out, progress=False)
    assert rows["status"].eq("ok").all()
    assert rows["reused"].sum() >= len(kept)
    assert len(read_results(out / "results.csv")) == 12
