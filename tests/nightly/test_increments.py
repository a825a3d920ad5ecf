"""What is published and applied is the model that was published, to the byte; and no step can be left out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from typer.testing import CliRunner

from recsys_embed import jobs
from recsys_embed.cli import app
from recsys_embed.errors import CheckpointError
from recsys_embed.export import load
from recsys_embed.files import write_manifest
from recsys_embed.increments import HEAD, Head, _changed, _write_changes, apply, publish
from recsys_embed.served import Served
from tests.nightly.days import config_of, day, write

STATES = ["born", "grown", "expired", "forgotten"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model, and what nights and a forgotten id make of it."""
    folder = tmp_path_factory.mktemp("models")
    days = [write(folder, f"{n}", frame) for n, frame in enumerate([day(1), day(2, range(20, 50)), day(3, range(70))])]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    config = config_of(days[0], strategy={"item": {"name": "full", "storage": "int8"}, "*": "full"})
    born, _ = jobs.train(config, folder / "0", progress=False)
    grown = jobs.continue_training(born, days[1], folder / "1", overrides=["growth.admit_count=2"], progress=False)
    expired = jobs.continue_training(
        grown.model, days[2], folder / "2", overrides=["growth.expire_after=1"], progress=False
    )
    ids = folder / "ids.csv"
    ids.write_text("feature,value\nuser,u66\n")
    jobs.forget(expired.model, ids, out=folder / "3" / "model")
    torch.set_num_threads(threads)
    return dict(zip(STATES, [born, grown.model, expired.model, folder / "3" / "model"], strict=True))


@pytest.fixture
def published(models: dict[str, Path], tmp_path: Path) -> Path:
    for name in STATES:
        publish(models[name], tmp_path / "to")
    return tmp_path / "to"


def served_files(model: Path) -> dict[str, bytes]:
    files = {str(file.relative_to(model)): file for file in model.rglob("*") if file.is_file()}
    return {name: file.read_bytes() for name, file in files.items() if not name.startswith("training")}


def test_each_state_is_reached_byte_for_byte_from_nothing_and_from_the_one_before(
    models: dict[str, Path], tmp_path: Path
) -> None:
    for number, name in enumerate(STATES):
        done = publish(models[name], tmp_path / "to")
        assert done.head.number == number
        assert (done.head.base is None) == (number == 0)
        brought_on = apply(tmp_path / "to", tmp_path / "kept")
        whole = apply(tmp_path / "to", tmp_path / f"whole-{number}")
        assert brought_on.numbers == (number,)
        assert whole.numbers == tuple(range(number + 1))
        for out in (tmp_path / "kept", tmp_path / f"whole-{number}"):
            assert served_files(out) == served_files(models[name])
    rows = day(3, range(70))
    assert load(tmp_path / "kept").predict(rows).equals(load(models["forgotten"]).predict(rows))


def test_an_increment_has_the_rows_and_ids_that_changed_alone(models: dict[str, Path], tmp_path: Path) -> None:
    publish(models["expired"], tmp_path / "to")
    done = publish(models["forgotten"], tmp_path / "to")
    assert done.head.changed["embedding.tables.user"] == 1
    assert "embedding.tables.item" not in done.head.changed
    assert not [name for name in done.head.changed if name.startswith("interaction")]
    assert done.head.changed["encoder/vocabulary-0.parquet"] == 1
    assert done.folder is not None
    assert load_file(done.folder / "rows.safetensors")["values.embedding.tables.user"].shape == (1, 4)
    again = publish(models["forgotten"], tmp_path / "to")
    assert again.folder is None
    assert len(list((tmp_path / "to").iterdir())) == 2
    assert apply(tmp_path / "to", tmp_path / "out").number == 1
    assert apply(tmp_path / "to", tmp_path / "out").numbers == ()


def test_a_snapshot_replaces_what_was_published_and_its_text(models: dict[str, Path], published: Path) -> None:
    done = publish(models["forgotten"], published, snapshot=True)
    assert [path.name for path in published.iterdir()] == ["00000004"]
    assert done.head.base is None
    texts = [
        one for one in load(published / "00000004" / "model").encoder.vocabularies["user"].values.to_pylist() if one
    ]
    assert "u66" not in texts
    assert "u65" in texts


def test_whoever_stands_elsewhere_begins_at_the_snapshot(
    models: dict[str, Path], published: Path, tmp_path: Path
) -> None:
    shutil.copytree(models["born"], tmp_path / "out")
    assert apply(published, tmp_path / "out").numbers == (1, 2, 3)
    publish(models["forgotten"], published, snapshot=True)
    shutil.rmtree(tmp_path / "out")
    shutil.copytree(models["grown"], tmp_path / "out")
    assert apply(published, tmp_path / "out").numbers == (4,)
    assert served_files(tmp_path / "out") == served_files(models["forgotten"])


def rename(folder: Path, old: str, new: str) -> None:
    (folder / old).rename(folder / new)


def rewrite(folder: Path, name: str, **changes: Any) -> None:
    head = json.loads((folder / name / HEAD).read_text())
    (folder / name / HEAD).write_text(json.dumps({**head, **changes}))
    write_manifest(folder / name)


