"""Parts of a text file that can be read by themselves, each by a process of its own.

A file is cut between lines, where its rows can be counted without knowing what came before: see the ``count`` of
:func:`cut_lines`. What is packed is one part.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recsys_embed.data.streams import is_packed, open_file, sample, size_of

PART_BYTES = 64 << 20
_BLOCK = 1 << 18
_LONGEST_LINE = 4 << 20
_SAMPLE = 4 << 20


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


def cut_lines(number: int, path: Path, count: Callable[[bytes], int | None], *, headed: bool = False) -> list[Part]:
    """Ranges of whole lines, without the header where there is one; ``number`` is the file's.

    ``count`` says how many rows are in some whole lines, the last of which may be without an end, or None where that
    depends on what came before them: a file that has such lines is one part.
    """
    size = size_of(path)
    whole = [Part(number, size=size)]
    if size <= PART_BYTES or is_packed(path):
        return whole
    parts: list[Part] = []
    with open_file(path) as file:
        header = file.readline(_LONGEST_LINE) if headed else b""
        if headed and not (header.endswith(b"\n") and count(header) == 1):
            return whole
        begin = at = len(header)
        row, rows, rest = 1, 0, b""
        while block := file.read(_BLOCK):
            text = rest + block
            end = text.rfind(b"\n") + 1
            found, rest = count(text[:end]) if end else 0, text[end:]
            if found is None or len(rest) > _LONGEST_LINE:
                return whole
            at, rows = at + end, rows + found
            if at - begin >= PART_BYTES:
                parts.append(Part(number, row, rows, begin, at, at - begin))
                begin, row, rows = at, row + rows, 0
    last = count(rest) if rest else 0
    if last is None:
        return whole
    if at + len(rest) > begin:
        parts.append(Part(number, row, rows + last, begin, at + len(rest), at + len(rest) - begin))
    return parts


def count_quoted(lines: bytes) -> int | None:
    """Rows in lines of CSV: a quote may have line ends inside."""
    return None if b'"' in lines else count_plain(lines)


def count_plain(lines: bytes) -> int | None:
    """Rows in lines that are one each; blank lines, which are none, and old line ends are not counted here."""
    text = np.frombuffer(lines, np.uint8)
    ends = np.flatnonzero(text == ord("\n"))
    lengths = np.diff(ends, prepend=-1) - 1
    if b"\r" in lines:
        returns = text[ends - 1] == ord("\r")  # of an end at 0 it is no matter: its line is blank in any case
        if lines.count(b"\r") != np.count_nonzero(returns):
            return None
        lengths -= returns
    if (lengths <= 0).any():
        return None
    return len(ends) + (not lines.endswith(b"\n"))


def rows_about(path: Path) -> int:
    """The rows of a text file, packed or not, by its beginning; a line break inside a cell counts too."""
    text, taken = sample(path, _SAMPLE)
    return round(text.count(b"\n") * max(size_of(path), 1) / max(taken, 1))
