"""The encoded data set: known answers, no leakage, nothing done twice, nothing half done."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.feather as feather
import pytest

import recsys_embed.data.rows as rows_module
from recsys_embed.config import DataConfig
from recsys_embed.data import EncodedDataset, prepare
from recsys_embed.data.bags import Bag
from recsys_embed.errors import CheckpointError, ConfigError, DataError

SPLITS = ("train", "val", "test")
module = importlib.import_module("recsys_embed.data.prepare")  # its name in the package is the function


def decoded(dataset: EncodedDataset, split: str) -> list[list[Any]]:
    """Every row's cells again, from its ids."""
    columns, out = dataset.columns(split), []
    for feature, ids in zip(dataset.features, columns.ids, strict=True):
        words = [None, *dataset.encoder.vocabularies[feature.vocab].values.to_pylist()]
        if isinstance(ids, Bag):
            out.append(
                [[words[i] for i in ids.values[a:b]] for a, b in zip(ids.offsets, ids.offsets[1:], strict=False)]
            )
        else:
            out.append([words[i] for i in ids])
    return [*out, columns.label.tolist()]


def test_every_row_is_found_again(kit: SimpleNamespace, tmp_path: Path) -> None:
    table = kit.table()
    dataset = prepare(kit.config(kit.write(table, tmp_path / "rows.csv")), tmp_path / "out")
    assert (dataset.name, dataset.bayes, dataset.dense) == ("rows", None, ("price", "price:missing"))
    train = table[table.part == "train"]
    price = pd.to_numeric(train.price.replace("", np.nan))
    counts = {
        "user": Counter(train.user),
        "city": Counter(train.city),
        "tags": Counter(tag for cell in train.tags for tag in cell.split("|") if tag),
    }
    for feature in dataset.features:
        words = dataset.encoder.vocabularies[feature.vocab].values.to_pylist()
        counted = counts[feature.name]
        missing = counted.pop("", 0)
        assert words == sorted(counted, key=lambda word: (-counted[word], word.encode()))
        assert feature.counts is not None
        assert feature.counts.tolist() == [missing, *(counted[word] for word in words)]
        assert feature.size == len(words) + 1
    for split in SPLITS:
        part = table[table.part == split]
        user, city, tags, label = decoded(dataset, split)
        known = [{*counts[name]} for name in ("user", "city", "tags")]
        assert user == [x if x in known[0] else None for x in part.user]
        assert city == [x if x in known[1] else None for x in part.city]
        assert tags == [[t if t in known[2] else None for t in cell.split("|") if t] for cell in part.tags]
        assert label == [float(x) for x in part.clicked]
        number = pd.to_numeric(part.price.replace("", np.nan)).to_numpy(float)
        scaled, flag = dataset.columns(split).dense
        np.testing.assert_allclose(scaled, np.nan_to_num((number - price.mean()) / price.std(ddof=0)), atol=1e-6)
        np.testing.assert_array_equal(flag, np.isnan(number))
        assert dataset.rows(split) == len(part)


def test_strange_words_are_categories_of_their_own(kit: SimpleNamespace, tmp_path: Path) -> None:
    dataset = prepare(kit.config(kit.write(kit.table(), tmp_path / "rows.csv")), tmp_path / "out")
    words = set(dataset.encoder.vocabularies["city"].values.to_pylist())
    assert words == {"NA", "None", "null", "nan", "1", "01", "1.0", "Zürich"}


def test_long_ids_beside_a_blank_stay_apart(kit: SimpleNamespace, tmp_path: Path) -> None:
    table = kit.table()
    table["user"] = [str(123456789012345678 + i % 3) if i % 7 else "" for i in range(len(table))]
    for name in ("rows.csv", "rows.parquet"):
        dataset = prepare(kit.config(kit.write(table, tmp_path / name)), tmp_path / f"out-{name}")
        assert sorted(dataset.encoder.vocabularies["user"].values.to_pylist()) == [
            "123456789012345678", "123456789012345679", "123456789012345680"
        ]  # fmt: skip


