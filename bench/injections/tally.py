"""What a row of injected faults came to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Scale:
    """How much of a row is run: ``quick`` for every commit, ``full`` for a night."""

    name: Literal["quick", "full"]

    def of(self, quick: int, full: int) -> int:
        """A count at this scale."""
        return quick if self.name == "quick" else full


QUICK, FULL = Scale("quick"), Scale("full")


@dataclass
class Tally:
    """Counts of one row. The gate is ``lost = silent = 0`` and an empty ``broken``.

    injected   faults that really fired: a kill that landed after the save had ended is none
    detected   met by an error of our own type, or refused as documented, before any harm
    recovered  a good state was there afterwards, or the fault changed no value that is read
    lost       work or an artifact that was good before the fault and is not there after it
    silent     wrong values, and nobody said so
    """

    injected: int = 0
    detected: int = 0
    recovered: int = 0
    lost: int = 0
    silent: int = 0
    broken: list[str] = field(default_factory=list)
    """What else a promise of the row was not kept in: an error of a foreign type, a file not named, too slow."""
    notes: list[str] = field(default_factory=list)
    """How faults were made and what was measured."""
    gaps: list[str] = field(default_factory=list)
    """Parts of the row that cannot be injected yet, and why. They count as nothing, and are printed."""

    @property
    def kept(self) -> bool:
        """Whether faults fired and the promise held for all of them."""
        return self.injected > 0 and self.lost == 0 and self.silent == 0 and not self.broken

    def breach(self, what: str) -> None:
        """Note a promise that was not kept; a few examples are enough."""
        if len(self.broken) < 20:
            self.broken.append(what)

    def note(self, text: str) -> None:
        """Add a note, once."""
        if text not in self.notes:
            self.notes.append(text)


class NotBuiltError(Exception):
    """What a row is about is not there yet; the text says what is missing."""
