"""Public formats: cells as the plain way finds them, a config in two keys, and the whole chain to a prediction."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest

from recsys_embed import jobs
from recsys_embed.config import DataFormat, parse_config
from recsys_embed.data import delimited, lines, prepare, sources
from recsys_embed.data.formats import FORMATS
from recsys_embed.data.readers import column_names, find_files, read_chunks, read_frames
from recsys_embed.errors import ConfigError, DataError
from recsys_embed.export import load, predict_file
from tests.data import public
from tests.data.public import EXAMPLES, Example

README = Path(__file__).resolve().parents[2] / "README.md"


def frame_of(rows: public.Rows, columns: list[str]) -> pd.DataFrame:
    return pd.DataFrame(rows, dtype=object)[columns]


def read(example: Example, columns: list[str], **options: Any) -> list[list[str]]:
    """Cells, empty where missing."""
    found = read_frames(example.path, columns, format=str(example.data.get("format", "auto")), **options)
    frame = pd.concat(list(found), ignore_index=True)
    assert list(frame.columns) == columns
    cells: list[list[str]] = frame.astype(object).where(frame.notna(), "").to_numpy().tolist()
    return cells


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.parametrize(("block", "chunk_rows"), [(600, 7), (4 << 20, 65_536)])
def test_cells_are_those_that_the_plain_way_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, block: int, chunk_rows: int
) -> None:
    """In whatever blocks they are read, all columns and some of them in another order."""
    monkeypatch.setattr(delimited, "BLOCK", block)
    monkeypatch.setattr(lines, "BLOCK", block)
    example = EXAMPLES[name](tmp_path)
    for columns in ([*example.rows[0]], [*example.rows[0]][:0:-2]):
        if "value_900" not in columns:
            columns = [one for one in columns if one != "features" or name != "libsvm"]  # then its numbers are no bag's
        expected = frame_of(example.rows, columns).to_numpy().tolist()
        assert read(example, columns, chunk_rows=chunk_rows) == expected


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_columns_of_a_file_are_listed(tmp_path: Path, name: str) -> None:
    example = EXAMPLES[name](tmp_path)
    form = str(example.data.get("format", "auto"))
    listed = column_names(find_files(example.path, form)[0], format=form)
    assert set(example.rows[0]) - {"value_900"} == set(listed) - {"field_900"}


TRAINING = {"batch_size": 64, "epochs": 5, "patience": 5, "threads": 1}


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name != "criteo gz"])
def test_from_files_to_predictions(tmp_path: Path, name: str) -> None:
    """The planted rule is learnt; and rows from the file score as the same rows, read the plain way, in a frame."""
    example = EXAMPLES[name](tmp_path)
    tree = {
        "data": {**example.data, "split": {"random": [0.6, 0.2, 0.2]}},
        "model": {"dim": 4, "cross_layers": 1, "hidden": [16]},
        "training": {**TRAINING, "optimizer": {"tables_lr": 0.2, "dense_lr": 0.02}},
        "tracking": {"enabled": False},
    }
    model, trained = jobs.train(parse_config(tree), tmp_path / "out", progress=False)
    assert trained.row["test_auc"] > 0.7
    predictor = load(model)
    assert predict_file(predictor, example.path, tmp_path / "scores.csv") == len(example.rows)
    scores = pd.read_csv(tmp_path / "scores.csv")["score"]
    expected = predictor.predict(frame_of(example.rows, list(predictor.encoder.columns)))
    np.testing.assert_allclose(scores, expected, rtol=1e-6)


def test_criteos_file_without_labels_is_scored(tmp_path: Path) -> None:
    example = public.criteo(tmp_path)
    (tmp_path / "test.txt").write_text(public.criteo_text(50, seed=9, labels=False))
    test = Example({"path": str(tmp_path / "test.txt"), "format": "criteo"}, [])
    rows = public.criteo_rows((tmp_path / "test.txt").read_text())
    columns = public.CRITEO[1:]
    assert read(test, columns) == frame_of(rows, columns).to_numpy().tolist()
    with pytest.raises(DataError, match="has no labels") as caught:
        read(test, ["label"])
    assert (caught.value.file, caught.value.column) == (test.path, "label")
    # A folder with both, as the competition packs it, is that of train.txt.
    assert find_files(tmp_path, "criteo") == [Path(example.path)]


def test_a_format_and_a_path_are_a_whole_table_and_keys_of_ones_own_replace_its_keys() -> None:
    data = parse_config({"data": {"path": "train.txt", "format": "criteo"}}).data
    assert data.labels.column == "label"
    assert data.categorical == tuple(f"C{i}" for i in range(1, 27))
    assert data.scalings == {f"I{i}": "log" for i in range(1, 14)}
    own = parse_config({"data": {"path": "x", "format": "criteo", "categorical": ["C3"], "numeric": []}})
    assert (own.data.categorical, own.data.scalings, own.data.labels.column) == (("C3",), {}, "label")
    assert parse_config(own.model_dump(exclude_none=True)) == own


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "criteoo"}, "data.format"),
        ({"format": "criteo", "separator": ","}, "a separator is for format 'auto'"),
        ({"format": "avazu", "path": None, "planted": {}}, "leave out format = 'avazu'"),
    ],
)
def test_what_does_not_go_together(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config({"data": {"path": "rows", **changes}})


def test_configs_formats_and_the_readme_have_the_same_list() -> None:
    assert set(get_args(DataFormat)) == set(FORMATS)
    text = README.read_text(encoding="utf-8")
    for name, form in FORMATS.items():
        assert f"| `{name}` | {form.files} |" in text


FIELDS = "\t".join("1" * 40)
BAD = [
    ("criteo", "train.txt", f"{FIELDS}\n{FIELDS}\n1\t2\n", "has 2 fields instead of 40", None, 3),
    ("criteo", "train.txt", "a,b\n", "has 1 columns when cut at tabs", None, 1),
    ("criteo", "train.txt", "", "is empty", None, None),
    ("criteo", "train.txt", f"{FIELDS}\n{FIELDS[:-1]}\udcff\n", "is not UTF-8", "C26", 2),
    ("avazu", "train.csv", "id,click,hour\n1,0,14102100\n2,1,14103124\n3,1,x\n", "YYMMDDHH", "hour", 2),
    ("avazu", "train.csv", "id,click,hour\n1,0,14102100\n2,1,1410210\n", "YYMMDDHH", "hour", 2),
    ("avazu", "train.csv", "id,click\n1,0\n", "no such column", "hour", None),
    ("movielens_1m", "ratings.dat", "1::1::5::9\n1::1::5\n", "has 3 fields instead of 4", None, 2),
    ("movielens_1m", "ratings.dat", "1::1::5::9\n7::1::5::9\n", "users.dat has no such line", "user_id", 2),
    ("movielens_1m", "ratings.dat", "1::1::5::9\n1::::5::9\n", "movies.dat has no such line", "movie_id", 2),
    ("movielens_25m", "ratings.csv", "userId,movieId\n1,1\n1,9\n", "movies.csv has no such line", "movieId", 2),
    ("movielens_25m", "ratings.csv", "userId,movieId\n1,1\n1\n", "has 1 fields instead of 2", None, 2),
    ("libsvm", "rows.txt", "1 3:1\n0 4:1 5\n", "is not index:value", None, 2),
    ("libsvm", "rows.txt", "1 3:1\n\n0 4:1 x:1\n", "is not index:value", None, 2),
    ("libsvm", "rows.txt", "1 abc\n", "is not index:value", None, 1),
    ("libsvm", "rows.txt", "1 3:1\n0 :1:1\n", "is not index:value", None, 2),
    ("libsvm", "rows.txt", "1 3:1\n0 1:2:3:1\n", "is not index:value", None, 2),
    ("libsvm", "rows.txt", "1 3:1\n0 4:1 5:\n", "no finite number", None, 2),
    ("libsvm", "rows.txt", "1 3:1\n0 4:1 5:nan\n", "no finite number", None, 2),
    ("libsvm", "rows.txt", "1 3:1\n0 4:1 5:inf\n", "no finite number", None, 2),
    ("libsvm", "rows.txt", "1 3:1\n0 4:1 5:one\n", "no finite number", None, 2),
    ("libsvm", "rows.txt", "1 3:1\n0 4:1 5:0.5\n", "read other values as numbers, value_5", "features", 2),
    ("libsvm", "rows.txt", "1 3:1\n4:1\n", "begins without a label", "label", 2),
    ("libsvm", "rows.txt", "1 3:1\n0 \udcff:1\n", "is not utf-8 text", None, 2),
    ("libsvm", "rows.txt", "# nothing\n", "is empty", None, None),
]


@pytest.mark.parametrize(("form", "name", "text", "message", "column", "row"), BAD)
def test_bad_rows_are_named(
    tmp_path: Path, form: str, name: str, text: str, message: str, column: str | None, row: int | None
) -> None:
    (tmp_path / "users.dat").write_text("1::F::1::10::48067\n")
    (tmp_path / "movies.dat").write_text("1::One (1995)::Drama\n")
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n1,One (1995),Drama\n")
    path = tmp_path / name
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    columns = {
        "criteo": ["label", "C26"],
        "avazu": ["click", "weekday"],
        "movielens_1m": ["gender", "genres"],
        "movielens_25m": ["userId", "title"],
        "libsvm": ["label", "features"],
    }[form]
    with pytest.raises(DataError, match=message) as caught:
        column_names(path, format=form)
        list(read_frames(path, columns, format=form))
    assert (caught.value.file, caught.value.column, caught.value.row) == (str(path), column, row)


def test_numbers_of_libsvm_stand_once_in_a_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.txt"
    path.write_text("1 3:2\n0 3:2 4:1 3:5\n")
    with pytest.raises(DataError, match="stands twice") as caught:
        list(read_frames(path, ["value_3"], format="libsvm"))
    assert (caught.value.row, caught.value.column, caught.value.value) == (2, "value_3", "3:5")
    with pytest.raises(DataError, match="field_<n>"):
        list(read_frames(path, ["value_x"], format="libsvm"))


def test_a_byte_order_mark_is_no_part_of_a_label(tmp_path: Path) -> None:
    for form, text in (("libsvm", "1 3:1\n0 4:1\n"), ("criteo", f"{FIELDS}\n0{FIELDS[1:]}\n")):
        path = tmp_path / f"{form}.txt"
        path.write_text(text, encoding="utf-8-sig")
        assert pd.concat(read_frames(path, ["label"], format=form))["label"].tolist() == ["1", "0"]


def test_members_of_one_archive_are_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An archive of twenty days is not read twenty times over."""
    hashed: list[Path] = []
    hash_of = sources.checksum
    monkeypatch.setattr(sources, "checksum", lambda file: (hashed.append(file), hash_of(file))[1])
    archive = public.movielens_1m_zip(tmp_path)
    source = sources.FileSource(parse_config({"data": archive.data}).data)
    described = source.describe()
    assert len(described) == 3
    Path(archive.path).touch()
    assert source.matches(described)
    assert hashed == [Path(archive.path)] * 2


