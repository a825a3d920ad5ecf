"""Parts of the input: the same bytes for any number of them and of workers, and nothing done twice after a kill."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import recsys_embed.data.encoding as encoding
import recsys_embed.data.parts as parts_module
from recsys_embed.data import EncodedDataset, prepare
from recsys_embed.data.formats import format_of
from recsys_embed.data.parts import Part
from recsys_embed.data.readers import read_chunks
from recsys_embed.errors import DataError


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of 1,000 bytes, read in blocks of 64."""
    monkeypatch.setattr(parts_module, "PART_BYTES", 1_000)
    monkeypatch.setattr(parts_module, "_BLOCK", 64)


def contents(folder: Path) -> dict[str, bytes]:
    """All that a data set holds but where it came from."""
    files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    del files["manifest.json"]
    schema = json.loads(files.pop("schema.json"))
    del schema["inputs"], schema["name"]
    return {**files, "schema": json.dumps(schema).encode()}


# --- cutting ------------------------------------------------------------------------------------------------------


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.text("ab\rx,", max_size=6) | st.just(""), max_size=60),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
    st.integers(1, 80),
    st.integers(1, 20),
)
def test_parts_are_whole_lines(tmp_path: Path, cells: list[str], end: str, closed: bool, size: int, block: int) -> None:
    """Whatever is in a file: its parts say how many rows they hold, and together they are the file, as far as both
    can be read."""
    path = tmp_path / "rows.csv"
    path.write_bytes((end.join(["cell,row", *(f"{cell},{i}" for i, cell in enumerate(cells))]) + end * closed).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts_module, "PART_BYTES", size)
        patch.setattr(parts_module, "_BLOCK", block)
        parts = format_of().cut(0, path)
    try:
        whole = [row for chunk in read_chunks(path, ["cell", "row"]) for row in chunk.table.to_pylist()]
    except DataError:  # a stray carriage return or comma
        return
    found = []
    for part in parts:
        span = None if part.first is None or part.last is None else (part.first, part.last)
        rows = [
            row
            for chunk in read_chunks(path, ["cell", "row"], part=span, first_row=part.first_row)
            for row in chunk.table.to_pylist()
        ]
        assert part.first_row == len(found) + 1
        assert part.rows in (None, len(rows))
        found += rows
    assert found == whole


@pytest.mark.parametrize(
    "text", ['a,b\n"1\n2",3\n' * 200, "a,b\n1,2\n\n" * 200, "a,b\r1,2\r" * 200, '"a",b\n' + "1,2\n" * 500]
)
def test_what_cannot_be_cut_is_one_part(small_parts: None, tmp_path: Path, text: str) -> None:
    (tmp_path / "rows.csv").write_text(text, newline="")
    assert [(part.first, part.rows) for part in format_of().cut(0, tmp_path / "rows.csv")] == [(None, None)]


def test_parquet_is_cut_between_row_groups(small_parts: None, tmp_path: Path) -> None:
    table = pa.table({"x": [str(i) for i in range(1_000)]})
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=100)
    parts = format_of().cut(3, tmp_path / "rows.parquet")
    assert len(parts) > 2
    assert sum(part.rows or 0 for part in parts) == 1_000
    found = [
        cell
        for part in parts
        for chunk in read_chunks(tmp_path / "rows.parquet", ["x"], part=(part.first, part.last))  # type: ignore[arg-type]
        for cell in chunk.text("x").to_pylist()
    ]
    assert found == table["x"].to_pylist()
    assert isinstance(parts[0], Part)
    assert {part.file for part in parts} == {3}


# --- preparing ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def threads() -> Iterator[Executor]:
    """Workers of another kind than processes."""
    with ThreadPoolExecutor(3) as pool:
        yield pool


