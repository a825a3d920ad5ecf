"""The commands as users type them: what they print, where, and how they end."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import typer.main
from typer.testing import CliRunner

from recsys_embed.cli import app
from recsys_embed.config import Config, load_config, parse_config
from recsys_embed.report import study
from recsys_embed.training import trainer
from tests.clicks import CONFIG

OPTIONS = {
    "doctor": ["--json"],
    "download": ["NAME", "--json", "--out", "--quiet", "--url"],
    "prepare": ["CONFIG", "--dry-run", "--json", "--out", "--quiet", "--set", "--workers"],
    "train": ["--continue", "--data", "--from-run", "--json", "--out", "--promote-if", "--quiet", "--set", "CONFIG"],
    "report": ["--budget", "--from", "--from-run", "--json", "--label", "--out", "--planted", "--quiet", "--set",
               "CONFIG|DATA"],
    "predict": ["--json", "--out", "--quiet", "MODEL", "ROWS"],
    "publish": ["--json", "--quiet", "--snapshot", "--to", "MODEL"],
    "apply": ["--json", "--out", "--quiet", "FOLDER"],
    "forget": ["--ids", "--json", "--out", "--quiet", "MODEL"],
    "export": ["--as", "--json", "--out", "--quiet", "MODEL"],
    "budget": ["--json", "--out", "--quiet", "--set", "CONFIG"],
    "strategies": ["--json"],
    "models": ["--json"],
    "inspect": ["--json", "--label", "--out", "--quiet", "--rows", "FILE"],
    "search": ["CONFIG", "--out", "--from-run", "--set", "--json", "--quiet"],
    "plan": ["--device-memory", "--json", "--out", "--quiet", "--set", "--world-size", "CONFIG"],
}  # fmt: skip


@pytest.fixture(autouse=True)
def _here(clicks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    Path("clicks.toml").write_text(CONFIG.format(path=str(clicks), epochs=1))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(*arguments: str, tracking: bool = False) -> Any:
    """A command in this process; most are run without tracking."""
    off = ["--set", "tracking.enabled=false"] if not tracking and "clicks.toml" in arguments else []
    return CliRunner().invoke(app, [*arguments, *off])


def test_the_command_line_is_what_scripts_were_written_against() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    found = {
        name: sorted(
            option.metavar or option.name.upper() if option.param_type_name == "argument" else option.opts[0]
            for option in command.params
            if option.name != "help"
        )
        for name, command in commands.items()
    }
    assert found == {name: sorted(options) for name, options in OPTIONS.items()}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["report", "clicks.toml", "--set", "model.dimm=8", "--out", "bad"], 2, "'dim'"),
        (["report", "absent.toml", "--out", "bad"], 2, "absent.toml"),
        (["report", "--out", "bad"], 2, "exactly one of"),
        (["report", "clicks.toml", "--planted"], 2, "exactly one of"),
        (["report", "clicks.toml", "--set", "data.label='absent'", "--out", "bad"], 2, "absent"),
        (["report", "--from", "bad/results.csv"], 2, "results.csv"),
        (["train", "clicks.toml", "--set", "embedding.budget=7", "--out", "low"], 3, "nearest feasible budget"),
        (["train", "--out", "bad"], 2, "--from-run"),
        (["train", "--continue", "nowhere", "--data", "clicks.csv", "--out", "bad"], 2, "nowhere"),
        (["predict", "nowhere", "rows.csv"], 2, "nowhere"),
        (["inspect", "absent.csv"], 2, "absent.csv"),
        (["search", "clicks.toml", "--set", "embedding.budget='7 parsecs'", "--out", "bad"], 2, "7 parsecs"),
        (["search", "clicks.toml", "--set", "search.trials=0", "--out", "bad"], 2, "search.trials"),
        (["plan", "clicks.toml", "--world-size", "2", "--device-memory", "80XB"], 2, "unknown unit"),
    ],
)
def test_what_cannot_be_done_is_one_message_and_a_code(arguments: list[str], code: int, message: str) -> None:
    if "plan" in arguments:
        result = CliRunner().invoke(app, arguments)
    else:
        result = run(*arguments)
    assert result.exit_code == code
    assert result.stdout == ""
    assert message in result.stderr
    assert result.stderr.startswith("recsys-embed: ")
    assert "Traceback" not in result.stderr
    assert not Path("bad").exists()


def test_a_defect_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recsys_embed.jobs.train", lambda *a, **k: 1 / 0)
    assert isinstance(run("train", "clicks.toml").exception, ZeroDivisionError)


def test_report_ends_with_the_page_and_can_be_rebuilt_alone() -> None:
    first = run("report", "clicks.toml", "--out", "r")
    assert first.exit_code == 0
    assert first.stdout.splitlines()[-1] == "r/report.html"
    assert "test AUC" in first.stderr
    files = {path.name for path in Path("r").iterdir()}
    assert {"report.html", "report.md", "results.csv", "config.toml", "predictions"} <= files

    again = run("report", "clicks.toml", "--out", "r", "--json", "--quiet")
    document = json.loads(again.stdout)
    assert document["report"] == "r/report.html"
    assert [row["reused"] for row in document["results"]] == [True, True]
    assert "test AUC" not in again.stderr

    page = Path("r/report.html")
    before = page.read_bytes()
    page.unlink()
    assert run("report", "--from", "r/results.csv", "--out", "copy").stdout.splitlines()[-1] == "copy/report.html"
    assert not page.exists()
    assert run("report", "--from", "r/results.csv").exit_code == 0
    assert page.read_bytes() == before


def test_a_failed_run_is_exit_code_4(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recsys_embed.report.run.train", lambda *a, **k: 1 / 0)
    result = run("report", "clicks.toml", "--out", "r")
    assert result.exit_code == 4
    assert "ZeroDivisionError" in result.stderr
    assert result.stdout.splitlines()[-1] == "r/report.html"


def test_a_report_without_a_config_guesses_and_says_what(clicks: Path) -> None:
    rows = pd.read_csv(clicks).drop(columns=["part", "tags"])
    rows.to_csv("rows.csv", index=False)
    overrides = ["study.seeds=[0]", "study.strategies=['full','hash']", "training.epochs=1", "tracking.enabled=false"]
    sets = [part for one in overrides for part in ("--set", one)]
    result = run("report", "rows.csv", "--label", "clicked", "--budget", "4kB", *sets)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "report-rows/report.html"
    config = load_config("report-rows/config.toml")
    assert config.data.categorical == ("user", "item")
    assert config.data.numeric == ("price",)
    assert config.study.budgets == ("4kB",)
    assert run("report", "rows.csv").exit_code == 2
    assert "clikced" in run("report", "rows.csv", "--label", "clikced").stderr


def test_a_report_without_a_config_takes_the_schema_of_inspect(clicks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bags, the split and what is left out; and what it warns of, inspect does."""
    rows = pd.read_csv(clicks)
    rows["twin"] = rows["item"] + "!"
    rows["row"] = rows.index
    rows.to_csv("rows.csv", index=False)
    monkeypatch.setattr("recsys_embed.jobs.report", lambda config, *a, **k: configs.append(config) or 1 / 0)
    configs: list[Config] = []
    result = run("report", "rows.csv", "--label", "clicked")
    assert isinstance(result.exception, ZeroDivisionError)
    (config,) = configs
    document = json.loads(run("inspect", "rows.csv", "--label", "clicked", "--json").stdout)
    assert config == parse_config(document["config"])
    assert config.data.categorical == ("user", "item", "twin")
    assert config.data.multi_valued == {"tags": "|"}
    assert config.data.split.column == "part"
    assert [one["code"] for one in document["warnings"]] == ["id_per_row", "one_to_one"]
    assert [line for line in result.stderr.splitlines() if line.startswith("warning")] == [
        f"warning: {one['message']}" for one in document["warnings"]
    ]
    unclear = run("report", "rows.csv", "--label", "user")
    assert unclear.exit_code == 2
    assert "it has more than 12 values" in unclear.stderr
    rows[["clicked", "price"]].to_csv("rows.csv", index=False)
    assert "no column looks categorical" in run("report", "rows.csv", "--label", "clicked").stderr


