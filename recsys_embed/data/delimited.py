"""CSV and TSV files, plain or gzipped, streamed as columns of text."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import sys
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, cast

import pyarrow as pa
import pyarrow.csv as pacsv

from recsys_embed.data.chunks import require
from recsys_embed.data.spans import Span
from recsys_embed.errors import DataError

BLOCK = 4 << 20  # bytes read at once; a row must fit
_SEPARATORS = (",", "\t", ";", "|")


def separator_of(path: Path) -> str:
    """A tab for ``.tsv`` and ``.tab`` (gzipped or not), a comma otherwise."""
    return "\t" if {".tsv", ".tab"} & {suffix.lower() for suffix in path.suffixes[-2:]} else ","


def header(path: Path, separator: str) -> list[str]:
    """The column names.

    Raises:
        DataError: an empty file, a header that is not UTF-8, a name that stands twice.
    """
    try:
        with _open(path) as file:
            line = b"\n"
            while line and not line.strip(b"\r\n"):
                line = file.readline(BLOCK)  # a file of one endless line does not come into memory
            if len(line) == BLOCK:
                raise DataError(f"the header is longer than {BLOCK} bytes", file=str(path))
            text = line.decode("utf-8-sig")
        names = next(csv.reader([text.rstrip("\r\n")], delimiter=separator), None)
    except UnicodeDecodeError:
        raise DataError("the header is not UTF-8 text", file=str(path)) from None
    except (EOFError, OSError, zlib.error, csv.Error) as error:
        raise DataError(f"cannot be read: {error}", file=str(path)) from error
    if not names:
        raise DataError("is empty", file=str(path))
    for name in names:
        if names.count(name) > 1:
            raise DataError("the header names this column twice", file=str(path), column=name)
    return names


def read_delimited(
    path: Path, columns: Sequence[str], separator: str, part: tuple[int, int] | None = None
) -> Iterator[pa.RecordBatch]:
    """Stream some columns as text, null where a cell is empty; of the rows in some bytes where ``part`` is given.

    Raises:
        DataError: see :func:`header`; a missing column; a row with too few or too many fields, or not UTF-8.
    """
    names = header(path, separator)
    if len(names) == 1 and names != list(columns):
        other = next((one for one in _SEPARATORS if one != separator and one in names[0]), None)
        if other is not None:
            raise DataError(
                f"has a single column when cut at {separator!r}, and its header contains {other!r}: "
                f"set separator = {other!r}",
                file=str(path),
                value=names[0],
            )
    require(columns, names, str(path))
    # An unclosed quote swallows the rest of the file into the last column: hence that one is always read.
    wanted = list(dict.fromkeys([*columns, names[-1]]))
    last = None
    try:
        with (
            _open(path) if part is None else Span(path, *part) as file,
            pacsv.open_csv(
                pa.PythonFile(file, "r"),
                read_options=pacsv.ReadOptions(use_threads=False, block_size=BLOCK),
                parse_options=pacsv.ParseOptions(delimiter=separator, newlines_in_values=True),
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
                    last = batch.column(len(wanted) - 1 if wanted[-1] == names[-1] else wanted.index(names[-1]))[-1]
                    yield batch.select(list(columns))
    except pa.ArrowInvalid as error:
        found = None
        with contextlib.suppress(EOFError, OSError, zlib.error, csv.Error):  # damaged further on
            found = _locate(path, separator, names, wanted)
        raise found or DataError(str(error), file=str(path)) from error
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(f"cannot be read to its end: {error}", file=str(path)) from error
    if last is not None and "\n" in (last.as_py() or "") and not _ends_quoted(path):
        raise DataError("a quote is opened and never closed", file=str(path), column=names[-1])


def _open(path: Path) -> IO[bytes]:
    with open(path, "rb") as file:
        zipped = file.read(2) == b"\x1f\x8b"
    return cast(IO[bytes], gzip.open(path, "rb") if zipped else open(path, "rb"))


def _ends_quoted(path: Path) -> bool:
    tail = b""
    with _open(path) as file:
        while block := file.read(BLOCK):
            tail = (tail + block)[-16:]
    return tail.rstrip(b"\r\n").endswith(b'"')


def _locate(path: Path, separator: str, names: Sequence[str], wanted: Sequence[str]) -> DataError | None:
    """Find the row that Arrow stumbled over: slow, and only on the way to an error."""
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    row = 0
    with _open(path) as file:
        rows = csv.reader(io.TextIOWrapper(file, "latin-1", newline=""), delimiter=separator)
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
                    value=separator.join(cells)[:80].encode("latin-1").decode("utf-8", "replace"),
                )
            for name, cell in zip(names, cells, strict=True):
                raw = cell.encode("latin-1")
                try:
                    raw.decode("utf-8")
                except UnicodeDecodeError:
                    if name in wanted:
                        return DataError("is not UTF-8 text", file=str(path), column=name, row=row, value=raw[:80])
    return None
