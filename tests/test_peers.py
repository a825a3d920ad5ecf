"""Training beside peers: the rows, what contenders of our own environment learn, and how turns are taken and told."""

from __future__ import annotations

import ast
import json
import runpy
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from bench.harness.criteo import CARDINALITIES, CATEGORICAL
from bench.peers import duel as duels
from bench.peers import environments, measure, rows
from bench.peers.duel import BARE, OWN, SHARED, Cell, Plan, duel
from bench.peers.roster import BASELINE, COMMON, ROSTER, Contender
from bench.peers.table import table
from recsys_embed.training.metrics import auc

SCRIPTS = Path(measure.__file__).parent / "contenders"
TOTAL, TRAIN, VAL, BATCH = 1000, 20_480, 8_192, 512
CELL = Cell("deepfm", "S", 16, 4096)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> rows.Rows:
    return rows.make(tmp_path_factory.mktemp("rows"), TOTAL, TRAIN, VAL)


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Contenders' own modules can be imported, and are forgotten afterwards."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    threads, products = torch.get_num_threads(), torch.get_float32_matmul_precision()
    yield
    torch.set_num_threads(threads)
    torch.set_float32_matmul_precision(products)
    for name in ("common", "models", "ours"):
        sys.modules.pop(name, None)


Train = Callable[..., tuple[dict[str, Any], float, np.ndarray]]


