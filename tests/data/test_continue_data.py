"""Days that continue a data set: ids keep their values, nothing is done twice, and the same bytes come out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

import recsys_embed.data.parts as parts_module
import recsys_embed.data.renewing as renewing_module
from recsys_embed.config import DataConfig, GrowthConfig
from recsys_embed.data import EncodedDataset, Encoder, continue_data, prepare
from recsys_embed.data.bags import Bag
from recsys_embed.data.sources import open_source
from recsys_embed.errors import CheckpointError, ConfigError, DataError

SPLITS = ("train", "val", "test")
NIGHTS = 7


def day_of(number: int, rows: int = 120) -> pd.DataFrame:
    """Rows of a day: each day has users and tags of its own, which come again for two days, and some of every day."""
    rng = np.random.default_rng(number)
    recent = [f"u{day}-{i}" for day in range(max(number - 2, 0), number + 1) for i in range(6)]
    return pd.DataFrame(
        {
            "clicked": [str(i % 2) for i in range(rows)],
            "user": rng.choice([*recent, "always", ""], rows),
            "friend": rng.choice([*recent, f"friend{number}"], rows),
            "city": rng.choice(["NA", "", "Zürich", f"city{number}"], rows),
            "tags": ["|".join(rng.choice([f"t{number}", f"t{number // 2}", "t"], 2)) for _ in range(rows)],
            "price": [f"{x:.3f}" for x in rng.normal(5 + number, 3, rows)],
            "age": [str(x) for x in rng.integers(0, 90, rows)],
            "ip": [f"ip{x}" for x in rng.integers(0, 40, rows) + 10 * number],
            "weight": rng.choice(["1", "2", "0.5"], rows),
            "part": [("train", "train", "train", "train", "val", "test")[(i // 2) % 6] for i in range(rows)],
        },
        dtype=object,
    )


def config(path: Path | str, **changes: Any) -> DataConfig:
    tree: dict[str, Any] = {
        "path": str(path),
        "label": "clicked",
        "categorical": ["user", "friend", "city", "ip"],
        "multi_valued": {"tags": "|"},
        "numeric": ["price"],
        "crosses": {"where": ["city", "friend"]},
        "buckets": {"age": 4},
        "columns": {"ip": {"raw_hash": True}, "city": {"missing": "own"}},
        "vocabulary": {"friend": "user"},
        "weight": "weight",
        "split": {"column": "part"},
    }
    return DataConfig.model_validate({**tree, **changes})


def week(
    folder: Path, growth: GrowthConfig, nights: int = NIGHTS, workers: int | None = None, **changes: Any
) -> list[EncodedDataset]:
    """The data set of the first day and of those that continue it."""
    found: list[EncodedDataset] = []
    for number in range(nights + 1):
        path = folder / f"day{number}.csv"
        day_of(number).to_csv(path, index=False)
        out = folder / f"data{number}"
        if not number:
            found.append(prepare(config(path, **changes), out, workers=1))
            continue
        before = found[-1].path / "encoder"
        found.append(continue_data(config(path, **changes), before, out, growth=growth, workers=workers))
    return found


@pytest.fixture(scope="module")
def bounded(tmp_path_factory: pytest.TempPathFactory) -> list[EncodedDataset]:
    """A week whose values expire after a night without them, within a cap."""
    return week(tmp_path_factory.mktemp("week"), GrowthConfig(expire_after=1, max_ids=60))


def words_of(dataset: EncodedDataset, vocabulary: str) -> list[str | None]:
    return [None, *dataset.encoder.vocabularies[vocabulary].values.to_pylist()]


def cells_of(frame: pd.DataFrame, name: str) -> list[Any]:
    if name == "tags":
        return [cell.split("|") for cell in frame.tags]
    if name == "where":
        return [f"{c}\x1f{f}" if c else None for c, f in zip(frame.city, frame.friend, strict=True)]
    return list(frame[name])


def test_what_is_known_is_found_again_every_night(bounded: list[EncodedDataset]) -> None:
    seen: dict[str, set[str]] = {"user": set(), "where": set(), "tags": set(), "city": set()}
    for number, dataset in enumerate(bounded):
        frame = day_of(number)
        train = frame[frame.part == "train"]
        for name, vocabulary in [("user", "user"), ("friend", "user"), ("where",) * 2, ("tags",) * 2, ("city",) * 2]:
            words = words_of(dataset, vocabulary)
            place = [f.name for f in dataset.features].index(name)
            for split in SPLITS:
                ids = dataset.columns(split).ids[place]
                cells = cells_of(frame[frame.part == split], name)
                if isinstance(ids, Bag):
                    cells = [one for cell in cells for one in cell]
                    ids = ids.values
                known = {word for word in words if word is not None}
                assert [words[i] for i in ids] == [cell if cell in known else None for cell in cells]
            here = cells_of(train, name)
            flat = [one for cell in here for one in cell] if name == "tags" else here
            there = {one for one in flat if one is not None and (one or name == "city")}
            assert there <= {*words}  # below the cap every value of the day is admitted
            seen[vocabulary] |= there
        before = bounded[max(number - 1, 0)]
        for vocabulary, account in dataset.renewals.items():
            old, new = words_of(before, vocabulary), words_of(dataset, vocabulary)
            changed = [i for i, word in enumerate(old) if i and word != new[i]]
            assert {*changed} <= {*account.reset.tolist()}
            assert (account.before, account.after, account.known) == (len(old), len(new), len({*old} - {None}))
            gone = {*old} - {*new}
            assert account.expired == len(gone)
            assert account.admitted == len({*new} - {*old})
            assert account.after <= 60


def test_the_account_of_a_week_is_that_of_its_users(bounded: list[EncodedDataset]) -> None:
    """Users come for three days, and are taken from the vocabulary on the first day without them."""
    for number in range(3, NIGHTS + 1):
        words = {word for word in words_of(bounded[number], "user") if word is not None and word[0] == "u"}
        assert {word.split("-")[0] for word in words} == {f"u{day}" for day in range(number - 2, number + 1)}
    sizes = [dataset.encoder.vocabularies["user"].cardinality for dataset in bounded]
    assert sizes[-1] == max(sizes) < 40  # holes are filled
    features = {feature.name: feature for feature in bounded[-1].features}
    assert features["user"].born == features["friend"].born == sizes[0]
    assert features["age"].born is None
    assert features["ip"].born is None
    counts = features["user"].counts
    assert counts is not None
    first = bounded[0].features[0].counts
    np.testing.assert_array_equal(counts[: sizes[0]], first)
    assert bounded[-1].encoder.night == NIGHTS


def test_scalers_edges_and_hashes_stay(bounded: list[EncodedDataset]) -> None:
    first, last = bounded[0], bounded[-1]
    assert last.encoder.scalers == first.encoder.scalers
    assert last.encoder.cells == first.encoder.cells
    assert last.encoder.hashes == first.encoder.hashes
    frame = day_of(NIGHTS)
    numbers = frame[frame.part == "val"].price.astype(float).to_numpy()
    scaler = first.encoder.scalers[0]
    expected = ((numbers - scaler.mean) / scaler.deviation).astype(np.float32)
    np.testing.assert_array_equal(last.columns("val").dense[0], expected)
    weights = last.weights("val")
    assert weights is not None
    np.testing.assert_array_equal(weights, frame[frame.part == "val"].weight.astype(np.float32))


def test_frequencies_are_those_of_all_nights_and_of_hashes_the_days(bounded: list[EncodedDataset]) -> None:
    dataset, cities = bounded[-1], words_of(bounded[-1], "city")
    place = [f.name for f in dataset.features].index("city")
    ids = np.array([cities.index("Zürich"), cities.index(f"city{NIGHTS}")])
    frames = [day_of(number) for number in range(NIGHTS + 1)]
    trained = [frame[frame.part == "train"] for frame in frames]
    expected = [sum((one.city == word).sum() for one in trained) for word in ("Zürich", f"city{NIGHTS}")]
    assert dataset.frequencies(dataset.features[place], ids).tolist() == expected
    place = [f.name for f in dataset.features].index("ip")
    hashed = dataset.columns("train").ids[place]
    assert isinstance(hashed, np.ndarray)
    values, counts = np.unique(hashed, return_counts=True)
    assert dataset.frequencies(dataset.features[place], values).tolist() == counts.tolist()


def test_an_encoder_saved_and_loaded_is_the_same(bounded: list[EncodedDataset], tmp_path: Path) -> None:
    one = bounded[-1].encoder
    one.save(tmp_path / "encoder")
    saved = sorted((tmp_path / "encoder").iterdir())
    for file in saved:
        assert file.read_bytes() == (bounded[-1].path / "encoder" / file.name).read_bytes()
    assert len(saved) == 1 + 3 * len(one.vocabularies)
    other = Encoder.load(tmp_path / "encoder")
    assert (other.features, other.night, other.histories.keys()) == (one.features, one.night, one.histories.keys())
    frame = day_of(NIGHTS)
    assert other.encode(frame).ids.values.tolist() == one.encode(frame).ids.values.tolist()
    shutil.copy(bounded[-2].path / "encoder" / "life-1.parquet", tmp_path / "encoder" / "life-0.parquet")
    with pytest.raises(CheckpointError, match="two nights"):
        Encoder.load(tmp_path / "encoder")


def tree_of(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def without_stamps(folder: Path) -> dict[str, bytes]:
    """Every file, but the places and times of the input."""
    tree = tree_of(folder)
    schema = json.loads(tree.pop("schema.json"))
    for one in schema["inputs"]["rows"]:
        del one["path"], one["mtime_ns"]
    return {**{k: v for k, v in tree.items() if k != "manifest.json"}, "schema": json.dumps(schema).encode()}


@pytest.mark.parametrize(
    ("split", "workers", "nights"),
    [({"time": {"column": "age", "fractions": [0.6, 0.2, 0.2]}}, 1, 3), ({"every": 3}, 2, 1)],
)
def test_parts_and_workers_make_no_difference(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, split: dict[str, Any], workers: int, nights: int
) -> None:
    growth, found = GrowthConfig(admit_count=2, expire_after=2, max_ids=30), []
    for name, count in (("one", 1), ("two", workers)):
        folder = tmp_path / name
        folder.mkdir()
        if name == "two":
            monkeypatch.setattr(parts_module, "PART_BYTES", 2_000)
            monkeypatch.setattr(parts_module, "_BLOCK", 64)
        found.append(without_stamps(week(folder, growth, nights, count, split=split, buckets={})[-1].path))
    assert len(open_source(config(tmp_path / "two" / "day1.csv")).parts()) > 1
    assert found[0].keys() == found[1].keys()
    for name in found[0]:
        assert found[0][name] == found[1][name], name


def test_a_second_time_nothing_is_done(tmp_path: Path) -> None:
    growth = GrowthConfig()
    one, two = week(tmp_path, growth, 1)
    encoder, out, path = one.path / "encoder", two.path, tmp_path / "day1.csv"
    inode = out.stat().st_ino
    again = continue_data(config(path), encoder, out, growth=growth)
    assert (out.stat().st_ino, again.fingerprint) == (inode, two.fingerprint)
    assert again.renewals == two.renewals
    copied = shutil.copytree(encoder, tmp_path / "elsewhere")
    continue_data(config(path), copied, out, growth=growth)
    assert out.stat().st_ino == inode
    other = continue_data(config(path), encoder, out, growth=GrowthConfig(admit_count=50))
    assert out.stat().st_ino != inode
    assert other.renewals["user"].admitted == 0
    assert other.renewals["user"].pending > 0
    prepare(config(path), out)
    assert EncodedDataset.open(out).renewals == {}


@pytest.mark.parametrize("stage", ["vocabularies", "encoded"])
def test_a_night_that_was_cut_off_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    growth = GrowthConfig(expire_after=1)
    whole = tmp_path / "whole"
    whole.mkdir()
    expected = without_stamps(week(whole, growth, 1)[-1].path)
    cut = tmp_path / "cut"
    cut.mkdir()
    week(cut, growth, 0)
    day_of(1).to_csv(cut / "day1.csv", index=False)
    module = __import__("recsys_embed.data.prepare", fromlist=["_"])
    kept: Callable[..., Any] = module.renew_vocabulary if stage == "vocabularies" else module.drift_of
    calls: list[int] = []

    def fail(*arguments: Any) -> Any:
        calls.append(1)
        if stage == "encoded" or len(calls) == 2:
            raise KeyboardInterrupt
        return kept(*arguments)

    monkeypatch.setattr(module, "renew_vocabulary" if stage == "vocabularies" else "drift_of", fail)
    arguments = config(cut / "day1.csv"), cut / "data0" / "encoder", cut / "data1"
    with pytest.raises(KeyboardInterrupt):
        continue_data(*arguments, growth=growth)
    assert not (cut / "data1").exists()
    monkeypatch.undo()
    counted: list[int] = []
    count, renew = module.counting.count, renewing_module.renew
    monkeypatch.setattr(module.counting, "count", lambda *a: (counted.append(1), count(*a))[1])
    monkeypatch.setattr(renewing_module, "renew", lambda *a: (counted.append(2), renew(*a))[1])
    dataset = continue_data(*arguments, growth=growth)
    assert 1 not in counted
    assert counted.count(2) == (len(dataset.renewals) - 1 if stage == "vocabularies" else 0)
    assert without_stamps(dataset.path) == expected
    assert not list(cut.glob(".work-*"))


def test_rows_that_are_skipped_are_counted_for_nothing(tmp_path: Path) -> None:
    days = week(tmp_path, GrowthConfig(), 0, on_bad_rows="skip")
    frame = day_of(1)
    frame.loc[frame.index[:2], ["user", "price"]] = ["broken", "cheap"]
    dataset = continue_data(
        config("frame", on_bad_rows="skip"),
        days[0].path / "encoder",
        tmp_path / "out",
        growth=GrowthConfig(),
        frame=frame,
    )
    assert dataset.schema["skipped"]["rows"] == 2
    assert "broken" not in words_of(dataset, "user")
    assert sum(dataset.rows(split) for split in SPLITS) == len(frame) - 2


def test_a_file_for_each_split_continues(tmp_path: Path) -> None:
    files = {}
    for split in SPLITS:
        frame = day_of(0)
        frame[frame.part == split].to_csv(tmp_path / f"{split}.csv", index=False)
        files[split] = str(tmp_path / f"{split}.csv")
    tree = {**config("x").model_dump(exclude={"path", "split", "planted"}), "split": {"files": files}}
    one = prepare(DataConfig.model_validate(tree), tmp_path / "one")
    for split in SPLITS:
        frame = day_of(1)
        frame[frame.part == split].to_csv(files[split], index=False)
    two = continue_data(DataConfig.model_validate(tree), one.path / "encoder", tmp_path / "two", growth=GrowthConfig())
    assert [two.rows(split) for split in SPLITS] == [80, 20, 20]
    assert two.renewals["user"].admitted > 0


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"categorical": ["user", "city", "friend", "ip"]}, "data.categorical"),
        ({"numeric": {"price": "log"}}, "data.numeric"),
        ({"columns": {"ip": {"raw_hash": True}}}, "data.columns"),
        ({"columns": {"city": {"missing": "own"}}}, "data.raw_hash"),
        ({"hash_seed": 3}, "data.hash_seed"),
        ({"buckets": {"age": "log_square"}}, "data.buckets.age"),
        ({"crosses": {"where": ["city", "user"]}}, "data.columns"),
        ({"multi_valued": {"tags": ";"}}, "data.multi_valued"),
        ({"vocabulary": {}}, "data.vocabulary"),
        ({"pooling": "sum"}, "data.pooling"),
        ({"label": {"column": "clicked", "positive": [0], "negative": [1]}}, "data.label"),
    ],
)
def test_what_an_encoder_keeps_cannot_be_changed(
    bounded: list[EncodedDataset], tmp_path: Path, changes: dict[str, Any], path: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        continue_data(
            config("frame", **changes),
            bounded[0].path / "encoder",
            tmp_path / "out",
            growth=GrowthConfig(),
            frame=day_of(1),
        )
    assert caught.value.path == path
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_is_said_before_any_work(bounded: list[EncodedDataset], tmp_path: Path) -> None:
    encoder, day = bounded[0].path / "encoder", day_of(1)
    with pytest.raises(ConfigError, match=r"vocabulary 'user' has \d+ ids") as caught:
        continue_data(config("frame"), encoder, tmp_path / "out", growth=GrowthConfig(max_ids=5), frame=day)
    assert caught.value.path == "growth.max_ids"
    with pytest.raises(ConfigError, match="is in the folder to be written"):
        continue_data(config("frame"), encoder, bounded[0].path, growth=GrowthConfig(), frame=day)
    with pytest.raises(CheckpointError, match=r"encoder\.json"):
        continue_data(config("frame"), tmp_path / "none", tmp_path / "out", growth=GrowthConfig(), frame=day)
    with pytest.raises(DataError, match="split 'val' has no rows"):
        rows = day[day.part != "val"]
        continue_data(config("frame"), encoder, tmp_path / "out", growth=GrowthConfig(), frame=rows)


def test_hashed_features_continue_without_a_vocabulary(kit: SimpleNamespace, tmp_path: Path) -> None:
    hashed = kit.config("frame", raw_hash=True)
    table = kit.table()
    one = prepare(hashed, tmp_path / "one", frame=table)
    new = kit.table(seed=1)
    two = continue_data(hashed, one.path / "encoder", tmp_path / "two", growth=GrowthConfig(), frame=new)
    assert two.renewals == {}
    assert two.encoder.night == 1
    assert two.encoder.encode(table).ids.values.tolist() == one.encoder.encode(table).ids.values.tolist()
