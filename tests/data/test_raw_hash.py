"""Features without a vocabulary: their ids, their frequencies by a sketch, and what a preparation of them needs."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from recsys_embed.config import DataConfig
from recsys_embed.data import EncodedDataset, Encoder, prepare
from recsys_embed.data.estimate import estimate
from recsys_embed.data.raw_hash import RawHash
from recsys_embed.data.rows import CHUNK_ROWS
from recsys_embed.data.sketch import DEPTH, WIDTH, FrequencySketch
from recsys_embed.errors import CheckpointError, ConfigError
from recsys_embed.features import HASHED_IDS
from recsys_embed.hashing import hash_rows
from recsys_embed.seeds import seed_of
from tests.data.allocators import giving_back
from tests.data.test_text_hash import slow

# --- ids ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("vocabulary", "seed", "value", "answer"),
    [
        ("user", 0, "", 4933191143964420456),
        ("user", 0, "u1", 4722900264823147505),
        ("user", 1, "u1", 6915051381102552189),
        ("item", 0, "u1", 3267448953636981412),
        ("Stadt", 0, "Zürich", 6201340113901613000),
    ],
)
def test_known_answers(vocabulary: str, seed: int, value: str, answer: int) -> None:
    """Frozen: a model without a vocabulary reads its rows by them."""
    assert RawHash.of(vocabulary, seed).encode(pa.array([value])).tolist() == [answer]


@given(st.lists(st.none() | st.text(max_size=20), max_size=20), st.integers(0, 20), st.integers(0, 5))
def test_equals_the_slow_computation(values: list[str | None], first: int, seed: int) -> None:
    one = RawHash.of("user", seed)
    part = pa.array(values, pa.string()).slice(min(first, len(values)))
    expected = [0 if v is None else slow(v, one.seed % 2**64) >> 1 for v in part.to_pylist()]
    assert one.encode(part).tolist() == expected
    assert one.encode(part).dtype == np.int64


def test_the_ends_of_the_range_are_for_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hashes that would be 0, which is missing, or beyond the ids that a layer takes."""
    monkeypatch.setattr(
        "recsys_embed.data.raw_hash.hash_text", lambda *_: np.array([0, 1, 2, 2**64 - 1, 2**64 - 4], np.uint64)
    )
    ids = RawHash(0).encode(pa.array(["a", "b", "c", "d", "e", None])).tolist()
    assert ids == [1, 1, 1, HASHED_IDS - 1, HASHED_IDS - 1, 0]


def test_ids_do_not_collide_and_rows_are_even() -> None:
    """Of 300,000 sequential texts, the chance of one collision is 5e-9; rows and their halves by a chi-square."""
    count, rows = 300_000, 1_000
    ids = RawHash.of("user", 0).encode(pa.array([f"user_{i:07d}" for i in range(count)]))
    assert len(np.unique(ids)) == count
    tables = hash_rows(torch.from_numpy(ids), torch.tensor(seed_of("user", 0)), torch.tensor(rows)).numpy()
    for places, cells in ((tables, rows), (ids >> 53, 1024), (ids & 1023, 1024)):
        found = np.bincount(places, minlength=cells)
        statistic = float(((found - count / cells) ** 2 / (count / cells)).sum())
        assert 1e-4 < chi2.sf(statistic, cells - 1) < 1 - 1e-4


# --- frequencies -------------------------------------------------------------------------------------------------


def planted_ids(count: int = 200_000) -> np.ndarray:
    rng = np.random.default_rng(0)
    return np.minimum(rng.zipf(1.1, count), 10**15).astype(np.int64) * 2_654_435_761


def test_a_sketch_against_exact_counts() -> None:
    """Never below; above the bound in no more than e⁻⁴ of ids; and about as blind as it says, over a full range."""
    ids = planted_ids()
    sketch = FrequencySketch()
    for part in np.array_split(ids, 7):
        sketch.add(part)
    values, counts = np.unique(ids, return_counts=True)
    excess = sketch.estimate(values) - counts
    assert sketch.occurrences == len(ids)
    assert sketch.error == pytest.approx(math.e * len(ids) / WIDTH)
    assert excess.min() >= 0
    assert (excess > sketch.error).mean() <= math.exp(-DEPTH)
    assert (excess == 0).mean() > 0.8  # the least of four rows is far better than one: 40 % of cells are taken
    strangers = -np.arange(1, 200_001)
    seen = (sketch.estimate(strangers) > 0).mean()
    assert 0.005 < sketch.blindness < 0.2
    assert seen == pytest.approx(sketch.blindness, rel=0.1)