@pytest.fixture
def train(
    made: rows.Rows,
    modules: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Train:
    """Runs a contender in this process: its answer, its AUC and its scores."""

    def run(script: str, options: Mapping[str, Any]) -> tuple[dict[str, Any], float, np.ndarray]:
        setting = setting_of(made) | {"precision": "fp32", "scores": str(tmp_path / "s.npz"), "began": time.time()}
        monkeypatch.setattr(sys, "argv", [script, json.dumps(setting | dict(options))])
        runpy.run_path(str(SCRIPTS / f"{script}.py"), run_name="__main__")
        answer = json.loads(capsys.readouterr().out.splitlines()[-1])
        with np.load(tmp_path / "s.npz") as found:
            return answer, auc(found["labels"], found["scores"]), found["scores"]

    return run


def setting_of(made: rows.Rows) -> dict[str, Any]:
    return {
        "train": made.train,
        "val": made.val,
        "cardinalities": made.cardinalities,
        "model": "deepfm",
        "dim": 16,
        "batch": BATCH,
        "threads": 1,
        "tables_lr": 0.02,
        "dense_lr": 0.005,
    }


def test_cardinalities_are_capped_to_a_sum():
    for total in rows.SIZES.values():
        sizes = rows.capped(total)
        assert total - 26 < sum(sizes) <= total
        cap = max(sizes)
        assert sizes == [min(size, cap) for size in CARDINALITIES]


def test_rows_have_the_law_they_are_planted_by(made: rows.Rows):
    train, val = pq.read_table(made.train), pq.read_table(made.val)
    assert (train.num_rows, val.num_rows) == (TRAIN, VAL)
    for name, size in zip(CATEGORICAL, made.cardinalities, strict=True):
        ids = train[name].to_numpy()
        assert ids.min() >= 0
        assert ids.max() < size
    x, power = np.arange(1, made.cardinalities[0] + 1.0), -0.05
    chance = np.diff(x**power) / (x[-1] ** power - 1)
    found = np.bincount(train[CATEGORICAL[0]].to_numpy(), minlength=len(chance))[: len(chance)] / TRAIN
    assert np.abs(found - chance).max() < 0.01  # four deviations
    assert 0.75 < made.best_auc < 0.9


def test_effects_are_standard_under_the_law():
    (effect,) = rows.standard(np.random.default_rng(0), 50, 1)
    x, power = np.arange(1, 51.0), -0.05
    chance = np.append(np.diff(x**power) / (x[-1] ** power - 1), 0)
    assert effect @ chance == pytest.approx(0, abs=1e-5)
    assert np.square(effect) @ chance == pytest.approx(1, abs=1e-5)


def test_rows_are_made_once_and_the_same(tmp_path: Path):
    first = rows.make(tmp_path / "a", TOTAL, 300, 100)
    stamp = Path(first.train).stat().st_mtime_ns
    assert rows.make(tmp_path / "a", TOTAL, 300, 100) == first
    assert Path(first.train).stat().st_mtime_ns == stamp
    again = rows.make(tmp_path / "b", TOTAL, 300, 100)
    assert pq.read_table(first.val).equals(pq.read_table(again.val))


def test_contenders_of_our_own_environment_learn_the_same(train: Train, made: rows.Rows):
    """After the same samples all are as good: none is fast because it learns less."""
    pytest.importorskip("fbgemm_gpu", reason="some of the contenders are FBGEMM's")
    reached = {}
    for one in ROSTER:
        if one.environment is None:
            answer, reached[one.name], _ = train(one.script, one.options)
            assert len(answer["ended"]) == TRAIN // BATCH
            assert (answer["optimizer"] == COMMON) == one.rowwise
    assert set(reached) >= {"ours", "ours, fused", BASELINE, "FBGEMM, two threads", "torch, sparse", "torch, dense"}
    assert min(reached.values()) > 0.7  # 0.5 is to know nothing
    assert max(reached.values()) < made.best_auc
    assert max(reached.values()) - min(reached.values()) < 0.01


def test_two_threads_of_fbgemm_do_the_work_of_one(train: Train):
    pytest.importorskip("fbgemm_gpu")
    one, two = (train("fbgemm_by_hand", {"halves": halves})[2] for halves in (1, 2))
    np.testing.assert_allclose(one, two, atol=1e-3)


def test_a_back_end_that_is_not_there_is_left_out(train: Train, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        train("ours", {"backend": "no such"})
    assert "backend is one of" in json.loads(capsys.readouterr().out)["left_out"]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", ["dlrm", "dcn_v2"])
def test_the_models_are_ours_layer_for_layer(modules: None, name: str, padded: bool):
    import models
    import ours as script

    ours, theirs = script.dense_half(name, 8, padded=padded), models.build(name, 8)
    assert type(ours) is not type(theirs)
    with torch.no_grad():
        for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
            one.copy_(other)
    generator = torch.Generator().manual_seed(0)
    vectors, dense = torch.randn(5, 26, 8, generator=generator), torch.randn(5, 13, generator=generator)
    torch.testing.assert_close(ours(vectors, dense), theirs(vectors, dense))
    rounded = models.build(name, 8, "bf16")
    rounded.inner.load_state_dict(theirs.state_dict())
    found = rounded(vectors, dense)
    assert found.dtype == torch.float32
    assert 0 < (found - ours(vectors, dense)).abs().max() < 0.05


def test_deepfm_by_brute_force(modules: None):
    import models

    model = models.build("deepfm", 4).double()
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(3, 26, 4, generator=generator, dtype=torch.float64)
    dense = torch.randn(3, 13, generator=generator, dtype=torch.float64)
    pairs = sum((vectors[:, i] * vectors[:, j]).sum(1) for i in range(26) for j in range(i))
    rest = model.linear(dense) + model.deep(torch.cat((vectors.flatten(1), dense), 1))
    torch.testing.assert_close(model(vectors, dense), pairs + rest.squeeze(1))


def test_no_contender_but_ours_imports_this_project():
    def roots(path: Path) -> set[str]:
        found = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {name.name.split(".")[0] for name in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(str(node.module).split(".")[0])
        return found

    those = {path.stem for path in SCRIPTS.glob("*.py") if roots(path) & {"recsys_embed", "bench"}}
    assert those == {"ours"}
    assert {one.script for one in ROSTER} <= {path.stem for path in SCRIPTS.glob("*.py")}


def test_a_training_is_measured_in_a_process_of_its_own(made: rows.Rows, tmp_path: Path):
    contender = Contender("torch", "plain_torch", options={"sparse": True})
    found = measure.run(contender, contender.options, setting_of(made), tmp_path, limit=120, bare=False)
    assert found["auc"] > 0.7
    assert found["peak_bytes"] > 100e6  # torch alone
    assert 0 < found["first_batch_seconds"] < 120
    assert found["samples_per_second"] > 0
    broken = Contender("broken", "plain_torch")
    assert "sparse" in measure.run(broken, {}, setting_of(made), tmp_path, limit=120, bare=True)["failed"]
    assert "Traceback" in (tmp_path / "failures" / "broken.txt").read_text()


def test_a_training_that_takes_too_long_is_stopped(made: rows.Rows, tmp_path: Path):
    contender = Contender("torch", "plain_torch", options={"sparse": True})
    found = measure.run(contender, contender.options, setting_of(made), tmp_path, limit=0.2, bare=False)
    assert found == {"left_out": "left out: took more than 0 s"}


def test_speed_leaves_out_the_first_steps():
    # The first two steps end at 5 and 9; then steps of 1, 1 and 2 seconds.
    assert measure.speed([5, 9, 10, 11, 13], 8) == {"samples_per_second": 8, "samples_per_second_total": 6}


def test_what_does_not_fit_or_is_not_there_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(measure.psutil, "virtual_memory", lambda: SimpleNamespace(available=20e9))
    dense = Contender("dense", "plain_torch", copies=7)
    assert measure.obstacle(dense, tmp_path, 10_000_000, 64) == "left out: would need 19 GB"
    assert measure.obstacle(dense, tmp_path, 10_000_000, 16) is None
    assert measure.obstacle(Contender("x", "y", "fuxictr"), tmp_path, 10, 16) == "not installed"


def test_environments_are_made_once_and_again_where_they_are_not_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    calls: list[list[str]] = []
    refused: set[str] = {"deepctr-torch==0.3.0"}

    def run(command: list[str], **_: Any) -> Any:
        calls.append(command)
        if "venv" in command:
            environments._packages(Path(command[-1])).mkdir(parents=True)
        bad = bool(refused & set(command))
        return SimpleNamespace(returncode=int(bad), stderr="no such distribution\n" if bad else "")

    monkeypatch.setattr(environments.subprocess, "run", run)
    failed = environments.install(tmp_path, ["deepctr", "fuxictr"])
    assert list(failed) == ["deepctr"]
    assert "no such distribution" in failed["deepctr"]
    assert environments.python_of(tmp_path, "deepctr") is None
    python = environments.python_of(tmp_path, "fuxictr")
    assert python is not None
    (link,) = python.parents[1].glob("lib/*/site-packages/*.pth")
    assert Path(link.read_text().strip()) == environments._packages(tmp_path / "environments" / "torch")
    calls.clear()
    refused.clear()
    assert environments.install(tmp_path, ["deepctr", "fuxictr"]) == {}
    assert [command[-1] for command in calls if "venv" in command] == [str(tmp_path / "environments" / "deepctr")]


@pytest.fixture
def acted(monkeypatch: pytest.MonkeyPatch, made: rows.Rows) -> list[tuple[str, str]]:
    """Nobody trains: speeds are as given, a turn slower each. The order of turns."""
    turns: list[tuple[str, str]] = []
    speeds = {"ours": 300.0, BASELINE: 100.0, "TorchRec, fused": 90.0, "wrong": 900.0}

    def run(one: Contender, options: Any, setting: Any, home: Any, limit: float, bare: bool) -> dict[str, Any]:
        turns.append((one.name, BARE if bare else OWN if options == dict(one.options) else SHARED))
        if one.name == "torch, dense":
            return {"failed": "MemoryError"}
        pace = speeds[one.name] / len([turn for turn in turns if turn == turns[-1]])
        same = dict.fromkeys(duels.FIGURES, 1.0)
        reached = 0.6 if one.name == "wrong" else 0.75
        return {**same, "samples_per_second": pace, "auc": reached, "optimizer": COMMON if one.rowwise else "Adagrad"}

    monkeypatch.setattr(duels, "run", run)
    monkeypatch.setattr(duels.rows, "make", lambda *_: made)
    reasons = {"FuxiCTR": "left out: would need 19 GB"}
    monkeypatch.setattr(duels, "obstacle", lambda one, *_: reasons.get(one.name))
    return turns


def test_contenders_take_turns_and_another_begins_each_time(acted: list[tuple[str, str]], tmp_path: Path):
    known = {one.name: one for one in ROSTER}
    wrong = Contender("wrong", "ours", rowwise=True)
    chosen = [known[name] for name in ("ours", BASELINE, "TorchRec, fused", "torch, dense", "FuxiCTR")] + [wrong]
    lines = duel(Plan(tmp_path, 10, 10, 2, 1, 60, bare=True), CELL, chosen)
    of = {(one["contender"], one["column"]): one for one in lines}
    first = [turn for turn in acted if turn[1] == BARE]
    assert [name for name, _ in first] == ["ours", BASELINE, "TorchRec, fused", "wrong"]
    assert acted[0] == ("ours", OWN)
    starts = [acted.index(("ours", OWN)), len(acted) - 5]
    assert acted[starts[1]] != acted[starts[0]]
    assert acted.count(("TorchRec, fused", SHARED)) == 2
    assert of["ours", OWN]["samples_per_second"] == {"median": 225, "lowest": 150, "highest": 300}
    assert of["ours", OWN]["over_fbgemm"] == {"median": 3, "lowest": 3, "highest": 3}
    assert of["torch, dense", OWN]["left_out"] == "failed: MemoryError"
    assert of["FuxiCTR", OWN]["left_out"] == "left out: would need 19 GB"
    assert [name for (name, column), one in of.items() if one.get("behind") and column == OWN] == ["wrong"]
    told = table({"date": "", "machine": {}, "versions": {}, "setting": {}, "cells": lines})
    rows_of = {line[:21].strip(): line for line in told.splitlines()}
    assert "(675)" in rows_of["wrong"]
    assert "3.00" in rows_of["ours"]
    assert rows_of["FuxiCTR"].endswith("would need 19 GB")
    assert "MemoryError" in rows_of["torch, dense"]
    assert json.loads(json.dumps(lines)) == lines