@pytest.mark.parametrize(
    ("name", "raw_hash"), [("rows.csv", False), ("rows.csv", True), ("rows.parquet", False), ("folder", False)]
)
def test_any_number_of_parts_and_workers(
    kit: SimpleNamespace, tmp_path: Path, threads: Executor, name: str, raw_hash: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    table, place = kit.table(2_000), tmp_path / name
    if name == "folder":
        place.mkdir()
        for i in range(3):
            kit.write(table[i * 700 : (i + 1) * 700], place / f"{i}.csv")
    elif name.endswith(".parquet"):
        table.to_parquet(place, row_group_size=130)
    else:
        kit.write(table, place)
    config = kit.config(
        place,
        split={"random": (0.6, 0.2, 0.2), "seed": 3},
        crosses={"user_city": ["user", "city"]},
        buckets={"price": 5},
        numeric={"price": "log"},
        raw_hash=raw_hash,
        columns={"city": {"raw_hash": False}},
    )
    prepare(config, tmp_path / "whole", workers=1)
    expected = contents(tmp_path / "whole")
    assert ("sketch-0.parquet" in expected) == raw_hash
    for size in (1_000, 7_000):
        monkeypatch.setattr(parts_module, "PART_BYTES", size)
        monkeypatch.setattr(parts_module, "_BLOCK", 512)
        for workers in (None, threads):
            out = tmp_path / f"{size}-{workers is None}"
            prepare(config, out, workers=1, executor=workers)
            assert contents(out) == expected
    assert sorted(file.name for file in tmp_path.iterdir() if file.name.startswith(".")) == []


def test_processes_of_our_own(small_parts: None, kit: SimpleNamespace, tmp_path: Path) -> None:
    path = kit.write(kit.table(400), tmp_path / "rows.csv")
    prepare(kit.config(path), tmp_path / "one", workers=1)
    prepare(kit.config(path), tmp_path / "two", workers=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_the_executor_of_dask(small_parts: None, kit: SimpleNamespace, tmp_path: Path) -> None:
    """A cluster's: here one of threads, in this process."""
    distributed = pytest.importorskip("distributed", reason="Dask is not installed")
    path = kit.write(kit.table(400), tmp_path / "rows.csv")
    prepare(kit.config(path), tmp_path / "one", workers=1)
    with (
        distributed.LocalCluster(n_workers=2, processes=False, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        prepare(kit.config(path), tmp_path / "two", executor=client.get_executor())
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_the_first_bad_row_is_named_whoever_finds_another_first(
    small_parts: None, kit: SimpleNamespace, tmp_path: Path, threads: Executor
) -> None:
    table = kit.table(2_000)
    table.loc[[300, 900, 1_700], "price"] = "cheap"
    path = kit.write(table, tmp_path / "rows.csv")
    for executor in (None, threads):
        with pytest.raises(DataError) as caught:
            prepare(kit.config(path), tmp_path / "out", workers=1, executor=executor)
        assert (caught.value.column, caught.value.row) == ("price", 301)
    assert [file.name for file in tmp_path.iterdir()] == ["rows.csv"]


CODE = """
import os, sys
import recsys_embed.data.parts as parts, recsys_embed.data.prepare
from recsys_embed.config import DataConfig
import importlib
module = importlib.import_module("recsys_embed.data.prepare")
parts.PART_BYTES, parts._BLOCK = 1_000, 64
stage, after = sys.argv[3], int(sys.argv[4])
def cut_off(work, name):
    done = []
    def wrapped(job, index):
        if name == stage and len(done) == after:
            print("there", flush=True)
            os.kill(os.getpid(), 9)
        done.append(index)
        return work(job, index)
    return wrapped
module.encode = cut_off(module.encode, "encoded")
module.counting.count = cut_off(module.counting.count, "counts")
module.prepare(DataConfig.model_validate_json(sys.argv[1]), sys.argv[2], workers=1)
"""


@pytest.mark.parametrize(("stage", "after"), [("counts", 3), ("encoded", 4)])
def test_a_kill_costs_one_part(
    small_parts: None, kit: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, after: int
) -> None:
    path, out = kit.write(kit.table(400), tmp_path / "rows.csv"), tmp_path / "out"
    config = kit.config(path)
    prepare(config, tmp_path / "whole", workers=1)
    arguments = [sys.executable, "-c", CODE, config.model_dump_json(), str(out), stage, str(after)]
    run = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (-signal.SIGKILL, "there\n"), run.stderr
    assert not out.exists()
    import importlib

    module = importlib.import_module("recsys_embed.data.prepare")
    calls: dict[str, list[int]] = {"counts": [], "encoded": []}
    for name, place, attribute in (("counts", module.counting, "count"), ("encoded", module, "encode")):
        work = getattr(place, attribute)
        monkeypatch.setattr(
            place, attribute, lambda job, index, work=work, name=name: (calls[name].append(index), work(job, index))[1]
        )
    prepare(config, out, workers=1)
    parts = len(format_of().cut(0, path))
    assert parts > 6
    assert calls["counts"] == ([] if stage == "encoded" else list(range(after, parts)))
    assert calls["encoded"] == list(range(after if stage == "encoded" else 0, parts))
    assert contents(out) == contents(tmp_path / "whole")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out", "rows.csv", "whole"]


def test_what_a_stopped_machine_lost_is_counted_again(small_parts: None, kit: SimpleNamespace, tmp_path: Path) -> None:
    """Of the parts that wait to be encoded one is cut short, of one a bit flips, and one is not there."""
    path, out = kit.write(kit.table(400), tmp_path / "rows.csv"), tmp_path / "out"
    prepare(kit.config(path), tmp_path / "whole", workers=1)
    arguments = [sys.executable, "-c", CODE, kit.config(path).model_dump_json(), str(out), "encoded", "1"]
    assert subprocess.run(arguments, capture_output=True, check=False).returncode == -signal.SIGKILL
    work = tmp_path / ".work-out"
    assert not (work / "rows-00000.npy").exists()  # encoded, and not needed any more
    for name, damage in (
        ("rows-00001.npy", lambda data: data[:-100]),
        ("counts-00002.arrow", lambda data: data[:300] + bytes([data[300] ^ 1]) + data[301:]),
    ):
        (work / name).write_bytes(damage((work / name).read_bytes()))
    (work / "rows-00003.npy").unlink()
    prepare(kit.config(path), out, workers=1)
    assert contents(out) == contents(tmp_path / "whole")


def test_rows_in_many_blocks(kit: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part that does not fit into a block: the same bytes."""
    import recsys_embed.data.blocks as blocks
    import recsys_embed.data.rows as rows

    monkeypatch.setattr(rows, "CHUNK_ROWS", 16)
    path, written, read = kit.write(kit.table(400), tmp_path / "rows.csv.gz"), list[int](), blocks.read_blocks
    monkeypatch.setattr(
        encoding, "read_blocks", lambda *given: (written.append(len(b.labels)) or b for b in read(*given))
    )
    for limit in (1 << 20, 1):
        monkeypatch.setattr(blocks, "BLOCK_BYTES", limit)
        prepare(kit.config(path), tmp_path / str(limit))
    assert written == [400, *[16] * 25]
    assert contents(tmp_path / "1") == contents(tmp_path / str(1 << 20))


def test_unfinished_work_on_other_rows_is_thrown_away(small_parts: None, kit: SimpleNamespace, tmp_path: Path) -> None:
    path, out = kit.write(kit.table(400), tmp_path / "rows.csv"), tmp_path / "out"
    arguments = [sys.executable, "-c", CODE, kit.config(path).model_dump_json(), str(out), "encoded", "2"]
    assert subprocess.run(arguments, capture_output=True, check=False).returncode == -signal.SIGKILL
    kit.write(kit.table(400, seed=1), path)
    prepare(kit.config(path), out, workers=1)
    prepare(kit.config(path), tmp_path / "whole", workers=1)
    assert contents(out) == contents(tmp_path / "whole")


def test_two_at_once_are_refused(small_parts: None, kit: SimpleNamespace, tmp_path: Path) -> None:
    from recsys_embed.data.workshop import workshop
    from recsys_embed.errors import CheckpointError

    path, out = kit.write(kit.table(), tmp_path / "rows.csv"), tmp_path / "out"
    with workshop(out, {}), pytest.raises(CheckpointError, match="another run is writing"):
        prepare(kit.config(path), out, workers=1)
    prepare(kit.config(path), out, workers=1)
    EncodedDataset.open(out)


def test_a_file_that_changes_meanwhile(kit: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows changed after they were counted, and none more or fewer."""
    import importlib

    module = importlib.import_module("recsys_embed.data.prepare")
    path = kit.write(kit.table(), tmp_path / "rows.csv")
    encode = module.encode

    def late(job: object, index: int) -> int:
        rows: int = encode(job, index)
        path.write_text(path.read_text().replace("u1,", "u2,"))
        return rows

    monkeypatch.setattr(module, "encode", late)
    with pytest.raises(DataError, match="changed while it was being read"):
        prepare(kit.config(path), tmp_path / "out", workers=1)
    assert [file.name for file in tmp_path.iterdir()] == ["rows.csv"]


# --- kinds of split, crosses, buckets, limits -----------------------------------------------------------------------


def splits_of(dataset: EncodedDataset, table: pd.DataFrame, column: str) -> dict[str, list[str]]:
    """The cells of a column in each split, in the order of the rows; unseen ones as ''."""
    names = [f.name for f in dataset.features]
    words = ["", *dataset.encoder.vocabularies[column].values.to_pylist()]
    ids = {s: dataset.columns(s).ids[names.index(column)] for s in ("train", "val", "test")}
    return {split: [words[i] for i in found] for split, found in ids.items()}  # type: ignore[union-attr]


def rows_of(dataset: EncodedDataset, total: int) -> dict[str, list[int]]:
    """The numeric column ``row`` of each split."""
    (scaler,) = dataset.encoder.scalers
    found = {}
    for split in ("train", "val", "test"):
        numbers = dataset.columns(split).dense[0].astype(float) * scaler.deviation + scaler.mean
        found[split] = np.rint(numbers).astype(int).tolist()
    assert sum(map(len, found.values())) == total
    return found


def numbered(kit: SimpleNamespace, rows: int = 600) -> pd.DataFrame:
    table: pd.DataFrame = kit.table(rows)
    return table.assign(row=[str(i) for i in range(rows)], day=[f"2024-01-{1 + i % 28:02d}" for i in range(rows)])


def test_every_so_many_rows_one_is_for_test(kit: SimpleNamespace, tmp_path: Path) -> None:
    path = kit.write(numbered(kit), tmp_path / "rows.csv")
    dataset = prepare(kit.config(path, numeric=["row"], split={"every": 11}), tmp_path / "out")
    found = rows_of(dataset, 600)
    assert found["test"] == list(range(10, 600, 11))
    assert found["val"] == list(range(9, 600, 11))


@pytest.mark.parametrize(
    ("time", "val", "test"),
    [
        ("day", "2024-01-24", "2024-01-27"),  # 495 and 558 rows before them: no day earlier has 480 and 540
        ({"column": "day", "val": "2024-01-10", "test": "2024-01-20"}, "2024-01-10", "2024-01-20"),
        ({"column": "row", "val": 450, "test": 500}, 450, 500),
        ({"column": "row", "fractions": [0.5, 0.25, 0.25]}, 300, 450),
    ],
)
def test_a_split_by_time(kit: SimpleNamespace, tmp_path: Path, time: object, val: object, test: object) -> None:
    table = numbered(kit)
    path = kit.write(table.sample(frac=1, random_state=0), tmp_path / "rows.csv")
    dataset = prepare(kit.config(path, numeric=["row"], split={"time": time}), tmp_path / "out")
    times = table["day"] if isinstance(val, str) else table["row"].astype(int)
    found = rows_of(dataset, 600)
    assert sorted(found["train"]) == np.flatnonzero(times < val).tolist()
    assert sorted(found["val"]) == np.flatnonzero((times >= val) & (times < test)).tolist()
    assert sorted(found["test"]) == np.flatnonzero(times >= test).tolist()
    assert dataset.schema["cuts"] == [val, test]


def test_times_that_are_missing_or_too_few(kit: SimpleNamespace, tmp_path: Path) -> None:
    table = numbered(kit)
    table.loc[41, "day"] = ""
    path = kit.write(table, tmp_path / "rows.csv")
    for time in ("day", {"column": "day", "val": "2024-01-10", "test": "2024-01-20"}):
        with pytest.raises(DataError, match="time by which rows are split is missing") as caught:
            prepare(kit.config(path, split={"time": time}), tmp_path / "out")
        assert (caught.value.file, caught.value.column, caught.value.row) == (str(path), "day", 42)
    path = kit.write(table.assign(day="2024"), tmp_path / "rows.csv")
    with pytest.raises(ValueError, match="1 different times"):
        prepare(kit.config(path, split={"time": "day"}), tmp_path / "out")


def test_a_group_is_in_one_split(kit: SimpleNamespace, tmp_path: Path) -> None:
    table = numbered(kit, 3_000).assign(user=[f"u{i % 500}" for i in range(3_000)])
    path = kit.write(table, tmp_path / "rows.csv")
    config = kit.config(path, numeric=["row"], split={"random": [0.6, 0.2, 0.2], "group": "user"})
    found = rows_of(prepare(config, tmp_path / "out"), 3_000)
    users = {split: {i % 500 for i in rows} for split, rows in found.items()}
    assert len(set.union(*users.values())) == sum(map(len, users.values())) == 500
    assert 240 < len(users["train"]) < 360


def test_crosses_and_buckets_are_features(kit: SimpleNamespace, tmp_path: Path) -> None:
    table = kit.table(600)
    table.loc[:5, "city"] = "a\x1fb"
    path = kit.write(table, tmp_path / "rows.csv")
    config = kit.config(path, crosses={"pair": ["user", "city"]}, buckets={"price": 4})
    dataset = prepare(config, tmp_path / "out")
    assert [f.name for f in dataset.features] == ["user", "city", "pair", "price", "tags"]
    train = table[table.part == "train"]
    pair, price = (f.counts for f in dataset.features[2:4])
    both = train[(train.user != "") & (train.city != "")]
    assert pair is not None
    assert sorted(pair[1:].tolist()) == sorted(both.groupby(["user", "city"]).size().tolist())
    assert pair[0] == len(train) - len(both)
    numbers = pd.to_numeric(train.price.replace("", np.nan)).dropna()
    edges = np.quantile(numbers, [0.25, 0.5, 0.75], method="inverted_cdf")
    counted = np.bincount(np.searchsorted(edges, numbers, side="right"))
    assert price is not None
    assert sorted(price[1:].tolist()) == sorted(counted.tolist())
    loaded = EncodedDataset.open(tmp_path / "out").encoder
    assert loaded.columns == ("user", "city", "price", "tags")
    batch = loaded.encode(table)
    again = prepare(config, tmp_path / "out").columns("test")
    test = np.flatnonzero(table.part == "test")
    bounds = batch.ids.bounds()
    assert batch.ids.values[bounds[2] : bounds[3]].numpy()[test].tolist() == again.ids[2].tolist()  # type: ignore[union-attr]


def test_equal_crosses_are_equal_cells() -> None:
    from recsys_embed.data.cells import Cross
    from recsys_embed.data.chunks import Chunk

    cells = ["a", "b", "\x1f", "\x1e", "a\x1f", "\x1e1", "\x1e0", "", None]
    pairs = [(one, other) for one in cells for other in cells]
    chunk = Chunk(pa.table({"x": [a for a, _ in pairs], "y": [b for _, b in pairs]}))
    text = Cross(("x", "y")).text(chunk).to_pylist()
    there = [t for t in text if t is not None]
    assert len(set(there)) == len(there) == 49
    assert [t is None for t in text] == [a in ("", None) or b in ("", None) for a, b in pairs]


def test_log_squared_buckets(kit: SimpleNamespace, tmp_path: Path) -> None:
    table = kit.table().assign(price=[str(i - 5) for i in range(240)])
    dataset = prepare(kit.config(kit.write(table, tmp_path / "r.csv"), buckets={"price": "log_square"}), tmp_path / "o")
    x = np.arange(240) - 5
    expected = [str(int(np.log(v) ** 2)) if v > 2 else str(v) for v in x[table.part == "train"]]
    assert set(dataset.encoder.vocabularies["price"].values.to_pylist()) == set(expected)


def test_limits_of_each_column(kit: SimpleNamespace, tmp_path: Path) -> None:
    path = kit.write(kit.table(600), tmp_path / "rows.csv")
    plain = prepare(kit.config(path), tmp_path / "plain")
    columns = {"user": {"max_vocabulary": 3}, "city": {"missing": "own"}, "tags": {"min_count": 60}}
    dataset = prepare(kit.config(path, columns=columns, min_count=2), tmp_path / "out")
    words = {name: vocabulary.values.to_pylist() for name, vocabulary in plain.encoder.vocabularies.items()}
    found = dataset.encoder.vocabularies
    assert found["user"].values.to_pylist() == words["user"][:3]
    counts = plain.features[2].counts
    assert counts is not None
    assert found["tags"].values.to_pylist() == [w for w, c in zip(words["tags"], counts[1:], strict=True) if c >= 60]
    city = found["city"].values.to_pylist()
    assert set(city) == {*words["city"], ""}
    missing = plain.features[1].counts
    assert missing is not None
    assert found["city"].counts[1 + city.index("")] == missing[0]
    assert found["city"].counts[0] == 0
