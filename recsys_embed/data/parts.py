"""Parts of a file that can be read by themselves, each by a process of its own.

A Parquet file is cut between row groups, and a CSV file between lines, where no line break can stand inside a cell:
where there is no quote in it. Any other file (compressed, or with quotes) is one part.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from recsys_embed.data.readers import is_parquet

PART_BYTES = 64 << 20
_BLOCK = 1 << 20
_CODECS = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd"}
_PACKED = (*_CODECS, b"PK\x03\x04")  # the last is zip


@dataclass(frozen=True)
class Part:
    """Rows ``first_row``, ``first_row + 1``, … (from 1) of a file, ``rows`` of them where that is known; ``first`` and
    ``last`` are its bytes, or, of Parquet, its row groups; None is the whole file. ``size`` are its bytes, about.
    """

    file: int
    first_row: int = 1
    rows: int | None = None
    first: int | None = None
    last: int | None = None
    size: int = 0


def cut(number: int, path: Path) -> list[Part]:
    """The parts of a file, in its order; ``number`` is the file's."""
    return _row_groups(number, path) if is_parquet(path) else _lines(number, path)


def density(path: Path) -> float:
    """Rows a byte of a text file, compressed or not, by its beginning; a line break inside a cell counts too."""
    with open(path, "rb") as file:
        begin = file.read(4)
        file.seek(0)
        codec = next((name for mark, name in _CODECS.items() if begin.startswith(mark)), None)
        stream = file if codec is None else pa.CompressedInputStream(pa.PythonFile(file), codec)  # closes the file
        text = stream.read(4 << 20)
        return float(text.count(b"\n") / max(file.tell(), 1))


def _row_groups(number: int, path: Path) -> list[Part]:
    parts: list[Part] = []
    first, row, held, size = 0, 1, 0, 0
    with pq.ParquetFile(path) as parquet:
        meta = parquet.metadata
        for group in range(meta.num_row_groups):
            held += meta.row_group(group).num_rows
            size += meta.row_group(group).total_byte_size
            if size >= PART_BYTES or group == meta.num_row_groups - 1:
                parts.append(Part(number, row, held, first, group + 1, size))
                first, row, held, size = group + 1, row + held, 0, 0
    return parts or [Part(number)]


def _lines(number: int, path: Path) -> list[Part]:
    """Ranges of whole lines, the header left out. Blank lines, which are no rows, and old line ends are not counted
    here: a file that has them is one part."""
    size = path.stat().st_size
    whole = [Part(number, size=size)]
    if size <= PART_BYTES:
        return whole
    parts: list[Part] = []
    with open(path, "rb") as file:
        if file.read(4).startswith(_PACKED):
            return whole
        file.seek(0)
        header = file.readline(_BLOCK)
        if b'"' in header or not header.strip() or not header.endswith(b"\n"):
            return whole
        begin = at = len(header)
        row, rows, before = 1, 0, b"\n"
        while block := file.read(_BLOCK):
            if b'"' in block or _odd(before + block):
                return whole
            before = block[-2:]
            if at + len(block) - begin >= PART_BYTES and (end := block.rfind(b"\n") + 1):
                rows += block.count(b"\n", 0, end)
                parts.append(Part(number, row, rows, begin, at + end, at + end - begin))
                begin, row, rows = at + end, row + rows, block.count(b"\n", end)
            else:
                rows += block.count(b"\n")
            at += len(block)
    if at > begin:
        parts.append(Part(number, row, rows + (before[-1:] != b"\n"), begin, at, at - begin))
    return parts


def _odd(text: bytes) -> bool:
    if b"\r" not in text:
        return b"\n\n" in text
    return b"\n\n" in text or b"\n\r\n" in text or text.count(b"\r") != text.count(b"\r\n") + text.endswith(b"\r")