def test_sketches_of_parts_add_up(tmp_path: Path) -> None:
    """In any order, of ids or of ids with counts; saved, loaded, and refused when damaged."""
    ids = planted_ids(20_000)
    whole, counted = FrequencySketch(), FrequencySketch()
    whole.add(ids)
    counted.add(*np.unique(ids, return_counts=True))
    np.testing.assert_array_equal(counted.counters, whole.counters)
    parts = (ids[:3], ids[3:15_000], ids[15_000:], ids[:0])
    for order in (parts, parts[::-1]):
        together, apart = FrequencySketch(), [FrequencySketch() for _ in order]
        for part, one in zip(order, apart, strict=True):
            together.add(part)
            one.add(part)
        np.testing.assert_array_equal(together.counters, whole.counters)
        np.testing.assert_array_equal(sum(one.counters for one in apart), whole.counters)
    path = tmp_path / "sketch.parquet"
    whole.save(path)
    np.testing.assert_array_equal(FrequencySketch.load(path).counters, whole.counters)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match=r"sketch\.parquet"):
        FrequencySketch.load(path)


def test_buckets_are_those_of_exact_counts(tmp_path: Path) -> None:
    """Head to unseen of planted rows, by a vocabulary's counts and by sketches, whose error here is below one."""
    tree = {"planted": {"rows": 20_000, "cardinalities": [3000, 500, 20]}}
    exact = prepare(DataConfig.model_validate(tree), tmp_path / "exact", workers=1)
    hashed = prepare(DataConfig.model_validate({**tree, "raw_hash": True}), tmp_path / "hashed", workers=1)
    for split in ("val", "test"):
        np.testing.assert_array_equal(hashed.buckets(split), exact.buckets(split))
        assert set(exact.buckets(split)) == {0, 1, 2, 3}
    assert hashed.hashed.keys() == {"c0", "c1", "c2", "m0"}
    assert hashed.hashed["c0"]["occurrences"] == hashed.rows("train")
    assert hashed.hashed["c0"]["error"] < 1
    assert hashed.hashed["c0"]["unseen_found"] > 0.999
    assert exact.hashed == {}


# --- preparing ---------------------------------------------------------------------------------------------------


def test_same_text_same_id_everywhere(kit: SimpleNamespace, tmp_path: Path) -> None:
    """In the data set, in an encoder loaded from an export, and by the hash alone; missing is 0 or, if own, a value."""
    table = kit.table()
    path = kit.write(table, tmp_path / "rows.csv")
    columns = {"price": {"raw_hash": False}, "city": {"missing": "own"}}
    config = kit.config(path, raw_hash=True, columns=columns, buckets={"price": 4}, crosses={"uc": ["user", "city"]})
    dataset = prepare(config, tmp_path / "out", workers=1)
    assert [(f.name, f.cardinality, f.hashed) for f in dataset.features] == [
        ("user", None, True),
        ("city", None, True),
        ("uc", None, True),
        ("price", 5, False),
        ("tags", None, True),
    ]
    assert dataset.vocabulary_bytes().keys() == {"price"}
    test = table[table.part == "test"]
    columns_ = dataset.columns("test")
    for place, name in ((0, "user"), (1, "city")):
        expected = RawHash.of(name, 0).encode(pa.array(test[name], pa.string()))
        np.testing.assert_array_equal(columns_.ids[place], expected)
    tags = [tag for cell in test["tags"] for tag in cell.split("|") if tag]
    np.testing.assert_array_equal(columns_.ids[4].values, RawHash.of("tags", 0).encode(pa.array(tags)))  # type: ignore[union-attr]
    dataset.encoder.save(tmp_path / "model")
    assert sorted(file.name for file in (tmp_path / "model").iterdir()) == ["encoder.json", "vocabulary-0.parquet"]
    encoder = Encoder.load(tmp_path / "model")
    expected_batch, found = next(dataset.batches("test", 10_000)), encoder.encode(test)
    assert torch.equal(found.ids.values, expected_batch.ids.values)
    assert expected_batch.ids.values.dtype == torch.int64
    strange = test.head(2).assign(user=[None, "never seen"], city=[None, ""])
    user, city = encoder.encode(strange).ids.select([0, 1]).values.tolist()
    assert user == [0, slow("never seen", RawHash.of("user", 0).seed % 2**64) >> 1]
    assert city == [slow("", RawHash.of("city", 0).seed % 2**64) >> 1] * 2


