"""Hashed features from the layer to the report: what they can have, what is refused, and that a model needs no list."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from typer.testing import CliRunner

from recsys_embed import EmbeddingLayer, Feature, jobs
from recsys_embed.budget import plan
from recsys_embed.cli import app
from recsys_embed.config import STRATEGIES, Config, parse_config
from recsys_embed.data.raw_hash import RawHash
from recsys_embed.embeddings import CLASSES
from recsys_embed.errors import ConfigError, DataError
from recsys_embed.export import load
from recsys_embed.features import HASHED_IDS, resolve
from recsys_embed.hashed import check_hashed
from recsys_embed.mlflow_model import save_mlflow_model
from recsys_embed.program import save_program
from recsys_embed.seeds import seed_of
from tests.backends import EVERY
from tests.test_hashing import slow_row

MIXED = (Feature("user", hashed=True), Feature("seen", vocabulary="user"), Feature("city", 60))


# --- the layer ---------------------------------------------------------------------------------------------------


def test_what_is_known_of_a_hashed_feature():
    user, seen, city = resolve(MIXED)
    assert (user.hashed, seen.hashed, city.hashed) == (True, True, False)
    assert (user.cardinality, seen.cardinality, city.cardinality) == (None, None, 60)
    assert (user.limit, seen.limit, city.limit) == (HASHED_IDS, HASHED_IDS, 60)
    with pytest.raises(ConfigError, match="'user' is hashed"):
        _ = user.size
    with pytest.raises(ConfigError, match="'seen' has cardinality 5"):
        resolve([Feature("user", hashed=True), Feature("seen", 5, vocabulary="user")])
    with pytest.raises(ConfigError, match="'user' has cardinality 5"):
        resolve([Feature("user", 5, hashed=True)])


@pytest.mark.parametrize("backend", EVERY)
def test_ids_are_any_63_bits(backend: str):
    """The largest id and its neighbours have rows of their own, trained or not; beyond it there is none."""
    emb = EmbeddingLayer([MIXED[0], MIXED[2]], 4, strategy="hash", budget="40KB", exact=(), backend=backend)
    ids = torch.tensor([[0, 1, HASHED_IDS - 2, HASHED_IDS - 1], [0, 1, 2, 3]])
    optimizer = emb.optimizer("sgd", lr=1.0)
    before = emb(ids).detach().clone()
    (emb(ids)[:, 0] * torch.arange(4.0).unsqueeze(1)).sum().backward()
    optimizer.step()
    moved = (before - emb(ids).detach())[:, 0]
    torch.testing.assert_close(moved, torch.arange(4.0).unsqueeze(1).expand(4, 4), rtol=0, atol=1e-5)
    for value in (HASHED_IDS, -1):
        with pytest.raises(DataError, match=r"outside \[0, 9223372036854775807\)") as caught:
            emb(torch.tensor([[0, value], [0, 0]]))
        assert caught.value.column == "user"
    lenient = EmbeddingLayer([MIXED[0]], 4, strategy="hash", budget="40KB", on_unknown="unseen")
    assert torch.equal(lenient(torch.tensor([[HASHED_IDS, 0]]))[0], lenient(torch.tensor([[0]]))[0])


def test_rows_are_divided_evenly_and_no_feature_gets_more_than_it_has_ids():
    features = [*MIXED, Feature("item", hashed=True)]
    emb = EmbeddingLayer(features, 4, strategy="hash", budget=16 * 1000, exact=())
    assert emb.plan.settings == {"city": 60, "item": 470, "user": 470}


def refusal(strategy: Any, budget: Any = "1MB", exact: Any = ()) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        EmbeddingLayer(MIXED, 8, strategy=strategy, budget=budget, exact=exact)
    return caught.value


@pytest.mark.parametrize("name", [name for name, node in STRATEGIES.items() if not CLASSES[node].takes_hashed])
def test_other_strategies_are_refused_by_name(name: str):
    error = refusal({"city": "hash", "*": name})
    assert f"strategy '{name}' needs a vocabulary" in str(error)
    assert "user, seen" in str(error)
    assert "hash, unified, robe take them" in str(error)
    assert error.path == "embedding.strategy.*"


def test_shares_of_what_nobody_knows_are_refused():
    assert "share of the full tables" in str(refusal("hash", 0.1))
    assert refusal({"city": "hash", "*": {"name": "hash", "bytes": "1KB"}}, "10x").path == "embedding.budget"
    error = refusal({"city": "unified", "*": "hash"})
    assert error.path == "embedding.strategy.*.bytes"
    assert "'city', '*' share the budget" in str(error)
    assert "give a budget in bytes" in str(refusal("hash", None))
    assert refusal("hash", exact=("seen",)).path == "embedding.exact"


def test_what_is_known_beside_hashed_features_is_as_ever():
    """Full tables, exact features, patterns with bytes of their own."""
    full = plan(resolve(MIXED), 8, {"city": STRATEGIES["full"](), "*": STRATEGIES["hash"]()}, "10KB")
    assert full.settings == {"city": 60, "user": 252}
    assert plan(resolve(MIXED), 8, {"*": STRATEGIES["unified"]()}, "10KB", exact=["city"]).settings["city"] == 60
    own = {"user": {"name": "hash", "bytes": "6400B"}, "seen": {"name": "hash", "bytes": "6400B"}, "*": "unified"}
    settings = EmbeddingLayer(MIXED, 8, strategy=own, budget="7KB", exact=()).plan.settings
    assert settings == {"user": 200, "unified.0": 37}
    check_hashed({"*": [Feature("city", 60)]}, {"*": STRATEGIES["full"]()}, None, ["city"])


# --- a model ---------------------------------------------------------------------------------------------------


def config(raw: bool, strategy: str, budget: Any, **changes: Any) -> Config:
    tree: dict[str, Any] = {
        "data": {
            "planted": {"rows": 24_000, "cardinalities": [1000, 300, 20], "multi_valued": 0, "numeric": 1},
            "raw_hash": raw,
        },
        "model": {"dim": 8, "hidden": [16]},
        "embedding": {"strategy": strategy, "budget": budget, "exact": []},
        "training": {"epochs": 2, "batch_size": 512, "threads": 1},
        "tracking": {"enabled": False},
    }
    return parse_config(tree | changes)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    out = tmp_path_factory.mktemp("hashed")
    _, one = jobs.train(config(True, "hash", "1MB"), out, progress=False)
    return out, one.row


def test_with_rows_enough_it_is_as_good_as_full(trained: tuple[Path, dict[str, Any]], tmp_path: Path):
    _, full = jobs.train(config(False, "full", None), tmp_path / "full", progress=False)
    _, tight = jobs.train(config(True, "hash", "4KB"), tmp_path / "tight", progress=False)
    row = trained[1]
    assert abs(row["test_auc"] - full.row["test_auc"]) < 0.01
    assert tight.row["test_auc"] < full.row["test_auc"] - 0.02
    assert row["kept_fraction"] is None
    assert row["full_bytes"] is None
    assert (row["host_bytes"], full.row["host_bytes"] > 0) == (0, True)
    assert not row["coarse"]


def test_prediction_needs_no_vocabulary(trained: tuple[Path, dict[str, Any]], tmp_path: Path):
    """Raw rows, a program and an MLflow model give what a slow reading of the hashed rows gives."""
    model_dir = trained[0] / "model"
    assert [file.name for file in (model_dir / "encoder").iterdir()] == ["encoder.json"]
    predictor = load(model_dir)
    texts = {"c0": ["7", "never seen", None], "c1": ["1", "", "x"], "c2": ["2", "3", "4"]}
    frame = pd.DataFrame({**texts, "n0": [0.5, None, 1]})
    scores = predictor.predict(frame)
    layer = predictor.model.embedding
    vectors = []
    for name, cells in texts.items():
        ids = RawHash.of(name, 0).encode(pa.array([cell or None for cell in cells])).tolist()
        table = layer.tables.get(name)
        vectors.append(table[[slow_row(one, seed_of(name, 0), len(table)) for one in ids]])
    batch = predictor.encoder.encode(frame)
    with torch.no_grad():
        logits = predictor.model.interaction(torch.stack(vectors, 1), batch.dense)
    np.testing.assert_allclose(scores, torch.sigmoid(logits.double()), rtol=1e-6)
    program = torch.export.load(
        save_program(predictor.model, len(predictor.encoder.dense), tmp_path / "model.pt2")
    ).module()
    np.testing.assert_allclose(program(batch.ids.values, batch.dense).detach(), scores, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:::mlflow")
def test_an_mlflow_model_needs_none_either(trained: tuple[Path, dict[str, Any]], tmp_path: Path):
    mlflow = pytest.importorskip("mlflow")
    packed = mlflow.pyfunc.load_model(str(save_mlflow_model(trained[0] / "model", tmp_path / "packed")))
    frame = pd.DataFrame({"c0": ["7", "new"], "c1": ["1", ""], "c2": ["2", "3"], "n0": [0.5, 0.1]})
    np.testing.assert_array_equal(packed.predict(frame), load(trained[0] / "model").predict(frame))
    assert np.isfinite(packed.predict(packed.input_example)).all()


# --- the commands ------------------------------------------------------------------------------------------------


@pytest.fixture
def study(clicks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config of hashed clicks, in the working directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "study.toml"
    path.write_text(
        f"""