def damage(folder: Path, name: str) -> None:
    path = folder / name / "rows.safetensors"
    raw = bytearray(path.read_bytes())
    raw[-1] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (lambda to: shutil.rmtree(to / "00000002"), "increment 2 is missing"),
        (lambda to: shutil.rmtree(to / "00000000"), "the snapshot before it is missing"),
        (lambda to: shutil.copytree(to / "00000002", to / "2"), "increment 2 is there twice"),
        (lambda to: (shutil.rmtree(to / "00000002"), rename(to, "00000003", "00000002")), "is increment 3, under anot"),
        (
            lambda to: (shutil.rmtree(to / "00000002"), rename(to, "00000003", "00000002"),
                        rewrite(to, "00000002", number=2)),
            "increment 2 applies to .* it is not of this order",
        ),
        (lambda to: damage(to, "00000001"), "rows.safetensors: its contents have changed"),
        (lambda to: (to / "00000001" / "manifest.json").unlink(), "manifest.json: is missing"),
        (lambda to: rewrite(to, "00000003", format=9), "has format 9"),
        (lambda to: rewrite(to, "00000003", leads_to="0" * 32), "00000003: does not lead to the model"),
        (lambda to: shutil.rmtree(to), "nothing was published here"),
    ],
)  # fmt: skip
def test_a_chain_that_is_broken_is_refused_by_name_and_nothing_is_written(
    published: Path, tmp_path: Path, what: Any, message: str
) -> None:
    what(published)
    with pytest.raises(CheckpointError, match=message):
        apply(published, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_model_is_left_alone(published: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "letter.txt").write_text("dear")
    with pytest.raises(CheckpointError, match="holds something that is no model"):
        apply(published, tmp_path / "out")
    assert (tmp_path / "out" / "letter.txt").read_text() == "dear"


def test_the_commands(models: dict[str, Path], tmp_path: Path) -> None:
    to, out = str(tmp_path / "to"), str(tmp_path / "out")
    for number, name in enumerate(("born", "grown")):
        told = json.loads(CliRunner().invoke(app, ["publish", str(models[name]), "--to", to, "--json"]).stdout)
        assert (told["number"], told["kind"]) == (number, "increment" if number else "snapshot")
    result = CliRunner().invoke(app, ["apply", to, "--out", out])
    assert result.exit_code == 0, result.stderr
    assert result.stdout.splitlines() == ["applied 2, at number 1", out]
    refused = CliRunner().invoke(app, ["apply", str(tmp_path / "nowhere"), "--out", out])
    assert (refused.exit_code, "nothing was published here" in refused.stderr) == (2, True)


# --- any two states --------------------------------------------------------------------------------------------

TEXTS = st.lists(st.one_of(st.none(), st.text("ab\0é", max_size=3)), max_size=5)


@st.composite
def states(draw: st.DrawFn) -> Served:
    """A few tensors and tables, so few that names, shapes and rows of two states often meet."""
    tensors = {}
    for name in draw(st.sets(st.sampled_from(["a", "b.c", "d"]))):
        shape = draw(st.sampled_from([(), (0,), (2,), (3,), (2, 2), (4, 2), (3, 0)]))
        dtype = draw(st.sampled_from([torch.float32, torch.int8, torch.float16]))
        values = draw(st.lists(st.integers(-2, 2), min_size=int(np.prod(shape)), max_size=int(np.prod(shape))))
        tensors[name] = torch.tensor(values).to(dtype).reshape(shape)
    tables = {}
    for name in draw(st.sets(st.sampled_from(["encoder/x.parquet", "y.parquet"]))):
        words = draw(TEXTS)
        counts = draw(st.lists(st.integers(0, 2), min_size=len(words), max_size=len(words)))
        columns = {"value": pa.array(words, pa.string()), "count": pa.array(counts, pa.int64())}
        tables[name] = pa.table(columns if draw(st.booleans()) else {"count": columns["count"]})
    files = draw(st.dictionaries(st.sampled_from(["config.toml", "encoder/e.json"]), st.binary(max_size=4)))
    return Served(tensors, tables, files)


@given(states(), states())
def test_any_state_is_reached_from_any_other(old: Served, new: Served) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        head = _write_changes(old, new, Path(name), Head(1, old.digest, new.digest))
        found = _changed(old, Path(name), head)
    assert found.digest == new.digest
    assert found.tensors.keys() == new.tensors.keys()
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in new.tensors.items())
    assert all(found.tables[name].equals(table) for name, table in new.tables.items())
    assert found.files == new.files


@given(states(), states())
def test_states_have_one_digest_where_they_are_equal(one: Served, other: Served) -> None:
    same = (
        one.tensors.keys() == other.tensors.keys()
        and all(t.dtype == other.tensors[n].dtype and torch.equal(t, other.tensors[n]) for n, t in one.tensors.items())
        and one.tables.keys() == other.tables.keys()
        and all(table.equals(other.tables[name]) for name, table in one.tables.items())
        and one.files == other.files
    )
    assert (one.digest == other.digest) == same
