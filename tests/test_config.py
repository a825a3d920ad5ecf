"""The config is closed: what is unknown is named, with its path and the nearest key there is."""

import tomllib
from pathlib import Path

import pytest

from recsys_embed import ConfigError
from recsys_embed.config import Config, UnifiedConfig, load_config, parse_config
from recsys_embed.storage import FP32, Storage

SMALL = """
[data]
path = "clicks.csv"
label = "clicked"
categorical = ["user", "item"]
"""


def read(tmp_path: Path, text: str, *overrides: str) -> Config:
    (tmp_path / "c.toml").write_text(SMALL + text)
    return load_config(tmp_path / "c.toml", overrides)


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        ("[model]\ndimm = 8", "model.dimm", "did you mean 'dim'"),
        ('[model]\nname = "dlrm"\ntopp = [4]', "model.topp", "did you mean 'top'"),
        ('[model]\nname = "dcn_v3"', "model", "dcn_v3"),
        ("[trainning]\nepochs = 3", "trainning", "did you mean 'training'"),
        ("[training.optimizer]\ntable_lr = 0.1", "training.optimizer.table_lr", "did you mean 'tables_lr'"),
        ('[embedding]\nstrategy = { "*" = { name = "unified", chunk = 3 } }', "embedding.strategy.*.chunk", "'chunks'"),
        ('[embedding]\nstrategy = "unifed"', "embedding.strategy.*", "unifed"),
        ('[embedding]\nstrategy = { name = "hash", storage = "int4" }', "embedding.strategy.*.storage", "'int8'"),
        ('[embedding]\nstrategy = { name = "full", storag = "int8" }', "embedding.strategy.*.storag", "'storage'"),
        (
            '[embedding]\nstrategy = { "*" = { name = "unified", storage = "bf16", scale = 0.1 } }',
            "embedding.strategy.*.scale",
            "a scale is for storage 'int8' and 'int16', and not for 'bf16'",
        ),
        (
            '[embedding]\nstrategy = { "*" = { name = "hash", storage = "int8", scale = 0 } }',
            "embedding.strategy.*.scale",
            "greater than 0",
        ),
        (
            '[embedding]\nstrategy = { name = "robe", storage = "int8" }',
            "embedding.strategy.*.storage",
            "strategy 'robe' has no such option; full, hash, unified, compositional, mixed_dimension have it",
        ),
        (
            '[study]\nstrategies = ["full", { name = "cafe", storage = "fp16" }]',
            "study.strategies.1.*.storage",
            "strategy 'cafe' has no such option",
        ),
        (
            '[embedding]\nstrategy = { "user" = { name = "hash", bytes = "5x" }, "*" = "full" }',
            "embedding.strategy.user.bytes",
            "a size is bytes or like '64MB'",
        ),
        (
            '[embedding]\nstrategy = { name = "mixed_dimension", width = [4, -1] }',
            "embedding.strategy.*.width",
            "a width is 0 or more, or a list of such numbers, one for each block of ids",
        ),
        ("[training]\nbatch_size = 0", "training.batch_size", "value 0"),
        ("[study]\nstrategies = []", "study.strategies", "at least 1"),
        ("[study]\nseeds = ['a']", "study.seeds.0", "value 'a'"),
        ("[study.tuning]\ntrial = 8", "study.tuning.trial", "did you mean 'trials'"),
        ("[study.tuning]\ntables_lr = [0.5, 0.1]", "study.tuning.tables_lr", "from low to high, got"),
        ("[study.tuning]\ndecay = [0, 0.1]", "study.tuning.decay.0", "greater than 0"),
        ("[study.tuning]\ndense_lr = [0.1, inf]", "study.tuning.dense_lr.1", "finite"),
        ("[study.tuning]\nepochs = [1, 3, 1]", "study.tuning.epochs", "each setting once"),
    ],
)
def test_problems_are_named_by_path(tmp_path: Path, text: str, path: str, message: str):
    with pytest.raises(ConfigError, match=message) as caught:
        read(tmp_path, text)
    assert caught.value.path == path


def test_several_problems_in_one_message(tmp_path: Path):
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, "[model]\ndimm = 8\n[training]\nepoch = 1")
    assert "model.dimm" in str(caught.value)
    assert "training.epoch" in str(caught.value)


