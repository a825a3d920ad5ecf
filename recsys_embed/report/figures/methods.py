"""What tells methods apart in every figure: the colour and marker of their family, and a dash for each variant."""

from __future__ import annotations

from collections.abc import Sequence

from recsys_embed.config import STRATEGIES
from recsys_embed.report.figures.style import INK, MARKERS, SERIES
from recsys_embed.report.summary import FULL, Cell, Section
from recsys_embed.search.contenders import METHODS


def series(family: str) -> int | None:
    """The colour of a strategy or of a method of a search, the same in every figure and every report; None for full,
    which is ink."""
    place = _place(family)
    return None if place is None else place % SERIES


def _place(family: str) -> int | None:
    if family == FULL:
        return None
    names = [name for name in dict.fromkeys((*STRATEGIES, *METHODS)) if name != FULL]
    return names.index(family) if family in names else len(names)


def colour_of(family: str) -> str:
    """The stand-in for :func:`series`."""
    place = series(family)
    return INK if place is None else f"#1a01{place:02x}"


def marker_of(family: str) -> str:
    """The marker, by matplotlib's name; families that share a colour differ in it."""
    place = _place(family)
    return "D" if place is None else list(MARKERS)[(place + place // SERIES) % len(MARKERS)]


def family_of(section: Section, method: str) -> str:
    """The family of a method."""
    return next(cell.family for cell in section.cells if cell.method == method)


def by_method(section: Section, cells: Sequence[Cell]) -> list[list[Cell]]:
    """The cells of each method, in the order of the section."""
    groups = [[cell for cell in cells if cell.method == method] for method in section.methods]
    return [group for group in groups if group]


def variants(lines: Sequence[list[Cell]]) -> list[tuple[list[Cell], int]]:
    """Each line with its number among the lines of its family."""
    seen: dict[str, int] = {}
    out = []
    for cells in lines:
        out.append((cells, seen.get(cells[0].family, 0)))
        seen[cells[0].family] = out[-1][1] + 1
    return out
