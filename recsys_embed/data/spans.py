"""A range of a file's bytes as a file."""

from __future__ import annotations

import io
from pathlib import Path

from recsys_embed.data.streams import open_file


class Span(io.RawIOBase):
    """Bytes ``first`` to ``last`` of a file, after its header where it is ``headed``: a file by itself.

    Raises:
        DataError: there is no such file.
    """

    def __init__(self, path: Path, first: int, last: int, *, headed: bool = True) -> None:
        super().__init__()
        self._file = open_file(path)
        self._left = [len(self._file.readline()) if headed else 0, last - first]
        self._first = first
        self._file.seek(0)

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """See :class:`io.RawIOBase`."""
        if not self._left[0] and len(self._left) > 1:
            self._left.pop(0)
            self._file.seek(self._first)
        data = self._file.read(min(self._left[0], len(buffer)))
        buffer[: len(data)] = data
        self._left[0] -= len(data)
        return len(data)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()
