"""Equal tuning: one list of trials for all, judged on validation, and the best of them measured beside the default."""

from __future__ import annotations

import builtins
import json
import math
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

from recsys_embed import jobs
from recsys_embed.config import Config, parse_config
from recsys_embed.data import EncodedDataset
from recsys_embed.errors import ConfigError
from recsys_embed.report import judge, study
from recsys_embed.report import run as run_module
from recsys_embed.report.judge import judge_cell, judged
from recsys_embed.report.results import COLUMNS, read_results
from recsys_embed.report.run import describe
from recsys_embed.report.study import exit_code, expand, prepare_into, run_study
from recsys_embed.report.trials import read_trials
from recsys_embed.report.tuning import contenders, proposals

CONTENDER = ["strategy", "budget_requested", "epochs"]


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
        "training": {"batch_size": 256, "epochs": 2, "threads": 1, "optimizer": {"tables_lr": 0.2, "dense_lr": 0.01}},
        "study": {
            "strategies": ["full", "hash"],
            "budgets": [0.5],
            "seeds": [3, 1],
            "tuning": {"trials": 4, "epochs": [1, 2]},
        },
        "tracking": {"enabled": False},
    }


def config(tree: dict[str, Any], *overrides: str) -> Config:
    return parse_config(json.loads(json.dumps(tree)), overrides)


def values(row: Any) -> dict[str, float]:
    return {name: row[name] for name in ("tables_lr", "decay")}


# --- the proposals -------------------------------------------------------------------------------------------


def proposed(tree: dict[str, Any], **space: Any) -> list[dict[str, float]]:
    tree["study"]["tuning"] = space
    return proposals(config(tree))


def test_proposals_begin_as_configured_cover_the_space_evenly_and_are_extended_by_more(tree: dict[str, Any]) -> None:
    space = {"trials": 17, "tables_lr": [0.001, 1.0], "decay": [1e-6, 1e-2], "no_decay": 0.25, "seed": 5}
    first, *found = proposed(tree, **space)
    assert first == {"tables_lr": 0.2, "decay": 0.0}
    # Sixteen points of a Sobol sequence: one in each sixteenth of a range, in powers of ten.
    assert sorted(math.floor(16 * (math.log10(one["tables_lr"]) + 3) / 3) for one in found) == list(range(16))
    decays = sorted(one["decay"] for one in found)
    assert decays[:4] == [0.0] * 4
    assert [math.floor(12 * (math.log10(decay) + 6) / 4) for decay in decays[4:]] == list(range(12))
    for fewer in (1, 3, 8):
        assert proposed(tree, **space | {"trials": fewer}) == [first, *found][:fewer]
    assert proposed(tree, **space | {"seed": 6})[1:] != found


def test_a_range_of_one_value_holds_it_and_an_absent_one_is_not_tuned(tree: dict[str, Any]) -> None:
    space = {"trials": 3, "tables_lr": [0.0512345, 0.0512345], "dense_lr": [0.001, 0.01], "no_decay": 1.0}
    first, *drawn = proposed(tree, **space)
    assert first == {"tables_lr": 0.2, "dense_lr": 0.01, "decay": 0.0}
    assert [{**one, "dense_lr": 0} for one in drawn] == [{"tables_lr": 0.0512345, "dense_lr": 0, "decay": 0.0}] * 2
    assert all("dense_lr" not in one for one in proposed(tree))


