"""Files of every format in parts: the rows of the whole, in their places, and the same bytes when they are prepared."""

from __future__ import annotations

import gzip
import pickle
import re
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import recsys_embed.data.parts as parts_module
from recsys_embed.config import parse_config
from recsys_embed.data import prepare
from recsys_embed.data.delimited import Dialect, read_delimited
from recsys_embed.data.formats import FORMATS
from recsys_embed.data.formats.libsvm import count_rows
from recsys_embed.data.lines import read_lines
from recsys_embed.data.parts import Part, count_plain, cut_lines, rows_about
from recsys_embed.data.readers import find_files, read_chunks
from recsys_embed.data.sources import FileSource
from recsys_embed.data.streams import size_of
from recsys_embed.data.workshop import processes
from recsys_embed.errors import DataError
from tests.data import public
from tests.data.public import Example, zstd
from tests.data.test_partitions import contents


def plain_avazu(folder: Path) -> Example:
    example = public.avazu(folder)
    (folder / "train.csv").write_bytes(gzip.decompress((folder / "train.gz").read_bytes()))
    (folder / "train.gz").unlink()
    return example


def bare_libsvm(folder: Path) -> Example:
    """Without comments and blank lines."""
    example = public.libsvm(folder)
    path = Path(example.path)
    path.write_text(re.sub(r" *#.*|^\n", "", path.read_text(), flags=re.MULTILINE).strip("\n"))
    return example


PLAIN: dict[str, Callable[[Path], Example]] = {
    "criteo": public.criteo,
    "avazu": plain_avazu,
    "movielens_1m": public.movielens_1m,
    "movielens_25m": public.movielens_25m,
    "libsvm": bare_libsvm,
    "libffm": public.libffm,
}


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of 2,000 bytes, read in blocks of 64."""
    monkeypatch.setattr(parts_module, "PART_BYTES", 2_000)
    monkeypatch.setattr(parts_module, "_BLOCK", 64)


def read_part(file: Path, form: str, part: Part, columns: list[str]) -> Iterator[tuple[int, list[str]]]:
    """The rows of a part with their numbers, empty where a cell is missing."""
    span = None if part.first is None or part.last is None else (part.first, part.last)
    for chunk in read_chunks(file, columns, format=form, chunk_rows=9, part=span, first_row=part.first_row):
        for i, row in enumerate(chunk.table.to_pylist()):
            yield chunk.first_row + i, [row[name] or "" for name in columns]


@pytest.mark.parametrize("name", PLAIN)
def test_the_parts_of_a_file_are_its_rows(small_parts: None, tmp_path: Path, name: str) -> None:
    """Whoever reads which of them, with the places that they have in the whole."""
    example = PLAIN[name](tmp_path)
    form = str(example.data["format"])
    (file,) = find_files(example.path, form)
    columns = [one for one in example.rows[0] if one != "features" or name != "libsvm"]
    parts = FORMATS[form].cut(5, file)
    assert len(parts) > 2
    assert {part.file for part in parts} == {5}
    found = [list(read_part(file, form, part, columns)) for part in reversed(parts)][::-1]
    assert [part.rows for part in parts] == [len(rows) for rows in found]
    expected = [(i, [row[name] for name in columns]) for i, row in enumerate(example.rows, 1)]
    assert [row for rows in found for row in rows] == expected


def test_criteos_file_without_labels_is_cut_too(small_parts: None, tmp_path: Path) -> None:
    path = tmp_path / "test.txt"
    path.write_text(public.criteo_text(80, labels=False))
    parts = FORMATS["criteo"].cut(0, path)
    assert len(parts) > 3
    assert parts[0].first == 0
    found = [row for part in parts for _, row in read_part(path, "criteo", part, public.CRITEO[1:])]
    assert found == [[*row.values()] for row in public.criteo_rows(path.read_text())]


@pytest.fixture(scope="module")
def threads() -> Iterator[Executor]:
    with ThreadPoolExecutor(3) as pool:
        yield pool


@pytest.mark.parametrize("name", PLAIN)
def test_the_same_bytes_for_any_number_of_parts_and_workers(
    tmp_path: Path, threads: Executor, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also beside those of a packed file, which is one part."""
    (tmp_path / "in").mkdir()
    example = PLAIN[name](tmp_path / "in")
    form = str(example.data["format"])
    tree = {"data": {**example.data, "split": {"random": [0.6, 0.2, 0.2], "seed": 3}}}
    prepare(parse_config(tree).data, tmp_path / "whole", workers=1)
    expected = contents(tmp_path / "whole")
    for size in (2_000, 5_000):
        monkeypatch.setattr(parts_module, "PART_BYTES", size)
        monkeypatch.setattr(parts_module, "_BLOCK", 512)
        prepare(parse_config(tree).data, tmp_path / f"{size}", executor=threads)
        assert contents(tmp_path / f"{size}") == expected
    (file,) = find_files(example.path, form)
    packed = file.with_name(f"{file.name}.gz")
    packed.write_bytes(gzip.compress(file.read_bytes()))
    file.unlink()
    tree["data"]["path"] = str(packed)
    assert len(FileSource(parse_config(tree).data).parts()) == 1
    prepare(parse_config(tree).data, tmp_path / "packed", executor=threads)
    assert contents(tmp_path / "packed") == expected


