"""What the benchmarks count and how they time: bytes and balance by hand, and the trainer's own step."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from bench import dense, loader, scoring, sharding, startup, training_throughput
from bench.harness import bandwidth, strategies, worlds
from bench.harness.bandwidth import Bytes, Size, bytes_of
from bench.harness.draws import scattered, uniform, zipf_ranks
from bench.harness.steps import PARTS, TimedStep
from bench.harness.worlds import Scale, Setup
from recsys_embed import EmbeddingLayer, Feature
from recsys_embed.config import DataConfig, TrainingConfig
from recsys_embed.data import prepare
from recsys_embed.embeddings import CLASSES
from recsys_embed.embeddings.compositional import Compositional
from recsys_embed.features import resolve
from recsys_embed.ids import Ids
from recsys_embed.share import WHOLE
from recsys_embed.tables.base import UpdateRule
from recsys_embed.tables.placement import Scatter

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
IDS = Ids(torch.tensor([[0, 0, 1], [2, 2, 2]]), 2)
FEATURES = [Feature("a", 4), Feature("b", 4)]
SCALE = Scale(features=3, rows=50, dim=4, batch=40, rounds=2, steps=3)


def counted(strategy: Any, rule: str = "rowwise_adagrad", **options: Any) -> Bytes:
    (one,) = EmbeddingLayer(FEATURES, 16, strategy=strategy, exact=(), **options).strategies
    return bytes_of(one, IDS, UpdateRule(rule))


def test_bytes_of_full_tables_by_hand():
    # 6 ids of 3 distinct rows; an id is a number and an offset (16), a row of 16 floats (64), a vector (64).
    expected = Bytes(6 * (16 + 64 + 64), 6 * (16 + 64) + 3 * 64, 6 * (64 + 16) + 3 * 2 * (64 + 4))
    assert counted("full") == expected
    assert counted("full", "sgd").update == 6 * (64 + 16) + 3 * 2 * 64
    assert counted("full", "adagrad").update == 6 * (64 + 16) + 3 * 2 * (64 + 64)


def test_bytes_of_int8_rows_by_hand():
    # A weight is a byte in the table and a float in a vector.
    expected = Bytes(6 * (16 + 16 + 64), 6 * (16 + 64) + 3 * 16, 6 * (64 + 16) + 3 * 2 * (16 + 4))
    assert counted({"name": "full", "storage": "int8"}) == expected


def test_bytes_of_products_by_hand():
    # Quotient and remainder, both tables of 2 rows: ids 0, 0, 1 read 3 rows, and 2, 2, 2 read 2 rows, of 12 reads.
    radices = {"a": [2, 2], "b": [2, 2]}
    product, total = (Compositional(resolve(FEATURES), 16, radices=radices, operation=o) for o in ("multiply", "add"))
    expected = Bytes(12 * (16 + 64) + 6 * 64, 12 * 16 + 5 * 64 + 6 * 64, 6 * 64 + 12 * (16 + 64) + 5 * 2 * (64 + 4))
    assert bytes_of(product, IDS, UpdateRule("rowwise_adagrad")) == expected
    # A sum needs no partner's row for its gradient.
    assert bytes_of(total, IDS, UpdateRule("rowwise_adagrad")).update == expected.update - 12 * 64


def test_bytes_of_chunks_by_hand():
    # Two rows of 8 floats for each of 6 ids; how many are distinct, the hash decides.
    found = counted("unified", budget=0.9)
    assert found.forward == 12 * (16 + 32) + 6 * 64
    distinct = (found.forward_cold - 12 * 16 - 6 * 64) / 32
    assert distinct in (4, 5, 6)
    assert found.update == 6 * 64 + 12 * 16 + distinct * 2 * (32 + 4)


@pytest.mark.parametrize("device", DEVICES)
def test_bandwidth_is_measured_where_a_back_end_can_hold_the_tables(device: str):
    pytest.importorskip("fbgemm_gpu", reason="one of the back ends is FBGEMM's")
    size = Size(features=2, table_bytes=64_000, vector_bytes=4096, repeats=2)
    found = bandwidth.measure(torch.device(device), (16,), size)
    assert found["copy_gb_per_second"] > 0
    cells = {(c["strategy"], c["backend"], c.get("ids")): c for c in found["cells"]}
    assert [key for key, cell in cells.items() if "refused" in cell] == [("full, int8", "fused", None)]
    measured = [cell for cell in cells.values() if "refused" not in cell]
    assert len(measured) == 2 * (5 + 4)
    assert all(cell["forward_gb_per_second"] > 0 and cell["update_gb_per_second"] > 0 for cell in measured)
    assert all(cell["forward_cold_of_copy"] <= cell["forward_of_copy"] for cell in measured)


def test_draws():
    generator = torch.Generator().manual_seed(0)
    ranks = zipf_ranks(4, 1000, 20_000, generator)
    weights = 1 / torch.arange(1, 1001, dtype=torch.float64) ** 1.05
    expected = weights / weights.sum()
    found = torch.bincount(ranks.view(-1), minlength=1000) / ranks.numel()
    assert (found[:20] - expected[:20]).abs().max() < 0.005
    assert torch.equal(scattered(torch.arange(1000), 1000).sort().values, torch.arange(1000))
    plain = uniform(4, 1000, 20_000, generator)
    assert plain.min() == 0
    assert plain.max() == 999
    assert abs(plain.double().mean().item() - 499.5) < 5


def test_the_parts_are_the_trainers_step():
    """The timed step trains as an untimed one, and its parts leave nothing out."""
    from recsys_embed.training.optimizers import Optimizers
    from recsys_embed.training.step import step

    config, batches = TrainingConfig(batch_size=SCALE.batch), worlds.batches_of(SCALE, WHOLE)
    timed_model, model = (worlds.model_of("reference", SCALE) for _ in range(2))
    timed, optimizers = TimedStep(timed_model, config), Optimizers(model, config)
    for batch in batches:
        parts = timed(batch)
        step(model, batch, optimizers)
        assert list(parts) == list(PARTS)
        assert all(seconds > 0 for seconds in parts.values())
    expected = model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in timed_model.state_dict().items())


def test_a_setup_tells_its_steps(tmp_path: Path):
    setups = [Setup("alone", 1, "reference")]
    worlds.work(0, [(0, 0)], setups, SCALE, threading.Barrier(1), str(tmp_path))
    told = json.loads((tmp_path / "told-0-0.json").read_text())
    assert [len(turn) for turn in told["rounds"]] == [3, 3]
    assert told["bytes"] == 3 * 50 * (4 * 4 + 4)
    (line,) = worlds.summary(setups, SCALE, [[told]])
    assert line["speed"] == 1
    assert line["samples_per_second"] == pytest.approx(40e3 / line["step_ms"], rel=0.01)


def test_speeds_are_ratios_of_the_same_round():
    """The second setup takes twice as long in each round, however long that is; its two ranks are averaged."""

    def turn(seconds: float) -> list[dict[str, float]]:
        return [{part: seconds / len(PARTS) for part in PARTS}] * 2

    setups = [Setup("one", 1, "fused"), Setup("two", 2, "sharded")]
    first = {"rounds": [turn(1), turn(5), turn(3)], "bytes": 1, "placements": {}}
    ranks = [{**first, "rounds": [turn(s + off) for s in (2, 10, 6)]} for off in (-0.5, 0.5)]
    one, two = worlds.summary(setups, SCALE, [[first], ranks])
    assert (one["speed"], two["speed"], two["speed_quartiles"]) == (1, 0.5, [0.5, 0.5])
    assert (one["step_ms"], two["step_ms"]) == (3000, 6000)
    assert sum(two["parts_ms"].values()) == pytest.approx(6000)


def test_balance_by_brute_force():
    lines = sharding.balance_of((2, 3), features=2, rows=1001, draws=500)
    drawn = zipf_ranks(2, 1001, 500, torch.Generator().manual_seed(0))
    for count in (2, 3):
        block = -(-1001 // count)
        mine = [line for line in lines if line["ranks"] == count]
        for line in mine:
            there = [Scatter.of(f"f{f}", 1001)(drawn[f]) // block == line["rank"] for f in range(2)]
            assert line["lookups"] == sum(int(one.sum()) for one in there)
            assert line["contiguous_lookups"] == int((drawn // block == line["rank"]).sum())
        assert sum(line["bytes_held"] for line in mine) == 2 * 1001 * (16 * 4 + 4)
        assert sum(line["share"] for line in mine) == pytest.approx(1, abs=1e-3)


@pytest.mark.gpu
def test_the_part_for_gpus_is_skipped_only_without_one():
    assert "skipped" not in sharding.bandwidth(quick=True)


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    told = sharding.bandwidth(quick=True)
    assert told["skipped"].startswith(f"no CUDA device is visible to torch {torch.__version__}")


def test_the_loader_is_compared_by_its_slower_shuffle_with_the_fastest_training(
    clicks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    read: list[int] = []
    speeds = {"whole": 9e6, "blocks": 8e6, "trained": 1e6}

    def rate(work: Any, found: Any) -> float:
        batches = list(found)
        read.append(sum(len(batch.label) for batch in batches))
        for batch in batches:
            work(batch)
        place = (len(read) - 1) % 6
        return [7e6, speeds["whole"], speeds["blocks"], speeds["trained"], 5e5, 4e5][place]

    monkeypatch.setattr(loader, "rate", rate)
    monkeypatch.setattr(loader, "BATCH", 500)
    config = {"label": "clicked", "categorical": ["user", "item"], "numeric": ["price"], "split": {"column": "part"}}
    dataset = prepare(clicks, config, tmp_path / "data")
    told = loader.compare(dataset, turns=2, steps=3)
    assert read == [4000, 4000, 4000, 1500, 1500, 1500] * 3
    assert (told["ratio"], told["ratio_range"]) == (8, [8, 8])
    assert told["reading"]["whole"] == {"samples_per_second": 9_000_000, "lowest": 9_000_000, "highest": 9_000_000}
    assert "the fastest training: 8.0 (8.0–8.0)" in loader.table(
        {"date": "", "machine": {}, "versions": {}, "setting": {}, **told}
    )


def test_ways_take_turns_on_the_trainers_step(monkeypatch: pytest.MonkeyPatch) -> None:
    ways = ("fp32", "bf16", dense.UNPADDED)
    monkeypatch.setattr(dense, "WAYS", ways)
    monkeypatch.setattr(dense, "MODELS", {"dlrm": {"name": "dlrm", "dim": 4, "bottom": [4], "top": [4]}})
    for name, value in (("FEATURES", 2), ("ROWS", 50), ("NUMBERS", 1)):
        monkeypatch.setattr(dense, name, value)
    found = dense.steps(quick=True)
    assert [(one["batch"], one["way"]) for one in found] == [(b, way) for b in (4096, 1024) for way in ways]
    assert all(one["milliseconds"] > 0 and one["range"][0] <= one["milliseconds"] <= one["range"][1] for one in found)
    assert {one["speedup"] for one in found if one["way"] == "fp32"} == {1.0}


@pytest.fixture
def small_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strategies, "MODEL", {"name": "dlrm", "dim": 16, "bottom": [8], "top": [4]})


@pytest.mark.usefixtures("small_model")
def test_every_stage_of_every_strategy_is_trained_beside_full_tables() -> None:
    features, batches = [Feature("a", 3000), Feature("b", 2000)], worlds.batches_of(SCALE, WHOLE)
    batches = [replace(batch, ids=Ids(batch.ids.values[:2], 2)) for batch in batches]
    cells = training_throughput.compare(features, batches, turns=1)
    assert {cell["strategy"] for cell in cells} == set(strategies.strategies())
    assert len(strategies.strategies()) == len(CLASSES) + 2
    stages = {(cell["strategy"], cell["stage"]) for cell in cells if cell["stage"]}
    assert stages >= {("dnis", "search"), ("dnis", "retrain"), ("pep", "search"), ("magnitude", "warm_up")}
    assert all(cell["samples_per_second"] > 0 for cell in cells)
    full = cells[0]
    assert (full["strategy"], full["of_full_range"]) == ("full", [1, 1])
    assert (full["serve_bytes"], full["train_bytes"]) == (5000 * 16 * 4, 5000 * (16 * 4 + 4))
    others = [cell for cell in cells if not cell["strategy"].startswith("full")]
    assert all(cell["serve_bytes"] <= 0.1 * full["serve_bytes"] for cell in others)


def test_throughput_is_compared_with_its_neighbour() -> None:
    told = training_throughput.summary([(100, 50), (400, 100), (10, 10)])
    assert (told["samples_per_second"], told["range"]) == (50, [10, 100])
    assert (told["of_full"], told["of_full_range"]) == (0.5, [0.25, 1])


@pytest.mark.usefixtures("small_model")
def test_each_strategys_shipped_model_scores_raw_rows(
    clicks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strategies, "KEPT", 0.5)
    config = {"label": "clicked", "categorical": ["user", "item"], "numeric": ["price"], "split": {"column": "part"}}
    dataset = prepare(clicks, config, tmp_path / "data")
    data = DataConfig(path=str(clicks), **config)
    scores = scoring.scorers(dataset, data, tmp_path / "models")
    assert set(scores) >= {"encoding", *strategies.strategies()}
    frame = pd.read_csv(clicks, dtype={"user": str, "item": str})[["user", "item", "price"]]
    for name in set(scores) - {"encoding"}:
        found = scores[name](frame[:64])
        assert found.shape == (64,)
        assert found.between(0, 1).all()
    if "full, MLflow" in scores:
        assert (scores["full, MLflow"](frame[:64]) == scores["full"](frame[:64])).all()
    told = scoring.measure({name: scores[name] for name in ("encoding", "hash")}, frame, turns=1, requests=3)
    assert [one["scorer"] for one in told] == ["encoding", "hash"]
    assert all(one["rows_per_second"] > 0 and one["single_row_ms"] > 0 for one in told)


def test_speeds_of_scoring_by_hand() -> None:
    told = scoring.summary(100, [0.1, 0.4, 0.2], [n / 1000 for n in range(1, 201)])
    assert (told["rows_per_second"], told["range"]) == (500, [250, 1000])
    assert (told["single_row_ms"], told["single_row_p99_ms"]) == (100.5, 198)


def test_waits_are_compared_turn_by_turn() -> None:
    told = startup.summary([1, 2, 4], [4, 4, 4])
    assert (told["seconds"], told["range"], told["there_seconds"]) == (2, [1, 4], 4)
    assert (told["ratio"], told["ratio_range"]) == (2, [1, 4])
    about = {"date": "", "machine": {}, "versions": {}, "setting": {}}
    line = startup.table({**about, "cells": [{"what": "help", **told}]}).splitlines()[-1]
    assert line.split() == ["help", "2.00", "1.00–4.00", "4.00", "2.00", "1.00–4.00"]
