"""Plans: bytes that sum up, work by frequency, what does not fit, and the command that prints them."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from recsys_embed import EmbeddingLayer, Feature
from recsys_embed.config import ShardingConfig
from recsys_embed.sharding import balance, describe, place, row_loads, work_of
from recsys_embed.tables.base import UpdateRule
from recsys_embed.tables.placement import column_wise, row_wise, table_wise

RULE = UpdateRule("rowwise_adagrad")
COUNTS = np.concatenate([[0], 1_000_000 / np.arange(1, 2000) ** 1.05]).astype(np.int64)
FEATURES = (Feature("user", 2000, counts=COUNTS), Feature("city", 40), Feature("seen", vocabulary="user"))


def test_loads_are_the_lookups_of_training():
    layer = EmbeddingLayer([Feature("user", 2000, counts=COUNTS)], 8, strategy="unified", budget=0.2, exact=())
    loads = row_loads(list(layer.strategies))
    assert sum(load.sum() for load in loads.values()) == 2 * COUNTS.sum()  # two chunks an id
    plain = row_loads(list(EmbeddingLayer([Feature("user", 2000, counts=COUNTS)], 8).strategies))
    np.testing.assert_array_equal(plain["user"], COUNTS)


def test_work_before_and_after_the_scatter():
    spec = EmbeddingLayer(FEATURES[:1], 8).tables.specs["user"]
    load = COUNTS.astype(float)
    cut = row_wise(spec, 2)
    contiguous, scattered = (work_of(cut, load, 2, scattered=one) for one in (False, True))
    assert contiguous.sum() == scattered.sum() == 8 * COUNTS.sum()
    assert contiguous[0] / contiguous.sum() > 0.9  # planted: the head is the first block
    assert scattered.max() / scattered.sum() < 0.6
    assert balance(work_of(table_wise(spec, 1), load, 2)) == 2
    np.testing.assert_array_equal(work_of(column_wise(spec, [0, 1], 4), load, 2), [4 * COUNTS.sum()] * 2)


@pytest.mark.parametrize("world", [1, 3, 8])
def test_a_plan_sums_up(world: int):
    pytest.importorskip("torchrec", reason="the planner is TorchRec's")
    layer = EmbeddingLayer(FEATURES, 10)
    specs = list(layer.tables.specs.values())
    config = ShardingConfig(replicate_below="2KB")
    placements, fits = place(specs, layer.tables.groups, config, RULE, world_size=world, device_type="cuda")
    assert fits
    report = describe(placements, list(layer.strategies), RULE, world_size=world, device_memory=None)
    kinds = {row["table"]: row["placement"] for row in report.tables}
    assert kinds["city"] == "data_parallel"
    sharded = 4 * 2000 * (12 + 1)
    whole = 4 * 40 * (10 + 1)
    assert sum(row["bytes"] for row in report.ranks) == sharded + world * whole
    assert sum(row["share"] for row in report.ranks) == pytest.approx(1)
    assert not report.trouble


def test_what_does_not_fit_is_named():
    pytest.importorskip("torchrec", reason="the planner is TorchRec's")
    layer = EmbeddingLayer(FEATURES, 10)
    specs = list(layer.tables.specs.values())
    config = ShardingConfig(device_memory=20_000)
    placements, fits = place(specs, layer.tables.groups, config, RULE, world_size=2, device_type="cpu")
    assert not fits
    report = describe(placements, list(layer.strategies), RULE, world_size=2, device_memory=20_000)
    assert report.trouble[0].startswith("does not fit: table 'user' needs 52,000 bytes on rank")
    assert report.trouble[0] in report.text()


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("torchrec", reason="the planner is TorchRec's")
    from recsys_embed.cli import app

    monkeypatch.chdir(tmp_path)
    Path("c.toml").write_text(
        "[data.planted]\nrows = 500\ncardinalities = [3000, 50]\n[sharding]\nreplicate_below = 0\n"
    )
    runner = CliRunner()
    command = ["plan", "c.toml", "--world-size", "64", "--device-memory", "80GB", "--json"]
    done = runner.invoke(app, command)
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["world_size"] == len(told["ranks"]) == 64
    assert {row["table"] for row in told["tables"]} == {"c0", "c1", "m0"}
    small = runner.invoke(app, ["plan", "c.toml", "--world-size", "2", "--device-memory", "100B"])
    assert small.exit_code == 3
    assert "does not fit" in small.stdout
    wrong = runner.invoke(app, ["plan", "c.toml", "--set", 'sharding.placement={"x*"="row_wise"}'])
    assert wrong.exit_code == 2
