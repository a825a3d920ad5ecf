"""What a table of the page is made of: plain text in rows and columns."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Text:
    """What a table's cell says: the value, a remark of one line or two in smaller print, and short tags."""

    main: str
    sub: str = ""
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class Table:
    """Columns with titles (the first ``words`` of them are words, the others numbers), rows, and a kind per row."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Text, ...], ...]
    words: int = 1
    kinds: tuple[str, ...] = ()

    def kind(self, row: int) -> str:
        """How a row stands out: ``best``, ``reference``, ``absent``, ``beside`` what is compared, or not at all."""
        return self.kinds[row] if self.kinds else ""