@pytest.mark.parametrize("name", PLAIN)
def test_another_process_finds_the_same(small_parts: None, tmp_path: Path, name: str) -> None:
    source = FileSource(parse_config({"data": PLAIN[name](tmp_path).data}).data)
    other = pickle.loads(pickle.dumps(source))
    assert other.parts() == source.parts()


def test_a_folder_and_an_archive_are_parts_of_each_file(tmp_path: Path, threads: Executor) -> None:
    """Days in the order of their numbers, in files and in members."""
    (tmp_path / "days").mkdir()
    example = public.criteo_days(tmp_path / "days")
    archive = public.zipped(example, tmp_path / "days.zip", "criteo")
    found = []
    for data in (example.data, archive.data):
        config = parse_config({"data": data}).data
        parts = FileSource(config).parts()
        assert [(part.file, part.first_row, part.first) for part in parts] == [(i, 1, None) for i in range(4)]
        out = tmp_path / f"out-{len(found)}"
        prepare(config, out, executor=threads)
        found.append(contents(out))
    assert found[0] == found[1]


CRITEO = "\t".join("1" * 40)
BAD = {
    "criteo": ("train.txt", CRITEO, "1\t2"),
    "avazu": ("train.csv", "1,0,14102100", "1,0,14103299"),
    "movielens_1m": ("ratings.dat", "1::1::5::9", "1::7::5::9"),
    "movielens_25m": ("ratings.csv", "1,1,5,9", "1,7,5,9"),
    "libsvm": ("rows.txt", "1 3:1 4:1 5:1", "1 3"),
}
HEADERS = {"avazu": "id,click,hour\n", "movielens_25m": "userId,movieId,rating,timestamp\n"}
COLUMNS = {"avazu": ["weekday"], "movielens_1m": ["title"], "movielens_25m": ["title"]}


@pytest.mark.parametrize("form", BAD)
def test_a_bad_row_of_a_later_part_has_its_number(small_parts: None, tmp_path: Path, form: str) -> None:
    (tmp_path / "movies.dat").write_text("1::One (1995)::Drama\n")
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n1,One (1995),Drama\n")
    name, good, bad = BAD[form]
    path = tmp_path / name
    lines = [good] * 900
    lines[700] = bad
    path.write_text(HEADERS.get(form, "") + "\n".join(lines) + "\n")
    parts = FORMATS[form].cut(0, path)
    (at,) = [i for i, part in enumerate(parts) if part.first_row <= 701 < part.first_row + (part.rows or 0)]
    assert 0 < at < len(parts) - 1
    with pytest.raises(DataError) as caught:
        list(read_part(path, form, parts[at], COLUMNS.get(form, ["label"])))
    assert (caught.value.file, caught.value.row) == (str(path), 701)