def test_overrides(tmp_path: Path):
    config = read(tmp_path, "", "model.dim=32", "data.label=click", "training.optimizer.tables_lr=0.2")
    assert (config.model.dim, config.data.label, config.training.optimizer.tables_lr) == (32, "click", 0.2)
    with pytest.raises(ConfigError, match=r"a\.b=value"):
        read(tmp_path, "", "model.dim")
    with pytest.raises(ConfigError, match=r"unknown key 'model\.dmi'"):
        read(tmp_path, "", "model.dmi=3")


def test_strategies_in_all_forms(tmp_path: Path):
    one = read(tmp_path, '[embedding]\nstrategy = { name = "unified", chunks = 4 }').embedding.strategy
    assert one == {"*": UnifiedConfig(chunks=4)}
    mixed = read(tmp_path, '[embedding]\nstrategy = { "u*" = "hash", "*" = { name = "unified" } }').embedding.strategy
    assert [(pattern, node.name) for pattern, node in mixed.items()] == [("u*", "hash"), ("*", "unified")]
    named = read(tmp_path, '[embedding]\nstrategy = { name = "hash", user = "full" }').embedding.strategy
    assert [(pattern, node.name) for pattern, node in named.items()] == [("name", "hash"), ("user", "full")]


def test_the_resolved_config_reads_back_equal(tmp_path: Path):
    text = '[embedding]\nstrategy = { "u*" = "hash", "*" = "unified" }\nbudget = "64MB"\n[study.tuning]\ntrials = 2'
    config = read(tmp_path, text)
    (tmp_path / "resolved.toml").write_text(config.to_toml())
    assert load_config(tmp_path / "resolved.toml") == config


def test_sources_and_splits_are_one_of_their_kind():
    with pytest.raises(ConfigError, match="exactly one of path, planted"):
        parse_config({"data": {}})
    with pytest.raises(ConfigError, match="sum to 1"):
        parse_config({"data": {"path": "x", "split": {"random": [0.5, 0.1, 0.1]}}})
    with pytest.raises(ConfigError, match="exactly one of random, column, time, every, files"):
        parse_config({"data": {"path": "x", "split": {"random": [0.8, 0.1, 0.1], "column": "part"}}})
    assert parse_config({"data": {"path": "x", "split": {"seed": 3}}}).data.split.random == (0.8, 0.1, 0.1)


@pytest.mark.parametrize("backend", ["fused", "native"])
def test_what_a_back_end_cannot_honour_is_refused_by_name(backend: str, tmp_path: Path):
    with pytest.raises(ConfigError, match=rf"training\.optimizer\.tables = 'adam'.*embedding\.backend = '{backend}'"):
        read(tmp_path, f'[embedding]\nbackend = "{backend}"\n[training]\noptimizer = {{ tables = "adam" }}')


def test_storage_of_tables(tmp_path: Path):
    read_one = read(tmp_path, '[embedding]\nstrategy = { name = "hash", storage = "int8" }').embedding.strategy["*"]
    assert read_one.table_storage() == Storage("int8", 0.01)
    text = '[embedding]\nstrategy = { u = "full", "*" = { name = "compositional", storage = "int16", scale = 0.001 } }'
    config = read(tmp_path, text)
    assert [node.table_storage() for node in config.embedding.strategy.values()] == [FP32, Storage("int16", 0.001)]
    assert parse_config(tomllib.loads(config.to_toml())) == config


@pytest.mark.parametrize(
    ("rest", "message"),
    [
        ('[training]\noptimizer = { tables = "adam" }', r"storage = 'int8' needs a tables optimizer.*'adam'"),
        ('[embedding]\nbackend = "fused"', r"storage = 'int8' cannot be held by embedding\.backend = 'fused'"),
    ],
)
def test_what_cannot_train_or_hold_a_storage_is_refused_by_name(tmp_path: Path, rest: str, message: str):
    node = '{ name = "hash", storage = "int8" }'
    with pytest.raises(ConfigError, match=r"study\.strategies\.1\.\*\." + message):
        read(tmp_path, f'{rest}\n[study]\nstrategies = ["full", {node}]')
    with pytest.raises(ConfigError, match=r"embedding\.strategy\.\*\." + message):
        read(tmp_path, rest, f"embedding.strategy={node}")


def test_unreadable_files(tmp_path: Path):
    (tmp_path / "bad.toml").write_text("[data\n")
    for name in ("bad.toml", "missing.toml"):
        with pytest.raises(ConfigError, match=name):
            load_config(tmp_path / name)


def test_a_strategy_name_that_is_a_list():
    with pytest.raises(ConfigError):
        parse_config({"data": {"path": "x"}, "embedding": {"strategy": {"name": []}}})
