"""Rows that are skipped: as if they had never been there, whatever the split and the parts, and told everywhere."""

from __future__ import annotations

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from typer.testing import CliRunner

import recsys_embed.data.rows as rows_module
from recsys_embed.cli import app
from recsys_embed.config import DataConfig
from recsys_embed.data import parts, prepare
from recsys_embed.data.chunks import Chunk
from recsys_embed.data.screening import Skipped, left_out, refused, screen
from recsys_embed.data.sources import FileSource
from recsys_embed.errors import DataError

BAD = np.arange(7, 240, 13)
DECLARED = {"column": "clicked", "positive": [1], "negative": [0]}


def spoiled(table: pd.DataFrame) -> pd.DataFrame:
    """Text in place of some prices."""
    out = table.copy()
    out.loc[BAD, "price"] = "cheap"
    return out


@pytest.mark.parametrize(
    "split",
    [
        {"random": (0.6, 0.2, 0.2), "seed": 1},
        {"random": (0.6, 0.2, 0.2), "group": "user"},
        {"every": 5},
        {"time": {"column": "day", "val": 150, "test": 200}},
    ],
    ids=["random", "group", "every", "time"],
)
def test_other_rows_stay_in_their_splits(kit: SimpleNamespace, tmp_path: Path, split: dict[str, Any]) -> None:
    """A row's chance goes by its place in the file: the same rows, dropped for their label, are the answer."""
    table = kit.table().assign(day=[str(i) for i in range(240)])
    dropped = table.copy()
    dropped.loc[BAD, "clicked"] = "3"
    options: dict[str, Any] = {"split": split, "buckets": {"price": 4}, "numeric": {}, "label": DECLARED}
    found = prepare(
        kit.config(kit.write(spoiled(table), tmp_path / "a.csv"), **options, on_bad_rows="skip"), tmp_path / "a"
    )
    expected = prepare(kit.config(kit.write(dropped, tmp_path / "b.csv"), **options), tmp_path / "b")
    assert found.fingerprint == expected.fingerprint
    assert found.schema["skipped"]["rows"] == expected.schema["dropped"]["rows"] == len(BAD)
    assert found.schema["dropped"]["rows"] == 0


def test_times_of_skipped_rows_do_not_count(kit: SimpleNamespace, tmp_path: Path) -> None:
    table = kit.table().assign(day=[str(i) for i in range(240)])
    late = spoiled(table)
    late.loc[BAD, "day"] = "99999"
    split = {"time": {"column": "day", "fractions": (0.5, 0.25, 0.25)}}
    found = prepare(kit.config(kit.write(late, tmp_path / "a.csv"), split=split, on_bad_rows="skip"), tmp_path / "a")
    good = prepare(kit.config(kit.write(table.drop(index=BAD), tmp_path / "b.csv"), split=split), tmp_path / "b")
    assert (found.fingerprint, found.schema["cuts"]) == (good.fingerprint, good.schema["cuts"])


