"""Bad data, case by case: what stands where, and what has to be said of it.

A *row* case has rows that cannot be used: an error names the first, and with ``on_bad_rows = "skip"`` the others are
encoded as if these had never been there. A *whole* case is wrong as a whole, an error either way. An *exact* case looks
wrong and is not: every value is found again as it stands.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

Source = Path | pd.DataFrame
Write = Callable[[Path], Source]

ROWS = 60


@dataclass(frozen=True)
class Bad:
    """A bad row: its file's name (None: a data frame), column, number, value, and the reason's first words.

    ``shown`` is the value as a count of skipped rows has it, where that differs.
    """

    row: int
    column: str | None
    value: object
    reason: str
    file: str | None = "rows.csv"
    shown: str | None = None


@dataclass(frozen=True)
class Case:
    """``write`` gives the input; ``schema`` what differs from :func:`schema`.

    ``bad`` are the rows of a row case, the one that an error names first, and ``good`` gives an input without them.
    ``whole`` is what an error says of the whole. ``cells`` are a column and its values, row by row, of an exact case.
    """

    name: str
    write: Write
    schema: dict[str, Any] = field(default_factory=dict)
    bad: tuple[Bad, ...] = ()
    good: Write | None = None
    whole: Bad | None = None
    cells: tuple[str, list[object]] | None = None

    @property
    def kind(self) -> str:
        """``row``, ``whole`` or ``exact``."""
        return "row" if self.bad else "whole" if self.whole else "exact"


def documented() -> str:
    """The cases as a table in Markdown: what is wrong, what is said by default, and what with ``skip``."""
    lines = ["| case | by default | with `skip` |", "|---|---|---|"]
    for case in CASES:
        told = case.bad[0] if case.bad else case.whole
        if told is None:
            lines.append(f"| {case.name} | read as it stands | read as it stands |")
            continue
        named = ["file"] * (told.file is not None) + ["column"] * (told.column is not None)
        place = ", ".join(named + ["row"] * (told.row is not None))  # type: ignore[redundant-expr]
        skip = "left out and counted" if case.bad else "the same error"
        lines.append(f"| {case.name} | {place}: {told.reason} | {skip} |")
    return "\n".join(lines)


def table() -> pd.DataFrame:
    """Sixty good rows of text; every split has both labels, and every value is in a training row."""
    i = np.arange(ROWS)
    columns = {
        "clicked": i % 2,
        "user": [f"u{n % 5}" for n in i],
        "tags": [("a|b", "", "c")[n % 3] for n in i],
        "price": [f"{n % 7}.5" for n in i],
        "part": [("train", "train", "train", "train", "val", "test")[n // 2 % 6] for n in i],
        "day": i // 2,
    }
    return pd.DataFrame(columns).astype(str).astype(object)


def schema(**changes: Any) -> dict[str, Any]:
    """That of :func:`table`."""
    return {
        "label": "clicked",
        "categorical": ["user"],
        "multi_valued": {"tags": "|"},
        "numeric": ["price"],
        "split": {"column": "part"},
        **changes,
    }


# --- how inputs are written --------------------------------------------------------------------------------------


def csv(frame: pd.DataFrame, name: str = "rows.csv", **options: Any) -> Write:
    """A CSV file."""

    def write(folder: Path) -> Source:
        (folder / name).write_text(frame.to_csv(index=False, **options), encoding="utf-8", newline="")
        return folder / name

    return write


def raw(data: bytes | Callable[[], bytes], name: str = "rows.csv") -> Write:
    """A file of these bytes."""

    def write(folder: Path) -> Source:
        (folder / name).write_bytes(data if isinstance(data, bytes) else data())
        return folder / name

    return write


def parquet(columns: dict[str, Any], name: str = "rows.parquet") -> Write:
    """A Parquet file of the table, with some columns in place of its own."""

    def write(folder: Path) -> Source:
        pq.write_table(_typed(columns), folder / name, write_page_checksum=True)
        return folder / name

    return write


def frame(columns: dict[str, Any]) -> Write:
    """A data frame, with some columns in place of the table's own."""
    return lambda folder: table().assign(**columns)


def many(*writes: Write) -> Write:
    """A folder of files."""

    def write(folder: Path) -> Source:
        for one in writes:
            one(folder)
        return folder

    return write


