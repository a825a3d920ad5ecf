"""A range of a file's bytes as a file."""

from __future__ import annotations

import io
from pathlib import Path


class Span(io.RawIOBase):
    """Bytes ``first`` to ``last`` of a file, after its header: a file by itself."""

    def __init__(self, path: Path, first: int, last: int) -> None:
        super().__init__()
        self._file = open(path, "rb")  # noqa: SIM115 - closed by close()
        self._left = [len(self._file.readline()), last - first]
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
