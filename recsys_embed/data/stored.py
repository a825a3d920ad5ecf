"""The rows of a split on the disk: mapped where all are wanted at once, read in runs where memory is short."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from recsys_embed.data.columns import Columns
from recsys_embed.data.storage import SplitFile, open_split


class StoredRows:
    """Rows of a split's file, of which the ``features`` first columns are ids.

    Raises:
        CheckpointError: the file is missing or not what was written.
    """

    def __init__(self, path: Path, features: int) -> None:
        self._path, self._features, self._file = path, features, SplitFile.open(path, features)

    @property
    def nbytes(self) -> int:
        """Of all columns."""
        return self._file.nbytes

    def __len__(self) -> int:
        return self._file.rows

    def read(self, first: int, last: int) -> Columns:
        """Rows ``first`` to ``last``, read into memory of their own.

        Raises:
            CheckpointError: the file is no longer what it was.
        """
        return self._file.read(self._path, first, last)

    def whole(self) -> Columns:
        """All rows, mapped, so read-only: what was touched stays in memory as long as the system has room."""
        return self._mapped

    @cached_property
    def _mapped(self) -> Columns:
        return open_split(self._path, self._features)
