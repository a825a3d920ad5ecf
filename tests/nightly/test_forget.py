"""Ids that a model forgets: no byte of their text is left, and their rows are as they began, wherever they are kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from recsys_embed import jobs
from recsys_embed.cli import app
from recsys_embed.config import Config
from recsys_embed.errors import CheckpointError, ConfigError, DataError
from recsys_embed.export import load
from recsys_embed.recommender import build_recommender
from recsys_embed.training.kept import kept
from recsys_embed.training.optimizers import Optimizers
from tests.nightly.days import FIRST, config_of, day, write

MODELS: dict[str, dict[str, Any]] = {
    "full": {},
    "int8": {"strategy": {"name": "full", "storage": "int8"}},
    "adam": {"tables": "adam"},
    "lazy_adam": {"tables": "lazy_adam"},
    "hash": {"strategy": "hash", "budget": 0.5, "exact": ["item"]},
    "staged": {"strategy": {"name": "magnitude", "warm_up_epochs": 1}, "budget": 0.5, "exact": []},
}


@pytest.fixture(scope="module")
def born(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Models, and one after a night with values that wait."""
    folder = tmp_path_factory.mktemp("born")
    found = {"first": write(folder, "first", day(1)), "second": write(folder, "second", day(3, range(20, 45)))}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for name, embedding in MODELS.items():
        found[name], _ = jobs.train(config_of(found["first"], **embedding), folder / name, progress=False)
    done = jobs.continue_training(
        found["full"], found["second"], folder / "night", overrides=["growth.admit_count=100"], progress=False
    )
    found["night"] = done.model
    torch.set_num_threads(threads)
    return found


def asked(folder: Path, *rows: str) -> Path:
    path = folder / "ids.csv"
    path.write_text("\n".join(["feature,value", *rows]) + "\n")
    return path


def texts(model: Path) -> dict[str, bytes]:
    """All that is in a folder, as it is and, of Parquet, as it reads."""
    found = {str(file.relative_to(model)): file.read_bytes() for file in model.rglob("*") if file.is_file()}
    for name in [name for name in found if name.endswith(".parquet")]:
        found[f"{name}, read"] = pq.read_table(model / name).to_pandas().to_csv().encode()
    return found


def never_trained(model: Path, config: Config) -> dict[str, Tensor]:
    encoder = load(model).encoder
    fresh = build_recommender(config, encoder.features, len(encoder.dense))
    Optimizers(fresh, config.training)
    return {name: fresh.embedding.tables.stored(name) for name in fresh.embedding.tables.specs}


@pytest.mark.parametrize("model", ["full", "int8", "adam", "lazy_adam", "night"])
def test_what_is_forgotten_is_in_no_file_and_its_rows_are_as_they_began(
    born: dict[str, Path], model: str, tmp_path: Path
) -> None:
    config = config_of(born["first"], **MODELS.get(model, {}))
    old = load(born[model]).encoder.vocabularies["user"]
    ids = torch.tensor([old.values.to_pylist().index(one) + 1 for one in ("u7", "u31")])
    done = jobs.forget(born[model], asked(tmp_path, "user,u7", "friends,u31"), out=tmp_path / "model")
    assert any(b"u31" in text for text in texts(born[model]).values())
    for name, text in texts(tmp_path / "model").items():
        if not name.endswith(".safetensors"):  # numbers, in which any three bytes may stand
            assert b"u7\n" not in text.replace(b",", b"\n"), name
            assert b"u31" not in text, name
    fresh = never_trained(tmp_path / "model", config)["user"]
    served = load(tmp_path / "model").model.embedding.tables.stored("user")
    state, before = kept(tmp_path / "model").tensors, kept(born[model]).tensors
    assert torch.equal(served[ids], fresh[ids])
    assert torch.equal(state["model.embedding.tables.user"][ids], fresh[ids])
    states = {name for name in before if name.startswith("optimizer.") and ".user." in name}
    assert len(states) == (2 if model == "adam" else 1)
    assert not any(state[name][ids].any() for name in states)
    rest = torch.ones(len(fresh), dtype=torch.bool)
    rest[ids] = False
    for name, tensor in before.items():
        here = rest if name == "model.embedding.tables.user" or name in states else ...
        assert torch.equal(state[name][here], tensor[here]), name
    assert done.vocabularies == {
        "user": {
            "forgotten": 2,
            "pending": done.vocabularies["user"]["pending"],
            "cardinality": len(fresh),
            "rows": "own",
        }
    }


def test_others_are_scored_as_before_and_the_forgotten_as_never_seen(born: dict[str, Path], tmp_path: Path) -> None:
    jobs.forget(born["full"], asked(tmp_path, "user,u7"), out=tmp_path / "model")
    rows = day(1)
    before, after = load(born["full"]).predict(rows), load(tmp_path / "model").predict(rows)
    touched = (rows["user"] == "u7") | rows["friends"].str.split("|").map(lambda cell: "u7" in cell)
    assert after[~touched].equals(before[~touched])
    strangers = rows.assign(
        user=rows["user"].replace("u7", "nobody"),
        friends=rows["friends"].str.split("|").map(lambda cell: "|".join("nobody" if u == "u7" else u for u in cell)),
    )
    assert after.equals(load(born["full"]).predict(strangers))