[data]
path = {str(clicks)!r}
label = "clicked"
categorical = ["user", "item"]
multi_valued = {{ tags = "|" }}
split = {{ column = "part" }}
raw_hash = true
columns = {{ item = {{ raw_hash = false }} }}
[model]
name = "dlrm"
dim = 4
top = [8]
[embedding]
strategy = "hash"
budget = "3KB"
[training]
batch_size = 256
epochs = 1
threads = 1
[study]
strategies = ["hash", "robe"]
budgets = ["3KB"]
seeds = [0]
[tracking]
enabled = false
"""
    )
    return path


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def test_a_report_says_what_is_not_measured(study: Path):
    done = run("report", "study.toml", "--out", "report", "--quiet")
    assert done.exit_code == 0, done.stderr
    rows = pd.read_csv("report/results.csv")
    assert list(rows["status"]) == ["ok", "ok"]
    assert rows["kept_fraction"].isna().all()
    assert (rows["serve_bytes"] > 2900).all()
    assert rows[["auc_head", "auc_torso", "auc_tail"]].notna().all(axis=None)
    page = Path("report/report.md").read_text(encoding="utf-8")
    (told,) = [line for line in page.split("\n") if line.startswith("- Not measured: user, tags have no vocabulary")]
    assert "no full tables to compare with, no kept fraction" in told
    assert "too high by at most 1 of 8,000 (tags, the least sure)" in told
    assert "with a chance of at least 99 %" in told
    assert "A budget of 0.1 keeps" not in page
    again = run("report", "--from", "report/results.csv", "--out", "again")
    assert again.exit_code == 0
    assert Path("again/report.md").read_text(encoding="utf-8") == page


def test_what_else_is_not_measured(study: Path):
    done = run("budget", "study.toml", "--out", "out", "--json", "--quiet")
    assert done.exit_code == 0, done.stderr
    for row in json.loads(done.stdout):
        assert row["kept_fraction"] is None
        assert "collisions" not in row
        assert row["not_measured"].startswith("kept fraction and collisions: user, tags are hashed")
    told = run("budget", "study.toml", "--out", "out", "--quiet")
    assert "not measured: kept fraction and collisions: user, tags are hashed" in told.stdout
    prepared = run("prepare", "study.toml", "--out", "data", "--json", "--quiet")
    assert json.loads(prepared.stdout)["features"] == [
        {"feature": "user", "cardinality": None, "hashed": True},
        {"feature": "item", "cardinality": 101},
        {"feature": "tags", "cardinality": None, "hashed": True},
    ]
    table = run("prepare", "study.toml", "--out", "data", "--quiet").stdout.split("\n")
    assert table[0].split() == ["feature", "cardinality", "hashed"]
    assert (table[1].split(), table[2].split()) == (["user", "yes"], ["item", "101"])


def test_a_plan_does_not_know_who_works(study: Path):
    pytest.importorskip("torchrec")
    rows = ["--set", "sharding.placement={'*'='row_wise'}", "--set", "sharding.replicate_below=0"]
    for arguments in (rows, []):
        done = run("plan", "study.toml", "--world-size", "2", "--out", "out", "--json", *arguments)
        assert done.exit_code == 0, done.stderr
        document = json.loads(done.stdout)
        assert bool(document["not_measured"]) == bool(arguments)
        assert (document["balance"] is None) == bool(arguments)
    balances = {
        one["table"]: one["balance"]
        for one in json.loads(run("plan", "study.toml", "--world-size", "2", "--out", "out", "--json", *rows).stdout)[
            "tables"
        ]
    }
    assert (balances["user"], balances["tags"], balances["item"] is None) == (None, None, False)
    text = run("plan", "study.toml", "--world-size", "2", "--out", "out", *rows).stdout
    assert "not measured: work and its balance: user, tags are hashed" in text
    assert "nan" not in text


@pytest.mark.parametrize(
    ("command", "changes", "message"),
    [
        (
            "report",
            ["study.strategies=['hash', 'full']"],
            "strategy 'full' needs a vocabulary, and user, tags have none",
        ),
        ("budget", ["study.budgets=['3KB', 0.1]"], "a budget of '0.1' is a share of the full tables"),
        ("train", ["embedding.budget=10x"], "a budget of '10x' is a share of the full tables"),
        ("train", ["embedding.strategy=cafe"], "strategy 'cafe' needs a vocabulary"),
        ("train", ["embedding.exact=['user']"], "exact names 'user', which is hashed"),
        ("train", ["embedding.initial={user='vectors.csv'}"], "embedding.initial names 'user', which is hashed"),
        ("plan", ["embedding.strategy=dnis"], "strategy 'dnis' needs a vocabulary"),
        ("search", [], "a search divides the budget by how many ids there are"),
    ],
)
def test_refusals_come_before_any_row_is_read(study: Path, command: str, changes: list[str], message: str):
    missing = "data.path=nowhere.csv"
    done = run(command, "study.toml", *(part for one in (*changes, missing) for part in ("--set", one)))
    assert done.exit_code == 2
    assert message in done.stderr


def test_patterns_may_name_crosses(study: Path):
    """Patterns of strategies see crosses and buckets, too, before any row is read."""
    changes = [
        "data.crosses={both=['user', 'item']}",
        "embedding.strategy={both={name='hash', bytes='1KB'}, '*'='hash'}",
    ]
    done = run("train", "study.toml", "--out", "out", "--quiet", *(part for one in changes for part in ("--set", one)))
    assert done.exit_code == 0, done.stderr
