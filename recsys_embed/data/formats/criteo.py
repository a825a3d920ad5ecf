"""Criteo's click logs: the Kaggle competition's ``train.txt`` and ``test.txt``, and the days of the 1 TB set.

40 columns cut by tabs, without a header: the label, 13 counts I1 … I13, 26 hashed categories C1 … C26. A cell may be
empty. ``test.txt`` has no label, and 39 columns.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa

from recsys_embed.data.delimited import Dialect, first_cells, read_delimited
from recsys_embed.data.formats.base import Format
from recsys_embed.data.formats.tables import unpacked
from recsys_embed.data.parts import count_plain, cut_lines
from recsys_embed.data.streams import find
from recsys_embed.errors import DataError

NUMERIC = tuple(f"I{i}" for i in range(1, 14))
CATEGORICAL = tuple(f"C{i}" for i in range(1, 27))
NAMES = ("label", *NUMERIC, *CATEGORICAL)
_DIALECT = Dialect("\t", quotes=False)
_DAY = re.compile(r"day_(\d+)(\.(txt|tsv|csv))?")


def names(file: Path) -> list[str]:
    """The label, where there is one, and the others."""
    there = len(first_cells(file, _DIALECT))
    if there not in (len(NAMES), len(NAMES) - 1):
        raise DataError(
            f"has {there} columns when cut at tabs: Criteo's have {len(NAMES)}, or {len(NAMES) - 1} without labels",
            file=str(file),
            row=1,
        )
    return list(NAMES[-there:])


def read(
    file: Path,
    columns: Sequence[str],
    part: tuple[int, int] | None = None,
    first_row: int = 1,
    refused: list[DataError] | None = None,
) -> Iterator[pa.RecordBatch]:
    """Some columns as text."""
    there = names(file)
    if "label" in columns and "label" not in there:
        raise DataError("has no labels, as Criteo's test.txt", file=str(file), column="label")
    return read_delimited(file, columns, _DIALECT, there, part, first_row, refused)


def find_rows(path: str | Path) -> list[Path]:
    """``train.txt`` of a folder or an archive, else its days, in the order of their numbers."""
    found = find(path, lambda name: unpacked(name) == "train.txt" or _day(name) is not None)
    train = [file for file in found if unpacked(file.name) == "train.txt"]
    return train or sorted(found, key=lambda file: (_day(file.name) or 0, file))


def _day(name: str) -> int | None:
    match = _DAY.fullmatch(unpacked(name))
    return int(match[1]) if match else None


CRITEO = Format(
    files="`train.txt` of the Kaggle competition, `day_0` … of the 1 TB set; `test.txt` to predict",
    roles={"label": "label", "categorical": CATEGORICAL, "numeric": dict.fromkeys(NUMERIC, "log")},
    find=find_rows,
    names=names,
    read=read,
    cut=lambda number, file: cut_lines(number, file, count_plain),
    read_skipping=read,
)