def test_a_shared_name_is_a_shared_hash(kit: SimpleNamespace, tmp_path: Path) -> None:
    rows = kit.table().assign(other=lambda frame: frame["user"])
    shared = {"categorical": ["user", "other", "city"], "vocabulary": {"other": "user"}, "hash_seed": 5}
    config = kit.config(kit.write(rows, tmp_path / "rows.csv"), columns={"user": {"raw_hash": True}}, **shared)
    dataset = prepare(config, tmp_path / "out", workers=1)
    assert [f.hashed for f in dataset.features] == [True, True, False, False]
    user, other = dataset.columns("train").ids[:2]
    np.testing.assert_array_equal(user, other)
    assert isinstance(user, np.ndarray)
    assert user[0] == RawHash.of("user", 5).encode(pa.array([rows["user"][0]]))[0]
    assert dataset.hashed["user"]["occurrences"] == 2 * dataset.rows("train")


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"raw_hash": True, "min_count": 2}, "data.min_count"),
        ({"raw_hash": True, "max_vocabulary": 9}, "data.max_vocabulary"),
        ({"raw_hash": True, "columns": {"user": {"min_count": 2}}}, "data.columns.user"),
        ({"vocabulary": {"city": "user"}, "columns": {"city": {"raw_hash": True}}}, "data.columns.city"),
        ({"columns": {"price": {"raw_hash": True}}}, "data.columns.price"),
    ],
)
def test_what_cannot_be_is_refused(kit: SimpleNamespace, tmp_path: Path, changes: dict[str, object], path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        prepare(kit.config(tmp_path / "none.csv", **changes), tmp_path / "out")
    assert caught.value.path == path


def test_an_encoder_without_the_hash_is_refused(kit: SimpleNamespace, tmp_path: Path) -> None:
    dataset = prepare(kit.config(kit.write(kit.table(), tmp_path / "rows.csv"), raw_hash=True), tmp_path / "out")
    dataset.encoder.save(tmp_path / "model")
    path = tmp_path / "model" / "encoder.json"
    path.write_text(path.read_text().replace('"hashes"', '"hushes"'))
    with pytest.raises(CheckpointError, match="'user' has neither a vocabulary nor a hash"):
        Encoder.load(tmp_path / "model")
    (tmp_path / "out" / "sketch-0.parquet").unlink()
    with pytest.raises(CheckpointError, match=r"sketch-0\.parquet"):
        EncodedDataset.open(tmp_path / "out")


def test_an_estimate_counts_sketches(kit: SimpleNamespace, tmp_path: Path) -> None:
    config = kit.config(kit.write(kit.table(2_000), tmp_path / "rows.csv"), raw_hash=True)
    found = estimate(config, tmp_path / "out", workers=1)
    prepare(config, tmp_path / "out", workers=1)
    files = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    beside = sum(file.stat().st_size for file in files if file.name in ("schema.json", "manifest.json"))
    assert found.bytes == pytest.approx(sum(file.stat().st_size for file in files) - beside, rel=0.02)


PEAK = """
import sys, threading
from recsys_embed.config import DataConfig
from recsys_embed.data import blocks, prepare

blocks.BLOCK_BYTES = 1 << 20  # a block a chunk

def prepared(name):
    peak, done = [0], threading.Event()

    def watch():  # what is mapped from files is not in it
        while not done.wait(0.002):
            with open("/proc/self/status") as file:
                line = next(line for line in file if line.startswith("RssAnon"))
            peak[0] = max(peak[0], 1024 * int(line.split()[1]))

    thread = threading.Thread(target=watch)
    thread.start()
    tree = {"path": f"{sys.argv[1]}/{name}.csv", "categorical": ["user"], "raw_hash": sys.argv[2] == "hashed"}
    prepare(DataConfig.model_validate(tree), f"{sys.argv[1]}/{name}-{sys.argv[2]}", workers=1)
    done.set()
    thread.join()
    return peak[0]

few = [prepared(name) for name in ("few", "again")][-1]  # the first also loads and warms up
print(min(prepared(name) for name in ("many", "more")) - few)  # where the machine is busy memory is given back late
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc to read memory from")
def test_memory_does_not_grow_with_distinct_values(tmp_path: Path) -> None:
    """The peak with three chunks of values over that with one chunk of them three times; a vocabulary's shows that it
    would be seen."""
    values = pd.Series(np.arange(3 * CHUNK_ROWS)).astype(str).str.zfill(100)
    repeated = values[np.arange(len(values)) % CHUNK_ROWS]
    for name, cells in (("many", values), ("more", values), ("few", repeated), ("again", repeated)):
        frame = pd.DataFrame({"user": cells.to_numpy(), "label": np.arange(len(cells)) % 2})
        frame.to_csv(tmp_path / f"{name}.csv", index=False)
    grown = {}
    for kind in ("hashed", "vocabulary"):
        command = [sys.executable, "-c", PEAK, str(tmp_path), kind]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=giving_back())
        grown[kind] = int(done.stdout)
    assert grown["vocabulary"] > 30e6, grown
    assert grown["hashed"] < 20e6, grown