def test_any_number_of_parts_chunks_and_workers(
    kit: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = kit.write(spoiled(kit.table()), tmp_path / "rows.csv")
    lines = path.read_bytes().split(b"\n")
    torn = {3: b"1,u1", 4: b"1,u\xff,a,b,c,d,e,f,g", 90: b"\xff", 91: b"1,u\xff,1,,5,val", 240: b"1,u1"}
    for place, line in torn.items():
        lines[place] = line
    path.write_bytes(b"\n".join(lines))
    seen = set()
    for i, (size, rows) in enumerate([(1 << 26, 65_536), (1 << 26, 7), (400, 65_536), (900, 10)]):
        monkeypatch.setattr(parts, "PART_BYTES", size)
        monkeypatch.setattr(parts, "_BLOCK", 64)
        monkeypatch.setattr(rows_module, "CHUNK_ROWS", rows)
        with ThreadPoolExecutor(2) as pool:
            dataset = prepare(
                kit.config(path, split={"random": (0.5, 0.25, 0.25)}, on_bad_rows="skip"),
                tmp_path / f"out-{i}",
                executor=pool if i else None,
            )
        seen.add((dataset.fingerprint, json.dumps(dataset.schema["skipped"])))
    assert len(seen) == 1
    assert dataset.schema["skipped"]["rows"] == len({*BAD.tolist(), *(place - 1 for place in torn)})
    assert sum(dataset.rows(s) for s in ("train", "val", "test")) == 240 - dataset.schema["skipped"]["rows"]


def test_where_all_rows_are_bad(kit: SimpleNamespace, tmp_path: Path) -> None:
    path = kit.write(kit.table().assign(price="cheap"), tmp_path / "rows.csv")
    with pytest.raises(DataError, match=r"there are no rows \(240 rows could not be used and were skipped\)"):
        prepare(kit.config(path, on_bad_rows="skip"), tmp_path / "out")


def test_all_bad_cells_are_found_and_each_value_is_judged_once() -> None:
    cells = ["1", "x", "2", "x", None, "y", "3", "x"] * 500
    chunk, judged = Chunk(pa.table({"n": cells}), "f.csv", 11), 0

    def check(one: Chunk) -> None:
        nonlocal judged
        judged += 1
        one.numbers("n")

    errors = dict(refused(chunk, "n", check))
    assert list(errors) == [i for i, cell in enumerate(cells) if cell in ("x", "y")]
    assert {(e.row, e.value, e.file, e.column) for e in errors.values()} == {
        (11 + i, cells[i], "f.csv", "n") for i in errors
    }
    assert judged < 20


def test_a_row_counts_once_for_the_first_reason_found() -> None:
    table = pa.table({"n": ["x", "1", "y"], "m": ["x", "z", "1"]})
    skipped = Skipped()
    checks = [(name, lambda chunk, name=name: chunk.numbers(name)) for name in ("n", "m")]
    screened = screen(Chunk(table), checks, skipped)  # type: ignore[arg-type]
    assert screened is None  # no row is left
    reasons = [(one["column"], one["rows"], one["row"], one["value"]) for one in skipped.tree()]
    assert reasons == [("n", 2, 1, "x"), ("m", 1, 2, "z")]
    more = Skipped()
    more.merge(skipped.tree())
    more.merge(skipped.tree())
    assert (more.rows, more.tree()[0]["row"], skipped.rows) == (6, 1, 3)


def test_it_is_told_and_told_again(kit: SimpleNamespace, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = kit.write(spoiled(kit.table()), tmp_path / "rows.csv")
    config = kit.config(path, on_bad_rows="skip")
    sentence = f"{len(BAD)} rows skipped: column 'price': text in a numeric column "
    sentence += f"(file '{path}', row {BAD[0] + 1}: first (value 'cheap'))"
    for _ in range(2):  # prepared, and found again
        caplog.clear()
        with caplog.at_level(logging.WARNING, "recsys_embed"):
            dataset = prepare(config, tmp_path / "out")
        assert [record.message for record in caplog.records] == [sentence] == left_out(dataset.schema)
    (tmp_path / "c.toml").write_text(
        f'[data]\npath = "{path}"\nlabel = "clicked"\ncategorical = ["user"]\nnumeric = ["price"]\n'
        'split = { column = "part" }\non_bad_rows = "skip"\n'
    )
    told = CliRunner().invoke(app, ["prepare", str(tmp_path / "c.toml"), "--out", str(tmp_path / "again"), "--json"])
    assert (told.exit_code, json.loads(told.stdout)["skipped"]["rows"]) == (0, len(BAD))
    assert sentence in told.stderr


def test_rows_of_a_file_without_a_header_are_counted_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Criteo's, in parts: a field too few, and bytes that are no text. The first row alone tells how many there are."""
    good = ["1"] + ["5"] * 13 + ["a"] * 26
    lines = ["\t".join(good).encode() for _ in range(40)]
    lines[1] = lines[17] = b"1\t2"
    lines[25] = "\t".join([*good[:-1], "\0"]).encode().replace(b"\0", b"\xff")
    (tmp_path / "train.txt").write_bytes(b"\n".join(lines))
    monkeypatch.setattr(parts, "_BLOCK", 100)
    for size in (1 << 26, 500):
        monkeypatch.setattr(parts, "PART_BYTES", size)
        config = DataConfig.model_validate(
            {"format": "criteo", "path": str(tmp_path / "train.txt"), "on_bad_rows": "skip"}
        )
        source = FileSource(config)
        chunks = [chunk for part in source.parts() for chunk in source.chunks(part, ["label", "C26"], 9)]
        found = {error.row: error.reason for chunk in chunks for error in chunk.refused}
        assert found == {
            2: "has 2 fields instead of 40",
            18: "has 2 fields instead of 40",
            26: "is not UTF-8 text",
        }
        assert sum(map(len, chunks)) == 40


def test_hours_that_are_none_are_refused_by_their_rows(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("click,hour\n1,14102100\n0,noon\n1,14102523\n0,noon\n")
    config = DataConfig.model_validate(
        {"format": "avazu", "path": str(tmp_path / "train.csv"), "categorical": ["weekday"], "on_bad_rows": "skip"}
    )
    source = FileSource(config)
    (chunk,) = source.chunks(source.parts()[0], ["click", "weekday"], 100)
    assert chunk.table["weekday"].to_pylist()[::2] == ["Tue", "Sat"]
    assert [(error.row, error.column, error.value) for error in chunk.refused] == [
        (2, "hour", "noon"),
        (4, "hour", "noon"),
    ]