# --- cutting ------------------------------------------------------------------------------------------------------


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.text("1\r#\t \v", max_size=5), max_size=40),
    st.sampled_from(["\n", "\r\n"]),
    st.booleans(),
    st.integers(1, 40),
    st.integers(1, 20),
)
def test_lines_without_a_header(
    tmp_path: Path, cells: list[str], end: str, closed: bool, size: int, block: int
) -> None:
    """Whatever is in a file: its parts say how many rows they hold, and together they are the file."""
    path = tmp_path / "rows.txt"
    path.write_bytes((end.join(cells) + end * closed).encode())
    dialect = Dialect("|", quotes=False)

    def rows_of(kind: str, part: tuple[int, int] | None = None, first: int = 1) -> list[object]:
        if kind == "libsvm":
            batches = FORMATS["libsvm"].read(path, ["label"], part, first)
            return [cell for batch in batches for cell in batch.column("label").to_pylist()]
        if kind == "lines":
            return [line for _, batch in read_lines(path, part=part, first_row=first) for line in batch.to_pylist()]
        batches = read_delimited(path, ["x"], dialect, ["x"], part)
        return [cell for batch in batches for cell in batch.column("x").to_pylist()]

    for kind, count in (("libsvm", count_rows), ("lines", count_plain), ("delimited", count_plain)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(parts_module, "PART_BYTES", size)
            patch.setattr(parts_module, "_BLOCK", block)
            parts = cut_lines(0, path, count)
        try:
            whole = rows_of(kind)
        except DataError:  # a comment alone, or two words
            continue
        found: list[object] = []
        for part in parts:
            span = None if part.first is None or part.last is None else (part.first, part.last)
            rows = rows_of(kind, span, part.first_row)
            assert part.first_row == len(found) + 1
            assert part.rows in (None, len(rows))
            found += rows
        assert found == whole


@pytest.mark.parametrize("text", ["1 3:1\n# why\n", "1 3:1\n   \n", "1 3:1 # why\n", "\n1 3:1\n"])
def test_libsvm_with_lines_that_are_no_rows_is_one_part(small_parts: None, tmp_path: Path, text: str) -> None:
    path = tmp_path / "rows.txt"
    path.write_text(text + "1 3:1 5:1\n" * 500)
    assert [(part.first, part.rows) for part in FORMATS["libsvm"].cut(0, path)] == [(None, None)]


def test_a_line_that_does_not_end_is_one_part(
    small_parts: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not held in memory to find that out."""
    monkeypatch.setattr(parts_module, "_LONGEST_LINE", 500)
    path = tmp_path / "rows.txt"
    path.write_text("1 3:1\n" * 500 + "1" * 5_000)
    assert FORMATS["libsvm"].cut(0, path) == [Part(0, size=8_000)]


def test_a_damaged_parquet_file_is_named_before_it_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"label": ["0", "1"] * 50}), path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="not a whole Parquet file") as caught:
        FORMATS["auto"].cut(0, path)
    assert caught.value.file == str(path)


# --- how much there is to do --------------------------------------------------------------------------------------


def test_rows_are_estimated_of_whatever_is_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts_module, "_SAMPLE", 1 << 20)
    text = public.criteo_text(15_000).encode()
    files = {"rows": text, "rows.gz": gzip.compress(text, 1), "rows.zst": zstd(text)}
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    with zipfile.ZipFile(tmp_path / "rows.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for name, data in files.items():
            file.writestr(name, data)
    for name, data in files.items():
        for path in (tmp_path / name, Path(f"{tmp_path / 'rows.zip'}!/{name}")):
            assert size_of(path) == len(data)
            assert rows_about(path) == pytest.approx(15_000, rel=0.15), path


@pytest.mark.parametrize(
    ("sizes", "workers", "expected"),
    [([10, 10, 10], None, 1), ([10, 10, 10], 2, 2), ([10], 8, 1), ([64 << 20] * 50, None, 4), ([], None, 1)],
)
def test_processes_are_started_for_a_whole_parts_work(
    monkeypatch: pytest.MonkeyPatch, sizes: list[int], workers: int | None, expected: int
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 4)
    assert processes([Part(i, size=size) for i, size in enumerate(sizes)], workers) == expected


@given(st.lists(st.sampled_from(["a", "\r", "\n", "\r\n", "b\n"]), min_size=1, max_size=12).map("".join))
def test_rows_are_counted_where_every_line_is_one(text: str) -> None:
    lines = text.removesuffix("\n").split("\n")
    bare = [line.removesuffix("\r") for line in (lines if text.endswith("\n") else lines[:-1])]
    if not text.endswith("\n"):
        bare.append(lines[-1])
    plain = all(bare) and not any("\r" in line for line in bare)
    assert count_plain(text.encode()) == (len(lines) if plain else None)
