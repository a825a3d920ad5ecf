"""The errors a user can cause, each with fields that a program can read.

Every class carries the process exit code that the command line ends with.
"""

from __future__ import annotations

from typing import ClassVar


class RecsysEmbedError(Exception):
    """Base of every error this package raises on purpose."""

    exit_code: ClassVar[int] = 2


class ConfigError(RecsysEmbedError, ValueError):
    """A setting is unknown, misspelt or impossible. ``path`` is its dotted place, such as ``model.dim``."""

    def __init__(self, message: str, *, path: str | None = None) -> None:
        super().__init__(message)
        self.path = path


class DataError(RecsysEmbedError, ValueError):
    """Input rows are not what the schema says; ``row`` counts data rows of ``file`` from 1; ``reason`` is the message
    without place and value."""

    def __init__(
        self,
        message: str,
        *,
        file: str | None = None,
        column: str | None = None,
        row: int | None = None,
        value: object = None,
    ) -> None:
        place = ", ".join(
            f"{what} {where!r}" if isinstance(where, str) else f"{what} {where}"
            for what, where in (("file", file), ("column", column), ("row", row))
            if where is not None
        )
        shown = "" if value is None else f" (value {value!r})"
        super().__init__(f"{place}: {message}{shown}" if place else f"{message}{shown}")
        self.file, self.column, self.row, self.value = file, column, row, value
        self.reason = message


class BudgetError(RecsysEmbedError, ValueError):
    """No setting of the strategy fits the byte budget; asking again for ``nearest_bytes`` succeeds."""

    exit_code = 3

    def __init__(self, message: str, *, min_bytes: int, max_bytes: int, nearest_bytes: int) -> None:
        super().__init__(message)
        self.min_bytes, self.max_bytes, self.nearest_bytes = min_bytes, max_bytes, nearest_bytes


class CheckpointError(RecsysEmbedError):
    """A saved folder is missing, incomplete or damaged. ``file`` names the first file that is wrong."""

    def __init__(self, message: str, *, file: str | None = None) -> None:
        super().__init__(message)
        self.file = file


class DownloadError(RecsysEmbedError):
    """A file at ``url`` does not come, or is not the one that was published."""

    def __init__(self, message: str, *, url: str | None = None) -> None:
        super().__init__(message)
        self.url = url


class StackError(RecsysEmbedError, ImportError):
    """An installed library is missing or does not fit the others; ``mend`` is the command that repairs it."""

    def __init__(self, message: str, *, component: str, mend: str) -> None:
        super().__init__(message)
        self.component, self.mend = component, mend


class DivergedError(RecsysEmbedError, ArithmeticError):
    """A loss or a gradient is not finite; raised before any table row is changed."""

    exit_code = 4

    def __init__(self, message: str, *, step: int | None = None, feature: str | None = None) -> None:
        super().__init__(message)
        self.step, self.feature = step, feature


class RankError(RecsysEmbedError, RuntimeError):
    """Another of the processes that train together has ended, or does not answer."""

    exit_code = 4
