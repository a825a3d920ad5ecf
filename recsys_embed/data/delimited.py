"""CSV and TSV files, plain, compressed or in an archive, streamed as columns of text."""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import itertools
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.csv as pacsv

from recsys_embed.data.chunks import require
from recsys_embed.data.guarded import END, Guarded
from recsys_embed.data.ragged import Ragged
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
        DataError: there is none; it is not UTF-8; a quote in it is never closed.
    """
    with open_stream(path) as file:
        begin = file.read(BLOCK)  # a file of one endless line does not come into memory
    lines = _Lines(io.BytesIO(begin))
    try:
        cells = next(filter(None, _cells(itertools.chain(lines, [END]), dialect)))
        if cells == [END]:
            raise DataError("is empty", file=str(path))
        if len(begin) == BLOCK and not lines.last.endswith(("\n", "\r")):
            raise DataError(f"the header is longer than {BLOCK} bytes", file=str(path))
        if cells[-1].endswith(END):
            raise DataError("a quote in the header is never closed", file=str(path))
        return [cell.encode("latin-1").decode("utf-8") for cell in cells]
    except UnicodeDecodeError:
        raise DataError("the header is not UTF-8 text", file=str(path)) from None
    except csv.Error as error:
        raise DataError(f"cannot be read: {error}", file=str(path)) from error


def read_delimited(
    path: Path,
    columns: Sequence[str],
    dialect: Dialect,
    names: Sequence[str] | None = None,
    part: tuple[int, int] | None = None,
    first_row: int = 1,
    refused: list[DataError] | None = None,
) -> Iterator[pa.RecordBatch]:
    """Stream some columns as text, null where a cell is empty; of the rows in some bytes where ``part`` is given, of
    which the first is ``first_row``. ``names`` are those of all columns, where there is no header.

    Rows with too few or too many fields, or that are not UTF-8, are put into ``refused`` where it is given, before
    the batch that has them, in which their cells mean nothing.

    Raises:
        DataError: see :func:`header`; a missing column; a row that cannot be read; a quote that is never closed.
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
    headed = names is None
    ragged = None if refused is None else Ragged(path, first_row, refused, headed=headed)
    held, row = None, first_row
    try:
        with (
            open_stream(path) if part is None else Span(path, *part, headed=headed) as raw,
            Guarded(raw, len(found), dialect.separator, mark=refused is not None) as file,
            pacsv.open_csv(
                pa.PythonFile(file, "r"),
                read_options=pacsv.ReadOptions(use_threads=False, block_size=BLOCK, column_names=names and found),
                parse_options=pacsv.ParseOptions(
                    delimiter=dialect.separator,
                    quote_char='"' if dialect.quotes else False,
                    newlines_in_values=dialect.quotes,
                    invalid_row_handler=ragged,
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
                if ragged is not None:
                    batch = ragged.fill(batch, columns if file.marked else [])
                if batch.num_rows:
                    if held is not None:
                        yield held.select(list(columns))
                        row += held.num_rows
                    held = batch  # the last row of all is not the file's
    except pa.ArrowInvalid as error:
        bad = None
        with contextlib.suppress(DataError, csv.Error):  # damaged further on
            bad = _locate(path, dialect, found, wanted, headed=headed, too_long="straddl" in str(error))
        raise bad or DataError(str(error), file=str(path)) from error
    if held is None or held.column(held.schema.get_field_index(found[-1]))[-1].as_py() != END:
        row += held.num_rows - 1 if held is not None else 0
        row = (ragged and ragged.last) or row
        raise DataError("a quote is opened and never closed", file=str(path), column=found[-1], row=row)
    if held.num_rows > 1:
        yield held.select(list(columns)).slice(0, held.num_rows - 1)


class _Lines:
    """The lines of a file as Latin-1 text, without a byte order mark; ``last`` is the one that was given last."""

    def __init__(self, file: IO[bytes]) -> None:
        self._lines = io.TextIOWrapper(file, "latin-1", newline="")
        self.last = ""

    def __iter__(self) -> Iterator[str]:
        bom = codecs.BOM_UTF8.decode("latin-1")
        for line in self._lines:
            self.last = line.removeprefix(bom)
            bom = ""
            yield self.last


def _cells(lines: Iterable[str], dialect: Dialect) -> Iterator[list[str]]:
    if dialect.quotes:
        return csv.reader(lines, delimiter=dialect.separator)
    return csv.reader(lines, delimiter=dialect.separator, quoting=csv.QUOTE_NONE)


def _locate(
    path: Path, dialect: Dialect, names: Sequence[str], wanted: Sequence[str], *, headed: bool, too_long: bool
) -> DataError | None:
    """Find the row that Arrow stumbled over: slow, and only on the way to an error."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    row = 0
    with open_stream(path) as file:
        lines = _Lines(file)  # kept, so that the file is closed before it
        for cells in itertools.islice(filter(None, _cells(lines, dialect)), int(headed), None):
            row += 1
            if too_long and sum(map(len, cells)) > BLOCK // 2:
                return DataError(f"is longer than the {BLOCK} bytes that are read at once", file=str(path), row=row)
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