def test_a_forgotten_value_that_comes_again_is_new(born: dict[str, Path], tmp_path: Path) -> None:
    old = load(born["full"]).encoder.vocabularies["user"].values.to_pylist()
    jobs.forget(born["full"], asked(tmp_path, "user,u30", "user,u31"), out=tmp_path / "model")
    night = jobs.continue_training(tmp_path / "model", born["second"], tmp_path / "n", progress=False)
    told = night.record["vocabularies"]["user"]
    assert (told["known"], told["admitted"], told["reset"]) == (38, 7, 2)
    new = load(night.model).encoder.vocabularies["user"].values.to_pylist()
    assert [a for a, b in zip(old, new, strict=False) if b != a and a not in ("u30", "u31")] == []
    assert {"u30", "u31"} <= set(new)


def test_a_value_that_waits_is_forgotten(born: dict[str, Path], tmp_path: Path) -> None:
    assert any(b"u44" in text for text in texts(born["night"]).values())
    done = jobs.forget(born["night"], asked(tmp_path, "user,u44"), out=tmp_path / "model")
    assert not any(b"u44" in text for name, text in texts(tmp_path / "model").items() if "safetensors" not in name)
    assert (done.values[0]["was"], done.values[0]["id"]) == ("pending", None)
    assert done.vocabularies["user"]["forgotten"] == 0
    assert done.vocabularies["user"]["rows"] is None


def test_rows_that_are_shared_stay_and_that_is_said(born: dict[str, Path], tmp_path: Path) -> None:
    command = ["forget", str(born["hash"]), "--ids", str(asked(tmp_path, "user,u7")), "--out", str(tmp_path / "model")]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 0, result.stderr
    assert "user: 1 ids are free; rows that they share with other ids stay" in result.stdout
    assert result.stdout.splitlines()[-1] == str(tmp_path / "model")
    before, after = kept(born["hash"]).tensors, kept(tmp_path / "model").tensors
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_the_folder_is_replaced_as_a_whole_and_says_what_it_removed(born: dict[str, Path], tmp_path: Path) -> None:
    model = tmp_path / "run" / "model"
    shutil.copytree(born["full"], model)
    shutil.copytree(born["full"].parent / "data", tmp_path / "run" / "data")
    ids = asked(tmp_path, "user,u7", "user,nobody", "item,i3")
    result = CliRunner().invoke(app, ["forget", str(model), "--ids", str(ids), "--json"])
    assert result.exit_code == 0, result.stderr
    told = json.loads(result.stdout)
    assert told["model"] == str(model)
    assert told["not_touched"] == [str(tmp_path / "run" / "data")]
    assert [(one["name"], one["value"], one["was"]) for one in told["values"]] == [
        ("user", "u7", "known"), ("user", "nobody", "absent"), ("item", "i3", "known"),
    ]  # fmt: skip
    assert told["values"][0]["count"] == int(counted("u7"))
    assert {name: one["forgotten"] for name, one in told["vocabularies"].items()} == {"user": 1, "item": 1}
    assert sorted(file.name for file in model.iterdir()) == sorted(file.name for file in born["full"].iterdir())
    again = CliRunner().invoke(app, ["forget", str(model), "--ids", str(ids), "--json"])
    assert [one["was"] for one in json.loads(again.stdout)["values"]] == ["absent"] * 3
    assert load(model).predict(day(1)).between(0, 1).all()


def counted(user: str) -> int:
    rows = day(1)
    rows = rows[rows["part"] == "train"]
    return int((rows["user"] == user).sum() + rows["friends"].str.split("|").explode().eq(user).sum())


def test_a_model_without_training_state_forgets_too(born: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(born["full"], tmp_path / "served", ignore=shutil.ignore_patterns("training"))
    jobs.forget(tmp_path / "served", asked(tmp_path, "user,u7"))
    assert not (tmp_path / "served" / "training").exists()
    assert load(tmp_path / "served").predict(day(1)).between(0, 1).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the header is 'feature,value'"),
        ("value,feature\nu7,user\n", "the header is 'feature,value'"),
        ("feature,value\nuser,u7\nuser\n", "row 2: a row has a feature and a value"),
        (
            "feature,value\nuser,u7\nnobody,u7\n",
            "ids.csv', column 'feature', row 2: there is no such feature; there are user",
        ),
    ],
)
def test_a_file_that_names_no_ids_is_refused(born: dict[str, Path], text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "ids.csv").write_text(text)
    with pytest.raises(DataError) as raised:
        jobs.forget(born["full"], tmp_path / "ids.csv", out=tmp_path / "model")
    assert message in str(raised.value)
    assert not (tmp_path / "model").exists()


def test_what_cannot_be_removed_is_refused_by_name(born: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="strategy 'magnitude' cannot give the ids of 'user'"):
        jobs.forget(born["staged"], asked(tmp_path, "user,u7"), out=tmp_path / "model")
    with pytest.raises(CheckpointError, match="manifest"):
        jobs.forget(tmp_path / "nowhere", asked(tmp_path, "user,u7"))


def test_the_days_hold_what_is_asked_for() -> None:
    assert pd.Series([f"u{one}" for one in FIRST]).isin(day(1)["user"]).all()
