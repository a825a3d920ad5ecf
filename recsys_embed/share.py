"""Pieces of a whole."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Share:
    """One of ``count`` contiguous pieces that whatever is divided among ranks falls into, as equal as they can be."""

    place: int = 0
    count: int = 1

    def of(self, size: int) -> tuple[int, int]:
        """Where the piece of ``size`` things begins and ends; it may be empty."""
        return self.place * size // self.count, (self.place + 1) * size // self.count


WHOLE = Share()
