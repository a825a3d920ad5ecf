"""CSV and TSV files, plain, compressed or in an archive, streamed as columns of text."""

from __future__ import annotations

import contextlib
import csv
import io
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pacsv

from recsys_embed.data.chunks import require
from recsys_embed.data.spans import Span
from recsys_embed.data.streams import open_stream
from recsys_embed.errors import DataError

BLOCK = 4 << 20  # bytes read at once; a row must fit
_SEPARATORS = (",", "\t", ";", "|")


@dataclass(frozen=True)
class Dialect:
    """How rows are cut into cells. ``quotes``: whether cells may be quoted, and then hold separators and newlines."""

    separator: str = ","
    quotes: bool = True


def separator_of(path: Path) -> str:
    """A tab for ``.tsv`` and ``.tab`` (compressed or not), a comma otherwise."""
    return "\t" if {".tsv", ".tab"} & {suffix.lower() for suffix in path.suffixes[-2:]} else ","


def header(path: Path, dialect: Dialect) -> list[str]:
    """The column names.

    Raises:
        DataError: an empty file, a header that is not UTF-8, a name that stands twice.
    """
    names = first_cells(path, dialect)
    for name in names:
        if names.count(name) > 1:
            raise DataError("the header names this column twice", file=str(path), column=name)
    return names


def first_cells(path: Path, dialect: Dialect) -> list[str]:
    """The cells of the first line that is not empty.

    Raises:
        DataError: there is none; it is not UTF-8.
    """
    try:
        with open_stream(path) as file:
            line = b"\n"
            while line and not line.strip(b"\r\n"):
                line = file.readline(BLOCK)  # a file of one endless line does not come into memory
            if len(line) == BLOCK:
                raise DataError(f"the header is longer than {BLOCK} bytes", file=str(path))
            text = line.decode("utf-8-sig")
        cells = next(_cells([text.rstrip("\r\n")], dialect), None)
    except UnicodeDecodeError:
        raise DataError("the header is not UTF-8 text", file=str(path)) from None
    except csv.Error as error:
        raise DataError(f"cannot be read: {error}", file=str(path)) from error
    if not cells:
        raise DataError("is empty", file=str(path))
    return cells


def read_delimited(
    path: Path,
    columns: Sequence[str],
    dialect: Dialect,
    names: Sequence[str] | None = None,
    part: tuple[int, int] | None = None,
) -> Iterator[pa.RecordBatch]:
    """Stream some columns as text, null where a cell is empty; of the rows in some bytes where ``part`` is given.

    ``names`` are those of all columns, where there is no header.

    Raises:
        DataError: see :func:`header`; a missing column; a row with too few or too many fields, or not UTF-8.
    """
    found = list(names) if names is not None else header(path, dialect)
    if len(found) == 1 and found != list(columns):
        separator = dialect.separator
        other = next((one for one in _SEPARATORS if one != separator and one in found[0]), None)
        if other is not None:
            raise DataError(
                f"has a single column when cut at {separator!r}, and its header contains {other!r}: "
                f"set separator = {other!r}",
                file=str(path),
                value=found[0],
            )
    require(columns, found, str(path))
    # An unclosed quote swallows the rest of the file into the last column: hence that one is always read.
    wanted = list(dict.fromkeys([*columns, found[-1]]))
    last = None
    try:
        with (
            open_stream(path) if part is None else Span(path, *part, headed=names is None) as file,
            pacsv.open_csv(
                pa.PythonFile(file, "r"),
                read_options=pacsv.ReadOptions(use_threads=False, block_size=BLOCK, column_names=names and found),
                parse_options=pacsv.ParseOptions(
                    delimiter=dialect.separator,
                    quote_char='"' if dialect.quotes else False,
                    newlines_in_values=dialect.quotes,
                ),
                convert_options=pacsv.ConvertOptions(
                    include_columns=wanted,
                    column_types=dict.fromkeys(wanted, pa.string()),
                    strings_can_be_null=True,
                    null_values=[""],
                ),
            ) as reader,
        ):
            for batch in reader:
                if batch.num_rows:
                    last = batch.column(len(wanted) - 1 if wanted[-1] == found[-1] else wanted.index(found[-1]))[-1]
                    yield batch.select(list(columns))
    except pa.ArrowInvalid as error:
        bad = None
        with contextlib.suppress(DataError, csv.Error):  # damaged further on
            bad = _locate(path, dialect, found, wanted, headed=names is None)
        raise bad or DataError(str(error), file=str(path)) from error
    if dialect.quotes and last is not None and "\n" in (last.as_py() or "") and not _ends_quoted(path):
        raise DataError("a quote is opened and never closed", file=str(path), column=found[-1])


def _ends_quoted(path: Path) -> bool:
    tail = b""
    with open_stream(path) as file:
        while block := file.read(BLOCK):
            tail = (tail + block)[-16:]
    return tail.rstrip(b"\r\n").endswith(b'"')


def _cells(lines: Iterable[str], dialect: Dialect) -> Iterator[list[str]]:
    if dialect.quotes:
        return csv.reader(lines, delimiter=dialect.separator)
    return csv.reader(lines, delimiter=dialect.separator, quoting=csv.QUOTE_NONE)


def _locate(
    path: Path, dialect: Dialect, names: Sequence[str], wanted: Sequence[str], *, headed: bool
) -> DataError | None:
    """Find the row that Arrow stumbled over: slow, and only on the way to an error."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    row = 0
    with open_stream(path) as file:
        rows = _cells(io.TextIOWrapper(file, "latin-1", newline=""), dialect)
        if headed:
            next(rows)
        for cells in rows:
            if not cells:
                continue
            row += 1
            if len(cells) != len(names):
                return DataError(
                    f"has {len(cells)} fields instead of {len(names)}",
                    file=str(path),
                    row=row,
                    value=dialect.separator.join(cells)[:80].encode("latin-1").decode("utf-8", "replace"),
                )
            for name, cell in zip(names, cells, strict=True):
                raw = cell.encode("latin-1")
                try:
                    raw.decode("utf-8")
                except UnicodeDecodeError:
                    if name in wanted:
                        return DataError("is not UTF-8 text", file=str(path), column=name, row=row, value=raw[:80])
    return None