def test_small_files_that_do_not_fit_the_ratings(tmp_path: Path) -> None:
    example = public.movielens_1m(tmp_path)
    users = tmp_path / "users.dat"
    whole = users.read_bytes()
    users.write_bytes(whole + b"3::F::1::1::1\n")
    with pytest.raises(DataError, match="stands in row 3 already") as caught:
        read(example, ["gender"])
    assert (caught.value.file, caught.value.row, caught.value.value) == (str(users), 31, "3")
    users.write_bytes(b"")
    with pytest.raises(DataError, match="holds no row"):
        read(example, ["gender"])
    users.unlink()
    with pytest.raises(DataError, match=r"there is no users\.dat beside it"):
        read(example, ["gender"])
    assert len(read(example, ["user_id", "genres"])) == len(example.rows)  # what is not asked for is not needed


def test_ratings_are_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first rows come before the last one is read, which is bad."""
    monkeypatch.setattr(lines, "BLOCK", 1000)
    public.movielens_1m(tmp_path)
    path = tmp_path / "ratings.dat"
    path.write_bytes(path.read_bytes() + b"1::2\n")
    chunks = read_chunks(path, ["genres"], format="movielens_1m", chunk_rows=10)
    assert len(next(chunks)) == 10
    with pytest.raises(DataError, match="has 2 fields") as caught:
        list(chunks)
    assert caught.value.row == 401


def test_a_line_that_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "BLOCK", 1000)
    path = tmp_path / "rows.txt"
    path.write_bytes(b"1 3:1\n" + b"1" * 5000)
    with pytest.raises(DataError, match="longer than 1000 bytes") as caught:
        list(read_frames(path, ["label"], format="libsvm"))
    assert caught.value.row == 2


@pytest.mark.parametrize("change", ["movies.dat", "another member", "another format"])
def test_other_input_is_encoded_anew(tmp_path: Path, change: str) -> None:
    """Also where the ratings are as they were, or the archive is, or both."""
    folder = tmp_path / "ml"
    folder.mkdir()
    example = public.movielens_1m(folder)
    if change == "another member":
        archive = tmp_path / "both.zip"
        with zipfile.ZipFile(archive, "w") as file:
            for name, rows in (("a", example.rows[:200]), ("b", example.rows[200:])):
                file.writestr(f"{name}.csv", public.csv_bytes(rows))
        first, second = ({"path": f"{archive}!/{name}.csv", "label": LABEL, **USERS} for name in "ab")
    elif change == "another format":
        (folder / "ratings.csv").write_bytes(public.csv_bytes(example.rows))
        (folder / "movies.csv").write_bytes(b"movieId,title,genres\n")
        first = {"path": str(folder / "ratings.csv"), "label": LABEL, **USERS}
        second = {**first, "format": "movielens_25m", "multi_valued": {}}
    else:
        first = second = {**example.data, "label": LABEL}
    out = tmp_path / "out"
    before = prepare(parse_config({"data": first}).data, out)
    stamp = (out / "manifest.json").stat().st_mtime_ns
    again = prepare(parse_config({"data": first}).data, out)
    assert (again.fingerprint, (out / "manifest.json").stat().st_mtime_ns) == (before.fingerprint, stamp)
    if change == "movies.dat":
        movies = folder / "movies.dat"
        movies.write_bytes(movies.read_bytes().replace(b"Action", b"Actioz"))
    after = prepare(parse_config({"data": second}).data, out)
    assert (out / "manifest.json").stat().st_mtime_ns != stamp
    assert (after.fingerprint == before.fingerprint) == (change == "another format")


LABEL = {"column": "rating", "positive": [4, 5], "negative": [1, 2]}
USERS = {"categorical": ["user_id", "movie_id"]}


def test_a_folder_without_the_formats_files_says_so(tmp_path: Path) -> None:
    (tmp_path / "clicks.csv").write_text("a\n1\n")
    with pytest.raises(DataError, match="holds no data file"):
        find_files(tmp_path, "movielens_1m")
    shutil.make_archive(str(tmp_path / "none"), "zip", tmp_path, "clicks.csv")
    with pytest.raises(DataError, match="holds no data file"):
        find_files(tmp_path / "none.zip", "movielens_25m")
