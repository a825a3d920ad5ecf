"""Hostile CSV: the rows of Python's csv module, or an error at the row where it has another number of fields; the same
for files cut into parts and read in small blocks, and with rows skipped."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys_embed.config import DataConfig
from recsys_embed.data import delimited, parts
from recsys_embed.data.sources import FileSource
from recsys_embed.errors import DataError

WHOLE = delimited.BLOCK
TOKENS = [b"a", b"b", b",", b",", b"\n", b"\n", b"\r", b"\r\n", b'"', b'"', b'""', b"\0", b" ", "é".encode()]
LINES = [b"1,2\n", b"x,\n", b'"u,v",w\r\n', b'"p\nq","r""s"\n', b"\n"]
BROKEN = [b"\xff", b"\xc3", b"\xf0\x9f", b"\xef\xb7\x90", b"3,4,5\n", b"6\n"]
HEADERS = [b"a,b\n", b"a,b\r\n", b"a,b\r", b'\n\r\n"a",b\n', b'"a","b"\n']


def rows_of(data: bytes) -> list[list[str]]:
    """The rows after the header, as Latin-1 so that every byte is kept."""
    text = data.removeprefix(b"\xef\xbb\xbf").decode("latin-1")
    return [row for row in csv.reader(io.StringIO(text, newline="")) if row][1:]


def left_open(data: bytes) -> bool:
    """Whether a quoted cell has no end: a quote opens at the beginning of a cell alone."""
    beginning, quoted = True, False
    text = data.removeprefix(b"\xef\xbb\xbf")
    i = 0
    while i < len(text):
        char = text[i : i + 1]
        if quoted and char == b'"' and text[i + 1 : i + 2] == b'"':
            i += 1
        elif char == b'"' and (quoted or beginning):
            quoted, beginning = not quoted, False
        elif not quoted:
            beginning = char in (b",", b"\n", b"\r")
        i += 1
    return quoted


def is_text(cell: str) -> bool:
    try:
        cell.encode("latin-1").decode()
    except UnicodeDecodeError:
        return False
    return True


def text(cell: str) -> str | None:
    return cell.encode("latin-1").decode() or None


def read(path: Path, skip: str) -> tuple[dict[int, tuple[str | None, ...]], dict[int, str]]:
    """The rows by their number, and the reasons of those that are refused."""
    source = FileSource(DataConfig.model_validate({"path": str(path), "on_bad_rows": skip}))
    found: dict[int, tuple[str | None, ...]] = {}
    refused: dict[int, str] = {}
    for part in source.parts():
        assert part.rows is None or part.rows > 0
        for chunk in source.chunks(part, ["a", "b"], 3):
            cells = zip(*chunk.table.select(["a", "b"]).to_pydict().values(), strict=True)
            found |= {chunk.first_row + i: row for i, row in enumerate(cells)}
            for error in chunk.refused:
                assert error.row is not None
                refused.setdefault(error.row, error.reason)
    return found, refused


body = st.lists(st.sampled_from(TOKENS) | st.sampled_from(LINES), max_size=40).map(b"".join)
broken = st.lists(st.sampled_from(TOKENS) | st.sampled_from(LINES) | st.sampled_from(BROKEN), max_size=40).map(b"".join)
header = st.sampled_from(HEADERS)
mark = st.sampled_from([b"", b"\xef\xbb\xbf"])
blocks = st.sampled_from([(WHOLE, parts.PART_BYTES), (WHOLE, 1), (WHOLE, 20), (300, 1)])


def small(patch: pytest.MonkeyPatch, sizes: tuple[int, int]) -> None:
    patch.setattr(delimited, "BLOCK", sizes[0])
    patch.setattr(parts, "PART_BYTES", sizes[1])
    patch.setattr(parts, "_BLOCK", 7)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(mark, header, body, blocks)
def test_rows_are_those_of_the_csv_module(
    tmp_path: Path, bom: bytes, first: bytes, rest: bytes, sizes: tuple[int, int]
) -> None:
    path, data = tmp_path / "rows.csv", bom + first + rest
    path.write_bytes(data)
    expected = rows_of(data)
    ragged = next((i + 1 for i, row in enumerate(expected) if len(row) != 2), None)
    with pytest.MonkeyPatch.context() as patch:
        small(patch, sizes)
        if ragged is None and not left_open(data):
            assert list(read(path, "error")[0].values()) == [tuple(map(text, row)) for row in expected]
            return
        with pytest.raises(DataError) as caught:
            read(path, "error")
    assert (caught.value.file, caught.value.row) == (str(path), ragged or len(expected))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(mark, header, broken, blocks)
def test_all_other_rows_are_read_where_bad_ones_are_skipped(
    tmp_path: Path, bom: bytes, first: bytes, rest: bytes, sizes: tuple[int, int]
) -> None:
    path, data = tmp_path / "rows.csv", bom + first + rest
    path.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        small(patch, sizes)
        if left_open(data):
            with pytest.raises(DataError, match="never closed"):
                read(path, "skip")
            return
        found, refused = read(path, "skip")
    good = {i + 1: row for i, row in enumerate(rows_of(data)) if len(row) == 2 and all(map(is_text, row))}
    assert {row: cells for row, cells in found.items() if row not in refused} == {
        row: tuple(map(text, cells)) for row, cells in good.items()
    }
    reasons = {
        i + 1: "is not UTF-8 text" if len(row) == 2 else f"has {len(row)} fields instead of 2"
        for i, row in enumerate(rows_of(data))
        if i + 1 not in good
    }
    assert refused == reasons


@pytest.mark.parametrize("first", [b'"a\nb",c\n', b'"a""b",c\n', b'"a,b",c\r'])
def test_headers_with_anything_in_quotes(tmp_path: Path, first: bytes) -> None:
    (tmp_path / "rows.csv").write_bytes(first + b"1,2\n")
    names = next(csv.reader(io.StringIO(first.decode(), newline="")))
    assert delimited.header(tmp_path / "rows.csv", delimited.Dialect()) == names
    batches = list(delimited.read_delimited(tmp_path / "rows.csv", names, delimited.Dialect()))
    assert [batch.to_pylist() for batch in batches] == [[dict(zip(names, ["1", "2"], strict=True))]]


def test_a_header_that_is_never_closed(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(b'a,"b\n1,2\n')
    with pytest.raises(DataError, match="a quote in the header is never closed"):
        list(delimited.read_delimited(tmp_path / "rows.csv", ["a"], delimited.Dialect()))


def test_a_row_longer_than_a_block_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "BLOCK", 1000)
    (tmp_path / "rows.csv").write_bytes(b"a,b\n" + b"1,2\n" * 500 + b"3," + b"4" * 5000 + b"\n")
    with pytest.raises(DataError, match="is longer than") as caught:
        list(delimited.read_delimited(tmp_path / "rows.csv", ["a"], delimited.Dialect()))
    assert caught.value.row == 501