def test_inspect_writes_a_config_that_other_commands_take(clicks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    printed = run("inspect", str(clicks))
    assert printed.exit_code == 0, printed.stderr
    assert printed.stderr == ""
    result = run("inspect", str(clicks), "--out", "found.toml")
    assert (result.stdout, result.stderr.split(" (")[0]) == ("found.toml\n", "next: recsys-embed report found.toml")
    assert Path("found.toml").read_text(encoding="utf-8") == printed.stdout
    assert run("inspect", str(clicks), "--out", "found.toml", "--quiet").stderr == ""  # holds just that
    document = json.loads(run("prepare", "found.toml", "--json", "--out", "d").stdout)
    assert document["rows"] == {"train": 4000, "val": 1000, "test": 1000}
    assert [one["feature"] for one in document["features"]] == ["user", "item", "tags"]

    Path("mine.toml").write_text("mine")
    refused = run("inspect", str(clicks), "--out", "mine.toml")
    assert refused.exit_code == 2
    assert "mine.toml is there already" in refused.stderr
    assert Path("mine.toml").read_text() == "mine"
    assert run("inspect", str(clicks), "--out", ".").exit_code == 2

    few = run("inspect", str(clicks), "--rows", "500", "--json", "--out", "few.toml")
    assert json.loads(few.stdout)["rows"] == 500
    assert (json.loads(few.stdout)["whole"], json.loads(few.stdout)["out"]) == (False, "few.toml")
    assert "the first 500 rows" in Path("few.toml").read_text(encoding="utf-8")

    monkeypatch.setenv("COLUMNS", "60")
    labelled = run("inspect", str(clicks), "--label", "user")
    assert labelled.exit_code == 0
    assert labelled.stderr.startswith("warning: user cannot be the label")
    assert all(len(line) <= 60 for line in labelled.stderr.splitlines())
    Path("empty.csv").write_text("a,b\n")
    assert "holds no row" in run("inspect", "empty.csv").stderr
    assert "few.toml is a config" in run("inspect", "few.toml").stderr
    Path("ragged.csv").write_text("a,b\n1,2\n1\n")
    assert "row 2" in run("inspect", "ragged.csv").stderr


def test_train_then_predict(clicks: Path) -> None:
    result = run("train", "clicks.toml", "--json", "--out", "m", "--quiet")
    document = json.loads(result.stdout)
    assert document["model_dir"] == "m/model"
    assert document["history"][0]["epoch"] == 1
    assert load_config("m/model/config.toml") == load_config("clicks.toml", ("tracking.enabled=false",))

    printed = run("predict", "m/model", str(clicks)).stdout.splitlines()
    assert printed[0] == "row,score"
    assert len(printed) == 6001
    assert run("predict", "m/model", str(clicks), "--out", "p.parquet").stdout.splitlines()[-1] == "p.parquet"
    assert json.loads(run("predict", "m/model", str(clicks), "--json", "--out", "p.csv").stdout)["rows"] == 6000
    scores = json.loads(run("predict", "m/model", str(clicks), "--json").stdout)["scores"]
    assert scores == pd.read_csv("p.csv")["score"].tolist() == pd.read_parquet("p.parquet")["score"].tolist()
    assert scores == [float(line.split(",")[1]) for line in printed[1:]]

    document = json.loads(run("export", "m/model", "--as", "program", "--out", "m.pt2", "--json").stdout)
    assert document == {"form": "program", "out": "m.pt2"}
    assert Path("m.pt2").stat().st_size > 0
    assert run("export", "m/model", "--as", "program", "--out", "m.bin").exit_code == 2


def test_prepare_and_budget_tell_without_training() -> None:
    document = json.loads(run("prepare", "clicks.toml", "--json", "--out", "d").stdout)
    assert document["rows"] == {"train": 4000, "val": 1000, "test": 1000}
    rows = json.loads(run("budget", "clicks.toml", "--json", "--set", "study.budgets=[0.5, 7]").stdout)
    assert [(row["strategy"], row["budget"], row["status"]) for row in rows] == [
        ("full", "", "ok"),
        ("hash", "0.5", "ok"),
        ("hash", "7", "infeasible"),
    ]
    assert 0.98 * rows[1]["budget_bytes"] <= rows[1]["serve_bytes"] <= rows[1]["budget_bytes"]
    assert rows[2]["nearest_bytes"] > 7
    assert rows[2]["smallest_bytes"] == rows[1]["smallest_bytes"] == rows[2]["nearest_bytes"]
    assert rows[0]["smallest_bytes"] == rows[0]["serve_bytes"]
    for row in rows[:2]:
        assert sum(line["serve_bytes"] for line in row["ledger"]) == row["serve_bytes"]
    assert rows[0]["collisions"]["merged"] == dict.fromkeys(("all", "head", "torso", "tail"), 0.0)
    assert 0 < rows[1]["collisions"]["merged"]["head"] < rows[1]["collisions"]["merged"]["tail"] < 1
    told = run("budget", "clicks.toml").stdout
    assert "nearest bytes" in told
    assert "expected collisions" in told
    assert not Path("report-clicks/results.csv").exists()


def test_the_catalogue_names_every_strategy_and_model() -> None:
    strategies = json.loads(run("strategies", "--json").stdout)
    assert [one["name"] for one in strategies] == [
        *("full", "hash", "unified", "compositional", "robe", "cafe", "dnis", "mixed_dimension"),
        *("magnitude", "pep"),
    ]
    assert [one["name"] for one in strategies if one["needs"] != "nothing"] == ["cafe"]
    assert [one["name"] for one in strategies if one["raw_hash"]] == ["hash", "unified", "robe"]
    assert {one["name"] for one in strategies if one["new_ids"]} == {"full", "hash", "unified", "compositional", "robe"}
    assert all(one["use"] and one["paper"] and one["smallest"] for one in strategies)
    models = json.loads(run("models", "--json").stdout)
    assert {one["name"]: one["paper"] for one in models} == {"dcn_v2": "2008.13535", "dlrm": "1906.00091"}
    assert "unified" in run("strategies").stdout


def test_a_logged_run_can_be_repeated(quick_stores: None) -> None:
    store = ["--set", "tracking.uri='sqlite:///runs.db'"]
    result = run("report", "clicks.toml", "--out", "r", "--json", *store, tracking=True)
    rows = json.loads(result.stdout)["results"]
    assert all(row["mlflow_run_id"] for row in rows)

    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri="sqlite:///runs.db")
    experiment = client.get_experiment_by_name("recsys_embed")
    runs = {run.info.run_id: run for run in client.search_runs([experiment.experiment_id])}
    assert len(runs) == 3
    nested = runs[rows[1]["mlflow_run_id"]]
    assert nested.data.metrics["test_auc"] == rows[1]["test_auc"]
    parent = nested.data.tags["mlflow.parentRunId"]
    assert {"report.html", "results.csv"} <= {file.path for file in client.list_artifacts(parent)}

    again = run("train", "--from-run", rows[1]["mlflow_run_id"], "--out", "m", "--json", *store)
    document = json.loads(again.stdout)
    assert (document["run"], document["test_auc"]) == (rows[1]["run"], rows[1]["test_auc"])
    whole = run("report", "--from-run", parent, "--out", "r", "--json", *store)
    assert [row["reused"] for row in json.loads(whole.stdout)["results"]] == [True, True]


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_training_says_how_to_go_on(number: signal.Signals, code: int) -> None:
    long = ["--set", "training.epochs=100000", "--set", "training.patience=100000", "--set", "tracking.enabled=false"]
    command = [sys.executable, "-m", "recsys_embed", "train", "clicks.toml", "--out", "m", *long]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(Path("m").glob("checkpoints/*/step-*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == code, stderr
    assert stdout == ""
    assert "the same command goes on" in stderr
    assert "Traceback" not in stderr


def test_a_training_stopped_in_a_search_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A strategy with stages, from a signal at a step to the exported model; one run of MLflow has all of it.

    It goes on elsewhere: on another back end, and on a device of another name, which here is the CPU as well.
    """
    pytest.importorskip("mlflow")
    command = ["train", "clicks.toml", "--out", "m", "--quiet", "--json", "--set", "embedding.strategy='dnis'"]
    command += ["--set", "tracking.uri='sqlite:///stopped.db'"]
    plain, steps = trainer.step, []

    def stop(*arguments: Any) -> Any:
        steps.append(1)
        if len(steps) == 50:
            os.kill(os.getpid(), signal.SIGTERM)
        return plain(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "step", stop)
        for module in (study, trainer):
            patch.setattr(module, "device_of", lambda name: torch.device("cpu"))
        stopped = run(*command, "--set", "training.device=cuda", tracking=True)
    assert stopped.exit_code == 143, stopped.output
    assert "step 50 is saved, with 2 of at most 5 epochs finished" in stopped.stderr

    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri="sqlite:///stopped.db")
    experiment = client.get_experiment_by_name("recsys_embed").experiment_id
    (before,) = client.search_runs([experiment])
    assert before.info.status == "KILLED"
    elsewhere = ["--set", "embedding.backend=reference", "--set", "training.checkpoint_steps=1000"]
    done = run(*command, *elsewhere, tracking=True)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["epochs"] == 5
    (after,) = client.search_runs([experiment])
    assert (after.info.run_id, after.info.status) == (before.info.run_id, "FINISHED")
    assert [one.step for one in client.get_metric_history(after.info.run_id, "val_auc")] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("compression_report", "report-clicks/report.html"),
        ("offline_training", "train-clicks/model"),
        ("dimension_search", "search-clicks/report.html"),
    ],
)
def test_the_pipelines_do_what_the_commands_do(
    name: str, last: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = pipeline(name, monkeypatch)
    assert len(inspect.getsource(script).splitlines()) < 40
    small = ["--set", "tracking.enabled=false", "--set", "search.trials=1", "--set", "search.seeds=[0]", "--quiet"]
    monkeypatch.setattr(sys, "argv", ["script", "clicks.toml", *small])
    with contextlib.suppress(SystemExit):
        script.main()
    assert capsys.readouterr().out.splitlines()[-1] == last
    assert os.path.exists(last)


def pipeline(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A script of the checkout."""
    monkeypatch.syspath_prepend(Path(__file__).resolve().parents[1])
    return importlib.import_module(f"pipelines.{name}")