def test_without_scipy_the_extra_is_named_before_anything_is_written(
    tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("scipy"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"recsys-embed\[search\]") as caught:
        run_study(config(tree), tmp_path / "out", progress=False)
    assert caught.value.path == "study.tuning"
    assert not (tmp_path / "out").exists()


# --- a judged cell -------------------------------------------------------------------------------------------


def test_a_judged_cell_is_that_of_a_run_without_reading_the_test_split(
    tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = prepare_into(config(tree), tmp_path / "out")
    cell = expand(config(tree))[-1]
    measured = run_module.run_cell(cell, dataset, tmp_path / "whole", progress=False)["row"]

    class Sealed(EncodedDataset):
        """A data set whose test split cannot be read."""

        def __getattribute__(self, name: str) -> Any:
            found = super().__getattribute__(name)
            if not callable(found) or name == "rows":
                return found

            def guarded(*args: Any, **kwargs: Any) -> Any:
                assert "test" not in [one for one in (*args, *kwargs.values()) if isinstance(one, str)], name
                return found(*args, **kwargs)

            return guarded

    sealed = Sealed.open(dataset.path)
    with pytest.raises(AssertionError):
        sealed.labels("test")
    document = judge_cell(cell, sealed, tmp_path / "out", progress=False)
    row = document["row"]
    same = ["run", "val_auc", "samples_seen", "epochs", "best_epoch", "serve_bytes", "train_bytes", "settings", "parts"]
    assert {name: row[name] for name in same} == {name: measured[name] for name in same}
    assert row["status"] == "ok"
    assert row["wall_seconds"] > 0
    assert [line["epoch"] for line in document["history"]] == [1, 2]
    tested = [name for name in COLUMNS if name.startswith(("test_", "auc_", "predict_", "latency_"))]
    assert [row[name] for name in tested] == [None] * len(tested)
    assert not (tmp_path / "out" / "predictions").exists()
    # It is no run of the study, and is not trained again.
    assert run_module.finished(cell, dataset, tmp_path / "out") is None
    monkeypatch.setattr(judge, "fit", None)
    again = judge_cell(cell, dataset, tmp_path / "out")
    assert again["row"] | {"reused": False} == row
    assert judged(cell, dataset, tmp_path / "whole") is None


def test_an_interrupted_judged_cell_goes_on_from_its_checkpoint(tree: dict[str, Any], tmp_path: Path) -> None:
    dataset = prepare_into(config(tree), tmp_path / "out")
    cell = expand(config(tree))[0]
    whole = judge_cell(cell, dataset, tmp_path / "whole", progress=False)

    def interrupt(line: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judge_cell(cell, dataset, tmp_path / "out", progress=False, on_epoch=interrupt)
    seen: list[dict[str, Any]] = []
    again = judge_cell(cell, dataset, tmp_path / "out", progress=False, on_epoch=seen.append)
    assert [line["epoch"] for line in seen] == [2]
    assert again["row"]["val_auc"] == whole["row"]["val_auc"]


@pytest.mark.parametrize(
    ("status", "kept"), [("ok", True), ("infeasible", True), ("diverged", True), ("failed", False)]
)
def test_what_failed_is_judged_again_and_what_diverged_is_not(
    tree: dict[str, Any], tmp_path: Path, status: str, kept: bool
) -> None:
    dataset = prepare_into(config(tree), tmp_path)
    cell = expand(config(tree))[0]
    document = {"row": describe(cell, dataset) | {"status": status}, "history": []}
    run_module.save_document(tmp_path, document, judge.JUDGED)
    assert (judged(cell, dataset, tmp_path) is not None) == kept
    path = tmp_path / "runs" / document["row"]["run"] / judge.JUDGED
    path.write_text(path.read_text().replace(status, "ok "))
    assert judged(cell, dataset, tmp_path) is None  # damaged


# --- the choice ----------------------------------------------------------------------------------------------


BEST = {"full": (0.3, 0.0), "hash": (0.01, 1e-5)}
"""The best learning rate and decay of a strategy."""


def far(strategy: str, lr: float, decay: float) -> float:
    """The distance to the best settings."""
    best_lr, best_decay = BEST[strategy]
    return abs(math.log(lr / best_lr)) + abs(math.log((decay + 1e-9) / (best_decay + 1e-9))) / 10


class Stub:
    """Trials with a planted answer: AUC falls with the distance to the best settings."""

    def __init__(self, **statuses: str) -> None:
        self.statuses, self.seen = statuses, list[Any]()

    def __call__(self, cell: Any, dataset: Any, out: Path, *, progress: bool) -> dict[str, Any]:
        self.seen.append(cell)
        training = cell.config.training
        lr, decay = training.optimizer.tables_lr, cell.config.embedding.decay
        row = describe(cell, dataset) | {"status": self.statuses.get(cell.strategy, "ok"), "wall_seconds": 2.0}
        if row["status"] == "ok":
            row |= {"val_auc": 0.8 - far(cell.strategy, lr, decay) / 100, "samples_seen": 100 * training.epochs}
        else:
            row |= {"error": f"E {lr}"}
        return {"row": row, "history": []}


def test_the_best_trial_of_the_same_list_wins_for_each(
    tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stub = Stub()
    monkeypatch.setattr(study, "judge_cell", stub)
    tree["study"] |= {"budgets": [0.5, 7], "tuning": {"trials": 8, "epochs": [1, 2], "no_decay": 0.5}}
    rows = run_study(config(tree), tmp_path / "tuned", progress=False)
    plain = config(tree)
    plain = plain.model_copy(update={"study": plain.study.model_copy(update={"tuning": None})})
    default = run_study(plain, tmp_path / "plain", progress=False)
    assert not (tmp_path / "plain" / "trials.csv").exists()

    # The default rows are those of a study without tuning.
    columns = ["run", "strategy", "budget_requested", "seed", "status", "error", "test_auc", "val_auc", "tuned"]
    columns += ["tuning", "protocol", "serve_bytes", "settings"]
    pd.testing.assert_frame_equal(rows[~rows["tuned"]][columns], default[columns])
    # Every contender, full included, was given the same list; one that fits no budget was given none.
    trials = read_trials(tmp_path / "tuned")
    listed = [values(one) for one in proposals(config(tree))]
    groups = dict(list(trials.groupby(CONTENDER)))
    assert list(groups) == [("full", "", 1), ("full", "", 2), ("hash", "0.5", 1), ("hash", "0.5", 2)]
    for mine in groups.values():
        assert mine["trial"].tolist() == list(range(1, 9))
        assert [values(one) for _, one in mine.iterrows()] == listed
        assert mine["chosen"].sum() == 1
        assert mine["seed"].eq(3).all()
    assert len(stub.seen) == 4 * 8

    # What each wins with is what is planted, found by brute force.
    tuned = rows[rows["tuned"]].reset_index(drop=True)
    told = tuned[["strategy", "budget_requested", "seed", "status"]].to_numpy().tolist()
    expected = []
    for strategy, budget, status in (("full", "", "ok"), ("hash", "0.5", "ok"), ("hash", "7", "infeasible")):
        expected += [[strategy, budget, seed, status] for _ in (1, 2) for seed in (3, 1)]
    assert told == expected
    for _, row in tuned[tuned["status"] == "ok"].iterrows():
        distances = [far(row["strategy"], one["tables_lr"], one["decay"]) for one in listed]
        best = listed[distances.index(min(distances))]
        assert row["tuning"]["values"] == best
        assert row["tuning"]["trial"] == listed.index(best) + 1
        assert row["tuning"]["trials"] == 8
        assert row["tuning"]["space"]["tables_lr"] == [0.005, 0.5]
        group = groups[(row["strategy"], row["budget_requested"], row["tuning"]["epochs"])]
        assert values(group[group["chosen"]].iloc[0]) == best
        assert row["epochs"] <= row["tuning"]["epochs"]
    assert tuned["epochs"].dropna().tolist()[:4] == [1, 1, 2, 2]
    assert read_results(tmp_path / "tuned" / "results.csv")["run"].tolist() == rows["run"].tolist()


def test_what_was_open_is_no_part_of_the_protocol_that_all_share(tree: dict[str, Any], tmp_path: Path) -> None:
    tree["data"]["split"] = {"random": [0.6, 0.2, 0.2], "seed": 7}
    tree["study"]["tuning"] |= {"dense_lr": [0.001, 0.01]}
    asked = config(tree)
    dataset = prepare_into(asked, tmp_path)
    cell = expand(asked)[0]
    tuned = [one for contender in contenders(asked, [cell]) for one in contender.tuned([3], 0)]
    expected = describe(cell, dataset)["protocol"]
    del expected["training"]["epochs"], expected["embedding"]["decay"]
    del expected["training"]["optimizer"]["tables_lr"], expected["training"]["optimizer"]["dense_lr"]
    assert expected["split"]["seed"] == 7
    assert [describe(one, dataset)["protocol"] for one in tuned] == [expected] * 2


def test_trials_that_do_not_end_well_are_spent_and_never_win(
    tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def half(cell: Any, dataset: Any, out: Path, *, progress: bool) -> dict[str, Any]:
        row = describe(cell, dataset) | {"status": "ok", "val_auc": 0.7, "wall_seconds": 1.0}
        if cell.strategy == "full" and cell.config.training.optimizer.tables_lr > 0.05:
            row |= {"status": "diverged", "val_auc": None, "error": "E"}
        return {"row": row, "history": []}

    tree["study"]["tuning"] = {"trials": 8, "epochs": [1]}
    monkeypatch.setattr(study, "judge_cell", half)
    rows = run_study(config(tree, "study.seeds=[0]"), tmp_path, progress=False)
    assert rows["status"].eq("ok").all()
    trials = read_trials(tmp_path)
    full = trials[trials["strategy"] == "full"]
    assert len(full) == len(trials) / 2 == 8
    assert full["status"].value_counts().to_dict() == {"ok": 3, "diverged": 5}
    assert full[full["status"] == "ok"]["chosen"].tolist() == [True, False, False]  # of equals the first
    assert exit_code(rows) == 0

    monkeypatch.setattr(study, "judge_cell", Stub(hash="failed"))
    again = run_study(config(tree, "study.seeds=[0]"), tmp_path / "none", progress=False)
    lost = again[again["status"] != "ok"]
    assert lost[["strategy", "tuned", "status"]].to_numpy().tolist() == [["hash", True, "failed"]]
    first = proposals(config(tree))[0]["tables_lr"]
    assert lost["error"].iloc[0] == f"none of 8 trials ended well; the first failed: E {first}"
    assert lost["tuning"].iloc[0]["values"] == {}
    assert exit_code(again) == 4
    assert f"hash, budget 0.5, tuned, epochs 1, seed 0: none of 8 trials ended well; the first failed: E {first}" in (
        caplog.messages
    )
    assert len(read_results(tmp_path / "none" / "results.csv")) == 4


def test_equal_proposals_are_trained_once_and_tuning_to_the_default_is_a_row_of_its_own(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    fixed = {"trials": 3, "epochs": [2], "tables_lr": [0.2, 0.2], "no_decay": 1.0}
    tree["study"] |= {"strategies": ["full"], "seeds": [0], "tuning": fixed}
    rows = run_study(config(tree), tmp_path, progress=False)
    assert rows["tuned"].tolist() == [False, True]
    assert rows["run"].nunique() == 2
    assert rows["test_auc"].nunique() == 1
    trials = read_trials(tmp_path)
    assert trials["run"].tolist() == [rows["run"][0]] * 3
    assert trials["chosen"].tolist() == [True, False, False]


def test_permuting_the_test_labels_leaves_the_choice_as_it_is(
    tree: dict[str, Any], clicks: Path, tmp_path: Path
) -> None:
    tree["study"] |= {"seeds": [0], "tuning": {"trials": 3, "epochs": [2], "tables_lr": [0.001, 2.0]}}
    rows = run_study(config(tree), tmp_path / "a", progress=False)
    frame = pd.read_csv(clicks)
    test = frame["part"] == "test"
    frame.loc[test, "clicked"] = np.random.default_rng(0).permutation(frame.loc[test, "clicked"])
    frame.to_csv(tmp_path / "permuted.csv", index=False)
    tree["data"]["path"] = str(tmp_path / "permuted.csv")
    permuted = run_study(config(tree), tmp_path / "b", progress=False)
    assert (permuted["test_auc"] - 0.5).abs().max() < 0.08  # another test set indeed
    assert rows["test_auc"].max() > 0.65
    assert permuted["tuning"].tolist() == rows["tuning"].tolist()
    same = [*CONTENDER, "trial", "tables_lr", "decay", "val_auc", "chosen"]
    pd.testing.assert_frame_equal(read_trials(tmp_path / "a")[same], read_trials(tmp_path / "b")[same])
    # And the rows that are measured are trained as the trials said.
    tuned = rows[rows["tuned"]]
    chosen = read_trials(tmp_path / "a").query("chosen")
    assert tuned["val_auc"].tolist() == chosen["val_auc"].tolist()


# --- processes and kills -------------------------------------------------------------------------------------


def test_trials_are_reused_and_more_of_them_are_only_those_that_are_new(
    tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree["study"] |= {"seeds": [0], "tuning": {"trials": 2, "epochs": [1]}}
    rows = run_study(config(tree), tmp_path, progress=False)
    fitted: list[Any] = []
    fit = judge.fit
    monkeypatch.setattr(judge, "fit", lambda cell, *args, **kwargs: fitted.append(cell) or fit(cell, *args, **kwargs))
    again = run_study(config(tree), tmp_path, progress=False)
    assert not fitted
    assert again["reused"].all()
    assert again["run"].tolist() == rows["run"].tolist()
    more = run_study(config(tree, "study.tuning.trials=3"), tmp_path, progress=False)
    assert len(fitted) == 2
    assert {row["trials"] for row in more[more["tuned"]]["tuning"]} == {3}  # also of a run that is reused
    # Without tuning, the folder holds nothing of it.
    del tree["study"]["tuning"]
    assert not run_study(config(tree), tmp_path, progress=False)["tuned"].any()
    assert not (tmp_path / "trials.csv").exists()


def test_workers_choose_as_one_process_does(tree: dict[str, Any], tmp_path: Path) -> None:
    # One cell before the trials and one after them, so that the trials alone are what the workers do.
    tree["study"] |= {"strategies": ["full"], "seeds": [0], "tuning": {"trials": 2, "epochs": [1]}}
    alone = run_study(config(tree), tmp_path / "a", progress=False)
    shared = run_study(config(tree, "study.workers=2"), tmp_path / "b", progress=False)
    assert shared["run"].tolist() == alone["run"].tolist()
    assert shared["tuning"].tolist() == alone["tuning"].tolist()
    assert shared["test_auc"].tolist() == pytest.approx(alone["test_auc"].tolist(), abs=1e-6)


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_a_study_killed_among_its_trials_goes_on_where_it_was(tree: dict[str, Any], tmp_path: Path) -> None:
    tree["study"] |= {"strategies": ["full"], "seeds": [0], "tuning": {"trials": 8, "epochs": [4]}}
    long = config(tree, "training.patience=4")
    (tmp_path / "config.toml").write_text(long.to_toml())
    command = [sys.executable, "-m", "recsys_embed", "report", "config.toml", "--out", "out", "--quiet"]
    process = subprocess.Popen(command, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 100
    while not (tmp_path / "out" / "trials.csv").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    kept = read_trials(tmp_path / "out")
    assert 1 <= len(kept) < 8
    assert not kept["chosen"].any()  # the best of a part of them is not the best
    rows = run_study(long, tmp_path / "out", progress=False)
    trials = read_trials(tmp_path / "out")
    assert len(trials) == 8
    same = ["trial", "val_auc", "wall_seconds", "run"]
    pd.testing.assert_frame_equal(trials[same].iloc[: len(kept)], kept[same])
    assert rows["tuning"][1]["trial"] == trials["trial"][trials["val_auc"].idxmax()]


# --- the job -------------------------------------------------------------------------------------------------


def test_a_report_tracks_what_is_measured_and_the_table_of_trials(
    tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracked: list[dict[str, Any]] = []
    files: list[str] = []

    class Tracker:
        """Keeps what it is told."""

        def __init__(self, *args: Any, **kwargs: Any) -> None: ...

        def training(self, config: Config, row: dict[str, Any], **kwargs: Any) -> str:
            tracked.append({"lr": config.training.optimizer.tables_lr, **row})
            return f"run {len(tracked)}"

        def artifacts(self, paths: list[Path]) -> None:
            files.extend(path.name for path in paths if path.exists())

        def close(self, status: str) -> None: ...

    monkeypatch.setattr(jobs, "Tracker", Tracker)
    tree["study"] |= {"strategies": ["full"], "seeds": [0], "tuning": {"trials": 3, "epochs": [1]}}
    done = jobs.report(config(tree), tmp_path / "out", progress=False)
    assert [row["tuned"] for row in tracked] == [False, True]
    assert tracked[1]["lr"] == tracked[1]["tuning"]["values"]["tables_lr"]
    assert done.results["mlflow_run_id"].tolist() == ["run 1", "run 2"]
    assert sorted(files) == ["config.toml", "report.html", "report.md", "results.csv", "trials.csv"]
    assert "full (tuned)" in done.page.read_text(encoding="utf-8")
    # A run that is reused is tracked once.
    again = jobs.report(config(tree), tmp_path / "out", progress=False)
    assert again.results["mlflow_run_id"].tolist() == ["run 1", "run 2"]
    assert len(tracked) == 2
