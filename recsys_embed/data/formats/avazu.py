"""Avazu's click logs: CSV with a header, whose ``hour`` (YYMMDDHH) becomes an hour of the day and a day of the week."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_embed.data.chunks import require
from recsys_embed.data.delimited import Dialect, header, read_delimited
from recsys_embed.data.formats.base import Format
from recsys_embed.data.formats.tables import named_like_data, unpacked
from recsys_embed.data.parts import count_quoted, cut_lines
from recsys_embed.data.streams import find
from recsys_embed.errors import DataError

DERIVED = ("hour_of_day", "weekday")
_PARTS = ("site_id", "site_domain", "site_category", "app_id", "app_domain", "app_category")
_DEVICE = ("device_id", "device_ip", "device_model", "device_type", "device_conn_type")
_ANONYMOUS = tuple(f"C{i}" for i in range(14, 22))
_WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_PUBLISHED = ("train", "train.csv")
_DIALECT = Dialect(",")


def find_rows(path: str | Path) -> list[Path]:
    """``train.csv`` or ``train.gz`` of a folder or an archive, whatever else is there; else all CSV files."""
    found = find(path, lambda name: unpacked(name) in _PUBLISHED or named_like_data(name))
    return [file for file in found if unpacked(file.name) in _PUBLISHED] or found


def names(file: Path) -> list[str]:
    """The columns of the header, and those derived from ``hour``."""
    return [*header(file, _DIALECT), *DERIVED]


def read(
    file: Path,
    columns: Sequence[str],
    part: tuple[int, int] | None = None,
    first_row: int = 1,
    refused: list[DataError] | None = None,
) -> Iterator[pa.RecordBatch]:
    """Some columns as text: ``hour_of_day`` is ``0`` … ``23``, ``weekday`` is ``Mon`` … ``Sun``."""
    require(columns, names(file), str(file))
    derived = [name for name in columns if name in DERIVED]
    stored = list(dict.fromkeys(["hour" if name in DERIVED else name for name in columns]))
    row = first_row
    for batch in read_delimited(file, stored, _DIALECT, None, part, first_row, refused):
        parts = {}
        if derived:
            parts = dict(zip(DERIVED, split_hours(batch.column("hour"), file, row, refused), strict=True))
        arrays = [parts[name] if name in parts else batch.column(name) for name in columns]
        yield pa.RecordBatch.from_arrays(arrays, names=list(columns))
        row += batch.num_rows


def split_hours(
    cells: pa.Array, file: Path, row: int, refused: list[DataError] | None = None
) -> tuple[pa.Array, pa.Array]:
    """Hours of the day and days of the week of cells YYMMDDHH, the first of which stands in row ``row``.

    Raises:
        DataError: a cell that is no such hour, and there is no ``refused`` to put it into.
    """
    encoded = cells.dictionary_encode()
    hours, days = list[str | None](), list[str | None]()
    for code, text in enumerate(encoded.dictionary.to_pylist()):
        try:
            if not (text.isascii() and text.isdigit() and len(text) == 8):
                raise ValueError
            when = datetime.datetime(2000 + int(text[:2]), int(text[2:4]), int(text[4:6]), int(text[6:]))
        except ValueError:
            wrong = np.flatnonzero(pc.equal(encoded.indices, code).fill_null(False).to_numpy(zero_copy_only=False))
            message = "is not an hour as YYMMDDHH"
            errors = [
                DataError(message, file=str(file), column="hour", row=row + i, value=text) for i in wrong.tolist()
            ]
            if refused is None:
                raise errors[0] from None
            refused += errors
            hours.append(None)
            days.append(None)
            continue
        hours.append(str(when.hour))
        days.append(_WEEKDAYS[when.weekday()])
    return (
        pa.array(hours, pa.string()).take(encoded.indices),
        pa.array(days, pa.string()).take(encoded.indices),
    )


AVAZU = Format(
    files="`train.csv` or `train.gz`, `test` to predict; `hour` is split into `hour_of_day` and `weekday`",
    roles={
        "label": "click",
        "categorical": ("C1", "banner_pos", *_PARTS, *_DEVICE, *_ANONYMOUS, *DERIVED),
    },
    find=find_rows,
    names=names,
    read=read,
    cut=lambda number, file: cut_lines(number, file, count_quoted, headed=True),
    read_skipping=read,
)
