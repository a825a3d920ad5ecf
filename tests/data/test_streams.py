"""Packed files give the bytes of plain ones, or say that they are not whole."""

from __future__ import annotations

import gzip
import io
import random
import zipfile
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from recsys_embed.data import read_frames, streams
from recsys_embed.data.readers import find_files
from recsys_embed.data.streams import find, members, on_disk, open_stream, split_member
from recsys_embed.errors import DataError
from tests.data.public import zstd

DRAW = random.Random(0)
TEXT = b"a,b\n" + b"".join(f"{DRAW.random()},{DRAW.choice('xyz')}\n".encode() for _ in range(3000))


def zstd_checked(data: bytes) -> bytes:
    """A frame with a checksum, as the program writes it: Arrow leaves it out (RFC 8878, 3.1.1)."""
    frame = bytearray(zstd(data))
    assert not frame[4] & 4
    frame[4] |= 4
    return bytes(frame) + xxhash.xxh64_intdigest(data).to_bytes(8, "little")[:4]


def archive(*contents: bytes, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as opened:
        for i, content in enumerate(contents):
            opened.writestr(f"part/{i}.csv", content)
    return file.getvalue()


PACKED: dict[str, Callable[[bytes], bytes]] = {
    "plain": bytes,
    "gz": gzip.compress,
    "two gz": lambda data: gzip.compress(data[:999]) + gzip.compress(data[999:]),
    "zst": zstd,
    "checked zst": zstd_checked,
    "two zst": lambda data: zstd(data[:999]) + zstd(data[999:]),
    "zip": archive,
    "stored zip": lambda data: archive(data, method=zipfile.ZIP_STORED),
    "zip of gz": lambda data: archive(gzip.compress(data)),
    "zip of zst": lambda data: archive(zstd(data)),
}


def whole_of(path: Path) -> bytes:
    with open_stream(path) as stream:
        return stream.read()


def place(folder: Path, data: bytes) -> Path:
    """Under a name that says nothing."""
    path = folder / "rows"
    path.write_bytes(data)
    return Path(f"{path}!/part/0.csv") if data[:2] == b"PK" else path


@pytest.mark.parametrize("kind", PACKED)
def test_the_bytes_are_those_that_were_packed(tmp_path: Path, kind: str) -> None:
    path = place(tmp_path, PACKED[kind](TEXT))
    assert whole_of(path) == TEXT
    with open_stream(path) as stream:
        assert b"".join(iter(lambda: stream.read(7), b"")) == TEXT
    assert on_disk(path) == tmp_path / "rows"


@pytest.mark.parametrize("kind", [kind for kind in PACKED if kind not in ("plain", "two gz", "two zst")])
def test_what_is_cut_short_is_named(tmp_path: Path, kind: str) -> None:
    """Wherever it is cut after its first bytes, which say what it is."""
    whole = PACKED[kind](TEXT)
    path = place(tmp_path, whole)
    for end in {*range(5, len(whole), len(whole) // 40), len(whole) - 1}:
        on_disk(path).write_bytes(whole[:end])
        with pytest.raises(DataError) as caught:
            whole_of(path)
        assert caught.value.file in (str(path), str(on_disk(path)))


@pytest.mark.parametrize("kind", ["gz", "checked zst", "zip", "stored zip"])
def test_no_flipped_bit_changes_a_byte(tmp_path: Path, kind: str) -> None:
    """It is an error, or of no consequence, as in a time stamp."""
    whole, draw = PACKED[kind](TEXT), random.Random(1)
    path = place(tmp_path, whole)
    refused = 0
    for _ in range(150):
        damaged = bytearray(whole)
        damaged[draw.randrange(4, len(whole))] ^= 1 << draw.randrange(8)
        on_disk(path).write_bytes(damaged)
        try:
            found = whole_of(path)
        except DataError:
            refused += 1
        else:
            assert found == TEXT
    assert refused > 130


@pytest.mark.parametrize("kind", ["zst", "zip"])
@pytest.mark.parametrize("part", [0.3, 0.9])
def test_a_reader_tells_of_a_cut(tmp_path: Path, kind: str, part: float) -> None:
    """Through Arrow's CSV reader, which must not take the cut for the end."""
    whole = zstd(TEXT) if kind == "zst" else archive(TEXT)
    path = place(tmp_path, whole)
    if kind == "zip":  # its directory is at the end: one that is whole, of a member that is not
        damaged = bytearray(whole)
        damaged[int(len(whole) * part / 2)] ^= 255
        on_disk(path).write_bytes(damaged)
    else:
        on_disk(path).write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(DataError, match="cannot be read to its end") as caught:
        list(read_frames(path, ["a"]))
    assert caught.value.file == str(path)


def test_members_are_found_by_name_and_pattern(tmp_path: Path) -> None:
    path = tmp_path / "rows.zip"
    with zipfile.ZipFile(path, "w") as file:
        for name in ("b.csv", "in/a.csv", "in/c.tsv.zst", "notes.md", "__MACOSX/._b.csv"):
            file.writestr(name, b"x\n1\n" if not name.endswith("zst") else zstd(b"x\n2\n"))
    assert members(path) == ["b.csv", "in/a.csv", "in/c.tsv.zst", "notes.md", "__MACOSX/._b.csv"]
    assert [str(file)[len(str(path)) :] for file in find_files(path)] == ["!/b.csv", "!/in/a.csv", "!/in/c.tsv.zst"]
    assert [file.name for file in find_files(f"{path}!/in/*")] == ["a.csv", "c.tsv.zst"]
    assert [file.name for file in find_files(f"{path}!/notes.md")] == ["notes.md"]
    assert pd.concat(read_frames(path, ["x"]))["x"].tolist() == ["1", "1", "2"]
    assert pd.concat(read_frames(tmp_path / "*.zip", ["x"]))["x"].tolist() == ["1", "1", "2"]
    with pytest.raises(DataError, match="there is no such file"):
        find_files(f"{path}!/x.csv")
    with pytest.raises(DataError, match=r"has no member 'x\.csv'"):
        open_stream(Path(f"{path}!/x.csv"))
    with pytest.raises(DataError, match="name one of its members"):
        open_stream(path)


def test_a_folder_whose_name_ends_like_an_archives_path(tmp_path: Path) -> None:
    (tmp_path / "odd!").mkdir()
    path = tmp_path / "odd!" / "rows.csv"
    path.write_bytes(TEXT)
    assert split_member(path) is None
    assert find(path, bool) == [path]


def test_packed_files_of_a_folder_count(tmp_path: Path) -> None:
    """In the order of their names, whatever they are; ``.zip`` as one of the ways to pack."""
    for name, pack in {"a.csv": bytes, "b.csv.zst": zstd, "c.csv.gz": gzip.compress, "d.csv.zip": archive}.items():
        (tmp_path / name).write_bytes(pack(f"x\n{name}\n".encode()))
    (tmp_path / "e.zst").write_bytes(zstd(b"x\nno data by its name\n"))
    assert pd.concat(read_frames(tmp_path, ["x"]))["x"].tolist() == ["a.csv", "b.csv.zst", "c.csv.gz", "d.csv.zip"]


def test_bombs_are_refused_and_tables_of_one_value_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_BOMB_BYTES", 100_000)
    path = place(tmp_path, archive(b"0\n" * 1_000_000))
    with pytest.raises(DataError, match="2,000,000 bytes, as bombs do") as caught:
        open_stream(path)
    assert caught.value.file == str(path)
    path = place(tmp_path, archive(b"0\n" * 40_000))
    assert len(whole_of(path)) == 80_000


def test_a_member_that_lies_about_its_size(tmp_path: Path) -> None:
    """No more comes out than its directory says, and then the checksum is wrong."""
    whole = bytearray(archive(TEXT))
    size = len(TEXT).to_bytes(4, "little")
    while (at := whole.find(size)) >= 0:
        whole[at : at + 4] = (100).to_bytes(4, "little")
    path = place(tmp_path, bytes(whole))
    with pytest.raises(DataError):
        whole_of(path)


def test_an_encrypted_member(tmp_path: Path) -> None:
    whole = bytearray(archive(TEXT))
    whole[6] |= 1
    whole[whole.rfind(b"PK\x01\x02") + 8] |= 1
    path = place(tmp_path, bytes(whole))
    with pytest.raises(DataError, match="encrypted") as caught:
        open_stream(path)
    assert caught.value.file == str(path)


@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_two_members_of_one_name(tmp_path: Path) -> None:
    path = tmp_path / "rows.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.csv", TEXT)
        file.writestr("a.csv", b"a,b\n1,2\n")
    with pytest.raises(DataError, match=r"'a\.csv' 2 times"):
        list(read_frames(path, ["a"]))


def test_names_that_climb_stay_names(tmp_path: Path) -> None:
    """Nothing is written, and what is read is the archive's."""
    (tmp_path / "rows.csv").write_bytes(b"a\noutside\n")
    inner = tmp_path / "in"
    inner.mkdir()
    path = inner / "rows.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("../rows.csv", b"a\ninside\n")
    assert pd.concat(read_frames(path, ["a"]))["a"].tolist() == ["inside"]
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["in", "rows.csv", "rows.zip"]


def test_parquet_that_is_packed_once_more(tmp_path: Path) -> None:
    table = io.BytesIO()
    pq.write_table(pa.table({"a": ["1"]}), table)
    for pack in (gzip.compress, zstd, archive):
        path = place(tmp_path, pack(table.getvalue()))
        with pytest.raises(DataError, match="unpack it") as caught:
            list(read_frames(path, ["a"]))
        assert caught.value.file == str(path)


def test_a_file_that_may_not_be_read_or_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        open_stream(tmp_path / "absent")
    (tmp_path / "bad.zip").write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(DataError, match="not a whole zip archive"):
        find_files(tmp_path / "bad.zip")
