"""The lines of a text file, streamed as Arrow strings."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from recsys_embed.data.spans import Span
from recsys_embed.data.streams import open_stream
from recsys_embed.errors import DataError

BLOCK = 4 << 20  # bytes read at once; a line must fit


def read_lines(
    path: Path, encoding: str = "utf-8", part: tuple[int, int] | None = None, first_row: int = 1
) -> Iterator[tuple[int, pa.Array]]:
    """Blocks of lines that are not empty, each with the number of its first line among these, from ``first_row``.

    ``part``: only the lines in these bytes.

    Raises:
        DataError: what cannot be read; a line that is too long, or is not text in the encoding.
    """
    row = first_row
    with open_stream(path) if part is None else Span(path, *part, headed=False) as stream:
        rest = stream.read(3)
        if encoding == "utf-8" and (part is None or part[0] == 0):
            rest = rest.removeprefix(codecs.BOM_UTF8)
        while block := stream.read(BLOCK):
            whole, newline, tail = block.rpartition(b"\n")
            if not newline and len(rest) + len(tail) > BLOCK:
                raise DataError(f"the line is longer than {BLOCK} bytes", file=str(path), row=row)
            if newline:
                lines = _lines(rest + whole, encoding, path, row)
                yield row, lines
                row, rest = row + len(lines), tail
            else:
                rest += tail
    last = _lines(rest, encoding, path, row)
    if len(last):
        yield row, last


def _lines(block: bytes, encoding: str, path: Path, row: int) -> pa.Array:
    try:
        text = block.decode(encoding)
    except UnicodeDecodeError as error:
        before = block[: error.start].rpartition(b"\n")[0].decode(encoding)
        bad = block[error.start : error.start + 80].split(b"\n")[0]
        raise DataError(f"is not {encoding} text", file=str(path), row=row + len(_cut(before)), value=bad) from None
    return _cut(text)


def _cut(text: str) -> pa.Array:
    lines = pc.utf8_rtrim(pc.split_pattern(pa.array([text]), "\n").flatten(), "\r")
    return lines.filter(pc.not_equal(lines, ""))
