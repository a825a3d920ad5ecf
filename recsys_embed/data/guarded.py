"""A stream of CSV bytes with a last row of our own, and with what is not UTF-8 made visible.

The last row tells whether a quote was left open: such a quote swallows it, as it does all rows after it. And Arrow
gives rows of the wrong length as text, which they need not be: where rows are to be skipped, bytes that are no UTF-8
stand as :data:`MARK` from then on.
"""

from __future__ import annotations

import codecs
import io
from typing import IO

END = "5a93b1e08c7f"
"""The last cell of the row that is added; the others are empty."""

MARK = "\ufdd06d1f4a27c0b9\ufdd1"
"""Takes the place of bytes that are not UTF-8: characters that Unicode gives no meaning, and a number drawn once."""

_ERRORS = "recsys_embed.mark"


def _mark(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return MARK, error.end


codecs.register_error(_ERRORS, _mark)


class Guarded(io.RawIOBase):
    """The bytes of ``file``, then a row of ``columns`` cells. With ``mark``, what is not UTF-8 is replaced by
    :data:`MARK`, and ``marked`` says that there was any."""

    def __init__(self, file: IO[bytes] | io.RawIOBase, columns: int, separator: str, *, mark: bool) -> None:
        super().__init__()
        self.marked = False
        self._file, self._ended = file, False
        self._ending = f"\n{separator * (columns - 1)}{END}\n".encode()
        self._decoder = codecs.getincrementaldecoder("utf-8")(_ERRORS) if mark else None
        self._ahead = b""

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        """Fill the buffer: only the last read gives less, and Arrow can lose the rows behind a read that does."""
        while len(self._ahead) < len(buffer) and not self._ended:
            self._ahead += self._checked(self._file.read(len(buffer) - len(self._ahead)) or b"")
        data, self._ahead = self._ahead[: len(buffer)], self._ahead[len(buffer) :]
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()

    def _checked(self, data: bytes) -> bytes:
        self._ended = not data
        if self._decoder is not None:
            text = self._decoder.decode(data, final=self._ended)
            self.marked = self.marked or MARK in text
            data = text.encode()
        return data + self._ending if self._ended else data