def without(write: Write, rows: Sequence[int]) -> Write:
    """What a writer of a data frame or a Parquet file writes, without some rows."""

    def again(folder: Path) -> Source:
        source = write(folder)
        if isinstance(source, pd.DataFrame):
            return source.drop(index=[row - 1 for row in rows])
        whole = pq.read_table(source)
        pq.write_table(whole.take([i for i in range(len(whole)) if i + 1 not in rows]), source)
        return source

    return again


def _typed(columns: dict[str, Any]) -> pa.Table:
    found = {name: pa.array(table()[name]) for name in table()}
    return pa.table({**found, **{name: pa.array(one) for name, one in columns.items()}})


# --- how cases are written ---------------------------------------------------------------------------------------


def cell(name: str, column: str, value: str, reason: str, row: int = 10, **changes: Any) -> Case:
    """One cell of a CSV file."""
    edited = table()
    edited.loc[row - 1, column] = value
    good = csv(table().drop(index=row - 1))
    return Case(name, csv(edited), changes, (Bad(row, column, value, reason),), good)


def line(name: str, data: bytes, bad: Bad) -> Case:
    """One line of a CSV file."""
    lines = table().to_csv(index=False).encode().split(b"\n")
    lines[bad.row] = data
    return Case(name, raw(b"\n".join(lines)), {}, (bad,), csv(table().drop(index=bad.row - 1)))


def typed(name: str, column: str, values: Any, bad: Bad, **changes: Any) -> Case:
    """One cell of a typed column of a Parquet file, or of a data frame where the bad row has no file."""
    write = frame({column: values}) if bad.file is None else parquet({column: values})
    return Case(name, write, changes, (bad,), without(write, [bad.row]))


def whole(
    name: str, write: Write, reason: str, file: str | None = "rows.csv", column: str | None = None, **told: Any
) -> Case:
    """Wrong as a whole; the place in it that is named as ``row`` and ``value``."""
    changes = told.pop("schema", {})
    bad = Bad(told.get("row"), column, told.get("value"), reason, file)  # type: ignore[arg-type]
    return Case(name, write, changes, whole=bad)


def exact(name: str, write: Write, column: str, cells: Sequence[object], **changes: Any) -> Case:
    """No error: these are the values."""
    return Case(name, write, changes, cells=(column, list(cells)))


def with_users(users: Sequence[object]) -> pd.DataFrame:
    """The table with these users, over and over."""
    return table().assign(user=[users[i % len(users)] for i in range(ROWS)])


def _at(row: int, value: object, others: Sequence[Any]) -> list[Any]:
    return [value if i == row - 1 else others[i % len(others)] for i in range(ROWS)]


def _invalid(row: int, *, text: bool) -> pa.Array:
    """Users of whom one is no UTF-8, as bytes or as what Parquet says is text."""
    cells = pa.array([b"u\xff" if i == row - 1 else b"u%d" % (i % 5) for i in range(ROWS)], pa.binary())
    return pa.Array.from_buffers(pa.string(), ROWS, cells.buffers()) if text else cells


def _weight(name: str, cell: str, value: float | None, reason: str) -> Case:
    weights = table().assign(day=_at(10, cell, ["1", "2"]))
    good = csv(weights.drop(index=9))
    return Case(name, csv(weights), {"weight": "day"}, (Bad(10, "day", value, reason),), good)


def _two_faults() -> Case:
    edited = table()
    edited.loc[[9, 19], "price"] = ["cheap", "dear"]
    edited.loc[[9, 29], "clicked"] = ["2", ""]
    bad = (
        Bad(10, "clicked", "2", "a label is 1 or 0"),
        Bad(20, "price", "dear", "text in a numeric column"),
        Bad(30, "clicked", "", "the label is missing"),
    )
    return Case("several faults, two in a row", csv(edited), {}, bad, csv(table().drop(index=[9, 19, 29])))


def _second_file() -> Case:
    edited = table()
    edited.loc[4, "price"] = "cheap"
    bad = (Bad(5, "price", "cheap", "text in a numeric column", "b.csv"),)
    good = many(csv(table(), "a.csv"), csv(table().drop(index=4), "b.csv"))
    return Case(
        "a type that changes in the second file", many(csv(table(), "a.csv"), csv(edited, "b.csv")), {}, bad, good
    )