def test_every_kind_of_input_gives_the_same_content(kit: SimpleNamespace, tmp_path: Path) -> None:
    table = kit.table()
    names = ["rows.csv", "rows.tsv", "rows.csv.gz", "rows.tsv.gz", "rows.parquet"]
    prints = {prepare(kit.config(kit.write(table, tmp_path / n)), tmp_path / f"out-{n}").fingerprint for n in names}
    typed = table.assign(price=pd.to_numeric(table.price.replace("", np.nan)), clicked=table.clicked.astype(int))
    schema = kit.config().model_dump(exclude={"path", "planted"})
    prints |= {prepare(frame, schema).fingerprint for frame in (table, typed, typed.assign(clicked=typed.clicked == 1))}
    assert len(prints) == 1


def test_the_size_of_the_chunks_makes_no_difference(
    kit: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, prints = kit.write(kit.table(), tmp_path / "rows.csv"), set()
    for rows in (1, 7, 100, 65_536):
        monkeypatch.setattr(rows_module, "CHUNK_ROWS", rows)
        for split in ({"column": "part"}, {"random": (0.6, 0.2, 0.2), "seed": 3}):
            dataset = prepare(kit.config(path, split=split), tmp_path / f"{rows}-{len(split)}")
            prints.add((len(split), dataset.fingerprint))
    assert len(prints) == 2


def test_validation_and_test_rows_leave_no_trace(kit: SimpleNamespace, tmp_path: Path) -> None:
    table = kit.table()
    other = table.copy()
    held = other.part != "train"
    other.loc[held, ["user", "city", "tags", "price"]] = ["new", "new", "new|newer", "1e6"]
    one, two = (
        prepare(kit.config(kit.write(frame, tmp_path / f"{i}.csv")), tmp_path / f"out{i}")
        for i, frame in enumerate((table, other))
    )
    assert one.encoder.scalers == two.encoder.scalers
    for name, vocabulary in one.encoder.vocabularies.items():
        assert vocabulary.values.equals(two.encoder.vocabularies[name].values)
        assert vocabulary.counts.tolist() == two.encoder.vocabularies[name].counts.tolist()
    train, again = one.columns("train"), two.columns("train")
    np.testing.assert_array_equal(train.ids[0], again.ids[0])
    np.testing.assert_array_equal(train.dense[0], again.dense[0])
    assert (two.columns("test").ids[0] == 0).all()
    assert (two.buckets("test") == 3).all()


def test_ids_do_not_depend_on_the_order_of_rows(kit: SimpleNamespace, tmp_path: Path) -> None:
    table = kit.table()
    one, two = (
        prepare(kit.config(kit.write(frame, tmp_path / f"{i}.csv")), tmp_path / f"out{i}")
        for i, frame in enumerate((table, table.sample(frac=1, random_state=1)))
    )
    for name, vocabulary in one.encoder.vocabularies.items():
        assert vocabulary.values.equals(two.encoder.vocabularies[name].values)


def test_a_file_per_split_and_shared_vocabularies(kit: SimpleNamespace, tmp_path: Path) -> None:
    table = kit.table()
    table["friend"] = table.user[::-1].to_numpy()
    files = {s: str(kit.write(table[table.part == s], tmp_path / f"{s}.csv")) for s in SPLITS}
    config = DataConfig.model_validate(
        {
            "split": {"files": files},
            "label": "clicked",
            "categorical": ["user", "friend"],
            "vocabulary": {"friend": "user"},
            "min_count": 3,
        }
    )
    dataset = prepare(config, tmp_path / "out")
    assert [dataset.rows(s) for s in SPLITS] == [int((table.part == s).sum()) for s in SPLITS]
    train = table[table.part == "train"]
    counted = Counter([*train.user, *train.friend])
    words = dataset.encoder.vocabularies["user"].values.to_pylist()
    assert words == sorted((w for w in counted if counted[w] >= 3), key=lambda w: (-counted[w], w))
    user, friend = dataset.features
    assert user.size == friend.size == len(words) + 1
    assert user.counts is not None
    assert user.counts[0] == sum(n for n in counted.values() if n < 3)
    ids = {w: i + 1 for i, w in enumerate(words)}
    assert dataset.columns("test").ids[1].tolist() == [ids.get(w, 0) for w in table[table.part == "test"].friend]  # type: ignore[union-attr]


def test_buckets_are_thirds_by_the_rarest_id(kit: SimpleNamespace, tmp_path: Path) -> None:
    table = kit.table(900)
    dataset = prepare(kit.config(kit.write(table, tmp_path / "rows.csv")), tmp_path / "out")
    buckets, columns = dataset.buckets("test"), dataset.columns("test")
    user, city = (f.counts for f in dataset.features[:2])
    assert user is not None
    assert city is not None
    rarest = [min(user[a], city[b]) for a, b in zip(columns.ids[0], columns.ids[1], strict=True)]  # type: ignore[arg-type]
    for bucket, a, b in zip(buckets, columns.ids[0], columns.ids[1], strict=True):  # type: ignore[arg-type]
        assert (bucket == 3) == (a == 0 or b == 0)
    seen = [(c, b) for c, b in zip(rarest, buckets, strict=True) if b < 3]
    groups: dict[int, set[int]] = {}
    for count, bucket in seen:
        groups.setdefault(count, set()).add(bucket)
    assert all(len(found) == 1 for found in groups.values())
    order = [next(iter(groups[count])) for count in sorted(groups, reverse=True)]
    assert order == sorted(order)
    assert {0, 1, 2} == set(order)


def test_a_second_time_nothing_is_done(kit: SimpleNamespace, tmp_path: Path) -> None:
    path, out = kit.write(kit.table(), tmp_path / "rows.csv"), tmp_path / "out"

    def state() -> list[tuple[str, int, int]]:
        return [(str(f), f.stat().st_ino, f.stat().st_mtime_ns) for f in sorted(out.rglob("*"))]

    first = prepare(kit.config(path), out)
    before = state()
    assert prepare(kit.config(path), out).fingerprint == first.fingerprint
    os.utime(path)  # touched, and moved: the content is the same
    assert state() == before
    prepare(kit.config(path.rename(tmp_path / "moved.csv")), out)
    assert state() == before
    moved = tmp_path / "moved.csv"
    changed = prepare(kit.config(moved, min_count=2), out)
    assert state() != before
    assert changed.fingerprint != first.fingerprint
    text = moved.read_text()
    moved.write_text(text[:-20] + text[-20:].replace("1,", "0,"))
    stamp = (moved.stat().st_atime_ns, changed.inputs["rows"][0]["mtime_ns"] + 1)
    os.utime(moved, ns=stamp)
    assert prepare(kit.config(moved, min_count=2), out).inputs != changed.inputs or text == moved.read_text()


def test_frames_are_compared_by_content(kit: SimpleNamespace, tmp_path: Path) -> None:
    table, schema = kit.table(), kit.config().model_dump(exclude={"path", "planted"})
    out = tmp_path / "out"
    prepare(table, schema, out)
    inode = out.stat().st_ino
    prepare(table.copy(), schema, out)
    assert out.stat().st_ino == inode
    prepare(table.assign(user=table.user + "x"), schema, out)
    assert out.stat().st_ino != inode


def test_a_temporary_data_set_goes_with_its_object(kit: SimpleNamespace) -> None:
    dataset = prepare(kit.table(), kit.config().model_dump(exclude={"path", "planted"}))
    folder = dataset.path.parent
    assert folder.is_dir()
    del dataset
    assert not folder.exists()


def test_other_peoples_folders_are_left_alone(kit: SimpleNamespace, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match="not an encoded data set"):
        prepare(kit.config(kit.write(kit.table(), tmp_path / "rows.csv")), out)
    assert (out / "thesis.tex").read_text() == "years of work"


def test_damage_is_found_and_prepare_mends_it(kit: SimpleNamespace, tmp_path: Path) -> None:
    path, out = kit.write(kit.table(), tmp_path / "rows.csv"), tmp_path / "out"
    fingerprint = prepare(kit.config(path), out).fingerprint
    rng = np.random.default_rng(0)
    files = sorted(file for file in out.rglob("*") if file.is_file())
    assert len(files) == 9
    for file in files:
        whole = file.read_bytes()
        for damage in range(6):
            data = bytearray(whole)
            place = int(rng.integers(len(data)))
            if damage % 2:
                data = data[:place]
            else:
                data[place] ^= 1 << int(rng.integers(8))
            file.write_bytes(bytes(data))
            with pytest.raises(CheckpointError) as caught:
                EncodedDataset.open(out)
            assert caught.value.file == str(file)
        file.write_bytes(whole)
    EncodedDataset.open(out)
    (out / "test.arrow").write_bytes(b"")
    assert prepare(kit.config(path), out).fingerprint == fingerprint


def test_a_kill_leaves_nothing_to_be_seen(kit: SimpleNamespace, tmp_path: Path) -> None:
    path, out = kit.write(kit.table(), tmp_path / "rows.csv"), tmp_path / "out"
    code = """
import importlib, sys, time
import recsys_embed.data.rows as rows_module
from recsys_embed.config import DataConfig
module = importlib.import_module("recsys_embed.data.prepare")
write = module.write_manifest
def slow(folder):
    write(folder)
    print("there", flush=True)
    time.sleep(60)
module.write_manifest = slow
module.prepare(DataConfig.model_validate_json(sys.argv[1]), sys.argv[2])
"""
    arguments = [sys.executable, "-c", code, kit.config(path).model_dump_json(), str(out)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        process.send_signal(signal.SIGKILL)
    assert not out.exists()
    prepare(kit.config(path), out)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out", "rows.csv"]  # what was left is gone as well


def test_an_error_leaves_the_old_data_set(
    kit: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, out = kit.write(kit.table(), tmp_path / "rows.csv"), tmp_path / "out"
    fingerprint = prepare(kit.config(path), out).fingerprint

    def fail(*_: object) -> None:
        raise RuntimeError("power cut")

    monkeypatch.setattr(module, "write_manifest", fail)
    with pytest.raises(RuntimeError):
        prepare(kit.config(path, min_count=2), out)
    assert EncodedDataset.open(out).fingerprint == fingerprint
    monkeypatch.undo()
    prepare(kit.config(path, min_count=2), out)  # goes on with the parts that are done
    assert EncodedDataset.open(out).fingerprint != fingerprint
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out", "rows.csv"]


def test_files_that_pandas_and_arrow_read(kit: SimpleNamespace, tmp_path: Path) -> None:
    out = tmp_path / "out"
    dataset = prepare(kit.config(kit.write(kit.table(), tmp_path / "rows.csv")), out)
    frame = feather.read_feather(out / "val.arrow")
    assert list(frame.columns) == ["user", "city", "tags", "dense:price", "dense:price:missing", "label:clicked"]
    assert frame["user"].tolist() == dataset.columns("val").ids[0].tolist()  # type: ignore[union-attr]
    schema = json.loads((out / "schema.json").read_text())
    assert schema["rows"] == {s: dataset.rows(s) for s in SPLITS}
    assert [f["cardinality"] for f in schema["features"]] == [f.size for f in dataset.features]


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("price", "cheap", "text in a numeric column"),
        ("price", "NA", "text in a numeric column"),
        ("price", "inf", "infinite"),
        ("clicked", "2", "a label is 1 or 0"),
        ("clicked", "", "the label is missing"),
        ("clicked", "nan", "a label is 1 or 0"),
        ("part", "dev", "train, val or test"),
    ],
)
@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet"])
def test_a_bad_cell_is_named(
    kit: SimpleNamespace, tmp_path: Path, name: str, column: str, value: str, message: str
) -> None:
    table = kit.table()
    table.loc[99, column] = value
    path = kit.write(table, tmp_path / name)
    with pytest.raises(DataError, match=message) as caught:
        prepare(kit.config(path), tmp_path / "out")
    error = caught.value
    assert (error.file, error.column, error.row, error.value) == (str(path), column, 100, value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t[t.part != "val"], "split 'val' has no rows"),
        (lambda t: t.assign(clicked=t.clicked.where(t.part != "test", "1")), "split 'test' has positive labels only"),
        (lambda t: t.assign(clicked=t.clicked.where(t.part != "train", "0")), "split 'train' has negative labels only"),
        (lambda t: t.iloc[:0], "there are no rows"),
    ],
)
def test_splits_that_cannot_be_learnt_from(kit: SimpleNamespace, tmp_path: Path, edit: Any, message: str) -> None:
    path = kit.write(edit(kit.table()), tmp_path / "rows.csv")
    with pytest.raises(DataError, match=message):
        prepare(kit.config(path), tmp_path / "out")


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"categorical": [], "multi_valued": {}}, "data.categorical"),
        ({"categorical": ["user", "tags"]}, "data.categorical"),
        ({"categorical": ["user", "clicked"]}, "data.categorical"),
        ({"numeric": ["clicked"]}, "data.numeric"),
        ({"vocabulary": {"usr": "user"}}, "data.vocabulary.usr"),
        ({"separator": "ab"}, "data.separator"),
    ],
)
def test_schemas_that_make_no_sense(kit: SimpleNamespace, tmp_path: Path, changes: dict[str, Any], path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        prepare(kit.config(kit.write(kit.table(), tmp_path / "rows.csv"), **changes), tmp_path / "out")
    assert caught.value.path == path
    with pytest.raises(ConfigError, match="categorcal"):
        prepare(kit.table(), {"label": "clicked", "categorcal": ["user"]})


def test_columns_of_a_frame_that_are_missing_or_doubled(kit: SimpleNamespace) -> None:
    schema = {"label": "clicked", "categorical": ["usr"]}
    with pytest.raises(DataError, match="did you mean 'user'"):
        prepare(kit.table(), schema)
    doubled = pd.concat([kit.table(), kit.table()[["user"]]], axis=1)
    with pytest.raises(DataError, match="twice"):
        prepare(doubled, {**schema, "categorical": ["user"]})


def test_movielens_by_the_published_protocol(real_data: Path, tmp_path: Path) -> None:
    config = DataConfig.model_validate(
        {
            "path": str(real_data / "movielens-1m" / "ratings.tsv.gz"),
            "label": {"column": "rating", "positive": [4, 5], "negative": [1, 2]},
            "categorical": ["user_id", "movie_id", "gender", "age", "occupation", "zip"],
            "multi_valued": {"genres": "|"},
        }
    )
    start = time.perf_counter()
    dataset = prepare(config, tmp_path / "out")
    seconds = time.perf_counter() - start
    print(f"{999_714 / seconds:.0f} rows a second")
    assert sum(dataset.rows(s) for s in SPLITS) + dataset.schema["dropped"]["rows"] == 999_714
    assert dataset.schema["dropped"]["values"] == {"3": 261_080}
    np.testing.assert_allclose(dataset.rows("test") / 738_634, 0.1, atol=0.002)
    sizes = {feature.name: feature.size for feature in dataset.features}
    assert (sizes["gender"], sizes["age"], sizes["occupation"], sizes["genres"]) == (3, 8, 22, 19)
    assert 6_030 <= sizes["user_id"] <= 6_041
    assert 3_400 <= sizes["movie_id"] <= 3_450
    shutil.rmtree(tmp_path / "out")


def test_a_full_disk_is_an_error_and_no_killed_process(
    kit: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for all rows is asked for before any is encoded. What was counted by then is not counted again."""

    def full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(CheckpointError, match="No space left"):
        prepare(kit.table(), kit.config("frame").model_dump(exclude={"planted", "path"}), tmp_path / "out")
    monkeypatch.undo()
    prepare(kit.table(), kit.config("frame").model_dump(exclude={"planted", "path"}), tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["out"]
