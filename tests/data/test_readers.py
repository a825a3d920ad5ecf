"""Files of every kind give the same rows, and bad ones say where they are bad."""

from __future__ import annotations

import gzip
import random
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys_embed.data import delimited, read_frames
from recsys_embed.data.readers import find_files, read_chunks
from recsys_embed.errors import DataError

KINDS = ["rows.csv", "rows.tsv", "rows.csv.gz", "rows.tsv.gz", "rows.parquet"]


def read(path: Path, columns: list[str], **options: object) -> pd.DataFrame:
    return pd.concat(list(read_frames(path, columns, **options)), ignore_index=True)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("chunk_rows", [1, 7, 100_000])
def test_every_kind_of_file_gives_the_same_text(
    kit: SimpleNamespace, tmp_path: Path, name: str, chunk_rows: int
) -> None:
    table = kit.table(50)
    frame = read(kit.write(table, tmp_path / name), ["price", "city", "tags"], chunk_rows=chunk_rows)
    expected = table[["price", "city", "tags"]]
    assert frame.astype(object).where(frame.notna(), "").to_numpy().tolist() == expected.to_numpy().tolist()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(
    st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\r\x00"), max_size=8), min_size=1, max_size=30),
    st.integers(1, 9),
)
def test_quoted_text_survives(tmp_path: Path, cells: list[str], chunk_rows: int) -> None:
    path = tmp_path / "quoted.csv"
    rows = "".join('"{}",x\n'.format(cell.replace('"', '""')) for cell in cells)
    path.write_bytes(("a,b\n" + rows).encode())
    frame = read(path, ["a"], chunk_rows=chunk_rows)
    assert frame["a"].astype(object).where(frame["a"].notna(), "").tolist() == cells


def test_byte_order_mark_crlf_and_a_last_line_without_end(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(b'\xef\xbb\xbfa,b\r\n1,"x\ny"\r\n\r\nNA,z')
    assert read(path, ["a", "b"]).to_numpy().tolist() == [["1", "x\ny"], ["NA", "z"]]


def test_folders_and_patterns_in_the_order_of_names(tmp_path: Path) -> None:
    for name, value in (("b.csv", 2), ("a.csv.gz", 1), ("c.parquet", 3), (".hidden.csv", 9), ("notes.md", 9)):
        path = tmp_path / name
        if name.endswith("parquet"):
            pd.DataFrame({"x": [value]}).to_parquet(path)
        else:
            text = f"y,x\n0,{value}\n".encode()
            path.write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    assert read(tmp_path, ["x"])["x"].tolist() == ["1", "2", "3"]
    assert [file.name for file in find_files(tmp_path / "*.csv")] == ["b.csv"]
    with pytest.raises(DataError, match="no such file"):
        find_files(tmp_path / "*.xml")


def test_rows_are_counted_from_one_across_chunks(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a\n" + "".join(f"{i}\n" for i in range(10)))
    assert [(chunk.first_row, len(chunk)) for chunk in read_chunks(path, ["a"], chunk_rows=4)] == [
        (1, 4),
        (5, 4),
        (9, 2),
    ]


@pytest.mark.parametrize(
    ("content", "message", "column", "row"),
    [
        (b"", "is empty", None, None),
        (b"\n\n", "is empty", None, None),
        (b"a,b,a\n1,2,3\n", "names this column twice", "a", None),
        (b"user,b\n1,2\n", "did you mean 'user'", "uesr", None),
        (b"a;b\n1;2\n", "set separator = ';'", None, None),
        (b"a\tb\n1\t2\n", r"set separator = '\\t'", None, None),
        (b"a,b\n1,2\n\n3,4\n5\n", "has 1 fields instead of 2", None, 3),
        (b"a,b\n1,2\n3,4,5\n", "has 3 fields instead of 2", None, 2),
        (b"a,b\n1,2\n\xff\xfe,4\n", "is not UTF-8", "a", 2),
        (b"\xff\xfea,b\n1,2\n", "not UTF-8", None, None),
        (b'a,b\n1,2\n3,"4\n5,6\n', "never closed", "b", 2),
    ],
)
def test_bad_csv_names_its_place(
    tmp_path: Path, content: bytes, message: str, column: str | None, row: int | None
) -> None:
    path = tmp_path / "bad.csv"
    path.write_bytes(content)
    wanted = ["uesr"] if column == "uesr" else ["a", "b"]
    with pytest.raises(DataError, match=message) as caught:
        read(path, wanted)
    assert (caught.value.file, caught.value.column, caught.value.row) == (str(path), column, row)


@pytest.mark.parametrize("name", ["rows.csv.gz", "rows.parquet"])
@pytest.mark.parametrize("part", [0.3, 0.9])
def test_files_cut_short_are_refused(kit: SimpleNamespace, tmp_path: Path, name: str, part: float) -> None:
    path = kit.write(kit.table(200), tmp_path / name)
    data = path.read_bytes()
    path.write_bytes(data[: int(part * len(data))])
    with pytest.raises(DataError) as caught:
        read(path, ["user"])
    assert caught.value.file == str(path)


def test_parquet_keeps_large_integers_beside_nulls(tmp_path: Path) -> None:
    path = tmp_path / "ids.parquet"
    pq.write_table(pa.table({"id": pa.array([2**53 + 1, None, 2**53 + 2])}), path)
    frame = read(path, ["id"])
    assert frame["id"].tolist()[::2] == ["9007199254740993", "9007199254740994"]
    assert frame["id"].isna().tolist() == [False, True, False]


def test_a_column_twice_in_parquet(tmp_path: Path) -> None:
    path = tmp_path / "twice.parquet"
    pq.write_table(pa.Table.from_arrays([pa.array(["1"]), pa.array(["2"])], names=["a", "a"]), path)
    with pytest.raises(DataError, match="twice"):
        read(path, ["a"])


def test_damaged_gzip_is_a_data_error(tmp_path: Path) -> None:
    """Whatever zlib, the CSV reader or the search for the bad row stumble over."""
    rng = random.Random(0)
    whole = gzip.compress("".join(["a,b\n"] + [f"{rng.random()},{i}\n" for i in range(500)]).encode())
    path = tmp_path / "rows.csv.gz"
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[rng.randrange(10, len(whole))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(DataError) as caught:
            list(read_frames(path, ["a", "b"]))
        assert caught.value.file == str(path)


def test_one_endless_line_does_not_come_into_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "BLOCK", 1000)
    path = tmp_path / "rows.csv.gz"
    path.write_bytes(gzip.compress(b"a" * 5000))
    with pytest.raises(DataError, match="the header is longer than 1000 bytes"):
        list(read_frames(path, ["a"]))