def _bit_flipped() -> Write:
    def write(folder: Path) -> Source:
        path = folder / "rows.parquet"
        columns = {"user": [f"user number {i % 5}" for i in range(ROWS)]}
        pq.write_table(_typed(columns), path, compression="none", write_page_checksum=True)
        data = bytearray(path.read_bytes())
        data[data.index(b"user number 3")] ^= 1
        path.write_bytes(data)
        return path

    return write


def _twice() -> Write:
    def write(folder: Path) -> Source:
        found = _typed({})
        pq.write_table(found.append_column("user", found["user"]), folder / "rows.parquet")
        return folder / "rows.parquet"

    return write


def _halved(make: Callable[[], bytes]) -> Callable[[], bytes]:
    return lambda: make()[: len(make()) // 2]


def _parquet_bytes() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(_typed({}), sink)
    return sink.getvalue().to_pybytes()


def _text(**options: Any) -> bytes:
    return table().to_csv(index=False, **options).encode()


def _time(**time: Any) -> dict[str, Any]:
    return {"split": {"time": {"column": "day", **time}}}


_MIXED = [f"u{i}" for i in range(4)] + [7]
_TEXT, _DOUBLE, _FLOAT = "text in a numeric column", "a whole number of 2**53", "a whole number of 2**24"
_WORDS = ["NA", "null", "None", "nan", "N/A"]
_LONG = ["123456789012345678", "123456789012345679", None]
_HOSTILE = ["u,1", 'u"1"', "u\n1", "u\r\n1", ' "u" ', "é😀", "\\N"]
_BIG = "x" * 10**6

CASES: tuple[Case, ...] = (
    # rows that cannot be used
    cell("text in a numeric column", "price", "cheap", _TEXT),
    cell("NA in a numeric column", "price", "NA", _TEXT),
    cell("nan in a numeric column", "price", "nan", _TEXT),
    cell("a decimal comma", "price", "1,5", _TEXT),
    cell("an infinite number", "price", "inf", "infinite number"),
    cell("text in a bucketed column", "price", "cheap", _TEXT, numeric=[], buckets={"price": 3}),
    Case(
        "a number too large to standardise, in a test row",
        csv(table().assign(price=_at(11, "1e200", ["1", "2"]))),
        {},
        (Bad(11, "price", 1e200, "the numbers are too large"),),
        csv(table().assign(price=_at(11, "", ["1", "2"])).drop(index=10)),
    ),
    cell("a label that is neither 1 nor 0", "clicked", "2", "a label is 1 or 0"),
    cell("a missing label", "clicked", "", "the label is missing"),
    cell("a label that is nan", "clicked", "nan", "a label is 1 or 0"),
    cell("a label that is a fraction", "clicked", "0.5", "a label is 1 or 0"),
    cell("an unknown split", "part", "dev", "a split is train, val or test"),
    cell("a missing split", "part", "", "a split is train, val or test"),
    cell("a missing time", "day", "", "the time by which rows are split is missing", **_time(val=20, test=25)),
    cell("a time that is no number", "day", "Monday", _TEXT, **_time(val=20, test=25)),
    line("a row with a field too few", b"1,u4", Bad(10, None, "1,u4", "has 2 fields instead of 6")),
    line(
        "a row with a field too many",
        b"1,u4,a,1.5,train,4,9",
        Bad(10, None, "1,u4,a,1.5,train,4,9", "has 7 fields instead of 6"),
    ),
    line(
        "a cell that is not UTF-8",
        b"1,u\xff4,a,1.5,train,4",
        Bad(10, "user", b"u\xff4", "is not UTF-8 text", shown="u\ufffd4"),
    ),
    line("a torn row that is not UTF-8", b"1,\xff\xfe", Bad(10, None, "1,\ufffd\ufffd", "has 2 fields instead of 6")),
    typed(
        "Parquet text that is not UTF-8",
        "user",
        _invalid(10, text=True),
        Bad(10, "user", b"u\xff", "is not UTF-8 text", "rows.parquet", shown="b'u\\xff'"),
    ),
    typed(
        "Parquet bytes that are not UTF-8",
        "user",
        _invalid(10, text=False),
        Bad(10, "user", b"u\xff", "is not UTF-8 text", "rows.parquet", shown="b'u\\xff'"),
    ),
    typed(
        "ids of 2**53 and more as floats",
        "user",
        pa.array(_at(10, 2.0**60, [1.0, 2.0, None])),
        Bad(10, "user", 2.0**60, _DOUBLE, "rows.parquet"),
    ),
    typed(
        "ids of 2**24 and more as 32-bit floats",
        "user",
        pa.array(_at(10, 16777217.0, [1.0, 2.0, None]), pa.float32()),
        Bad(10, "user", 16777216.0, _FLOAT, "rows.parquet"),
    ),
    typed(
        "a label that is NaN, of floats",
        "clicked",
        pa.array(_at(10, float("nan"), [0.0, 1.0])),
        Bad(10, "clicked", "", "the label is missing", "rows.parquet"),
    ),
    typed(
        "infinity in a column of floats",
        "price",
        pa.array(_at(10, float("-inf"), [0.5, 1.5])),
        Bad(10, "price", float("-inf"), "infinite number", "rows.parquet"),
    ),
    typed(
        "a list in a cell of a data frame", "user", _at(10, ["u1"], _MIXED), Bad(10, "user", ["u1"], "one value", None)
    ),
    typed(
        "bytes that are not UTF-8 in a data frame",
        "user",
        _at(10, b"\xff", _MIXED),
        Bad(10, "user", b"\xff", "is not UTF-8 text", None),
    ),
    typed(
        "a float of 2**53 among text in a data frame",
        "user",
        _at(10, 2.0**53, _MIXED),
        Bad(10, "user", 2.0**53, _DOUBLE, None),
    ),
    _weight("a missing weight", "", None, "the weight is missing"),
    _weight("a negative weight", "-1", -1.0, "the weight is negative"),
    _two_faults(),
    _second_file(),
    # wrong as a whole
    whole(
        "a column that is not there",
        csv(table()),
        "there is no such column",
        column="usr",
        schema={"categorical": ["usr"]},
    ),
    whole(
        "a column that the second CSV file lacks",
        many(csv(table(), "a.csv"), csv(table().drop(columns="price"), "b.csv")),
        "there is no such column",
        "b.csv",
        "price",
    ),
    whole(
        "a column that the second Parquet file lacks",
        many(parquet({}, "a.parquet"), lambda f: table().drop(columns="price").to_parquet(f / "b.parquet") or f),
        "there is no such column",
        "b.parquet",
        "price",
    ),
    whole("a header with a column twice", raw(_text().replace(b"tags", b"user", 1)), "the header names", column="user"),
    whole("a Parquet file with a column twice", _twice(), "stands twice", "rows.parquet", "user"),
    whole(
        "a data frame with a column twice",
        lambda folder: pd.concat([table(), table()[["user"]]], axis=1),
        "the data frame has this column twice",
        None,
        "user",
    ),
    whole("a file without a byte", many(csv(table(), "a.csv"), raw(b"", "b.csv")), "is empty", "b.csv"),
    whole("no rows but a header", csv(table().iloc[:0]), "there are no rows", column="clicked"),
    whole("a data frame without rows", lambda folder: table().iloc[:0], "there are no rows", "frame", "clicked"),
    whole("a single row", csv(table().iloc[:1]), "split 'train' has negative labels only", column="clicked"),
    whole(
        "labels of one kind",
        csv(table().assign(clicked="1")),
        "split 'train' has positive labels only",
        column="clicked",
    ),
    whole(
        "another separator",
        csv(table(), sep=";"),
        "has a single column when cut at ','",
        value=";".join(table()),
    ),
    whole(
        "a quote that is never closed",
        raw(_text() + b'1,u4,a,1.5,train,"4'),
        "a quote is opened and never closed",
        column="day",
        row=ROWS + 1,
    ),
    whole("UTF-16", raw(_text().decode().encode("utf-16")), "the header is not UTF-8 text"),
    whole("no table at all", raw(b"\x89PNG\r\n\x1a\n\x00\x00"), "the header is not UTF-8 text"),
    whole(
        "gzip cut short", raw(_halved(lambda: gzip.compress(_text())), "rows.csv.gz"), "cannot be read", "rows.csv.gz"
    ),
    whole(
        "Parquet cut short", raw(_halved(_parquet_bytes), "rows.parquet"), "is not a whole Parquet file", "rows.parquet"
    ),
    whole("a bit of Parquet flipped", _bit_flipped(), "cannot be read", "rows.parquet"),
    whole(
        "lists in a column of Parquet",
        parquet({"user": [["u1"]] * ROWS}),
        "holds list<element: string> cells",
        "rows.parquet",
        "user",
    ),
    whole(
        "times of which some are numbers",
        csv(table().assign(day=_at(10, "2024-01-01", [str(n) for n in range(30)]))),
        "some times are numbers and some are text",
        column="day",
        row=10,
        value="2024-01-01",
        schema=_time(fractions=(0.8, 0.1, 0.1)),
    ),
    whole(
        "a number that float32 cannot hold beside those of training",
        csv(table().assign(price=_at(11, "1e40", ["1", "2"]))),
        "the number is too far from those of the training rows",
        column="price",
        row=11,
        value=1e40,
    ),
    # what looks wrong and is not
    exact("NA, null, None, nan, N/A as categories", csv(with_users(_WORDS)), "user", _WORDS),
    exact("1, 01, 1.0 as ids", csv(with_users(["1", "01", "1.0"])), "user", ["1", "01", "1.0"]),
    exact("a blank among long ids", csv(with_users([x or "" for x in _LONG])), "user", _LONG),
    exact(
        "null among long integers",
        parquet({"user": pa.array([int(x) if x else None for x in _LONG] * 20)}),
        "user",
        _LONG,
    ),
    exact(
        "integers beyond 64 bits",
        frame({"user": [10**30 + i % 3 for i in range(ROWS)]}),
        "user",
        [str(10**30 + i) for i in range(3)],
    ),
    exact(
        "integers to 2**64 - 1",
        frame({"user": [2**64 - 1 - i % 3 for i in range(ROWS)]}),
        "user",
        [str(2**64 - 1 - i) for i in range(3)],
    ),
    exact(
        "mixed types",
        frame({"user": [("a", 7, 2.5, True, None)[i % 5] for i in range(ROWS)]}),
        "user",
        ["a", "7", "2.5", "true", None],
    ),
    exact("fractions as ids", parquet({"user": [2.7, 2.0] * 30}), "user", ["2.7", "2"]),
    exact("NUL in text", csv(with_users(["a\0b", "a", "\0"])), "user", ["a\0b", "a", "\0"]),
    exact("separators, quotes and line breaks in quotes", csv(with_users(_HOSTILE)), "user", _HOSTILE),
    exact(
        "text of a million characters",
        csv(with_users([_BIG + "y", _BIG + "z"]).iloc[:12]),
        "user",
        [_BIG + "y", _BIG + "z"],
    ),
    exact("a byte order mark", raw(b"\xef\xbb\xbf" + _text()), "user", [f"u{i}" for i in range(5)]),
    exact("CRLF", raw(_text(lineterminator="\r\n")), "user", [f"u{i}" for i in range(5)]),
    exact("CR, as old Macs had it", raw(_text(lineterminator="\r")), "user", [f"u{i}" for i in range(5)]),
    exact("blank lines", raw(_text().replace(b"\n", b"\n\n")), "user", [f"u{i}" for i in range(5)]),
    exact(
        "integers of two widths, and text, by file",
        many(
            parquet({"user": pa.array([1, 2] * 30, pa.int32())}, "a.parquet"),
            parquet({"user": pa.array([1, 2**40] * 30)}, "b.parquet"),
            parquet({"user": ["1", "x"] * 30}, "c.parquet"),
        ),
        "user",
        [*["1", "2"] * 30, *["1", str(2**40)] * 30, *["1", "x"] * 30],
    ),
    exact(
        "another order of columns, and one more, by file",
        many(csv(table(), "a.csv"), csv(table()[table().columns[::-1]].assign(extra="1"), "b.csv")),
        "user",
        [f"u{i}" for i in range(5)],
    ),
    exact(
        "a file with a header alone beside others",
        many(csv(table(), "a.csv"), csv(table().iloc[:0], "b.csv")),
        "user",
        [f"u{i}" for i in range(5)],
    ),
    exact("rows twice", csv(pd.concat([table(), table()])), "user", [f"u{i}" for i in range(5)]),
    exact("a constant column", csv(table().assign(user="u", price="3")), "user", ["u"]),
)
