"""What tells methods apart in every figure: the colour and marker of their strategy, and a dash for each variant."""

from __future__ import annotations

from collections.abc import Sequence

from recsys_embed.config import STRATEGIES
from recsys_embed.report.figures.style import INK, MARKERS, SERIES
from recsys_embed.report.summary import FULL, Cell, Section


def series(strategy: str) -> int | None:
    """The colour of a strategy, the same in every figure and every report; None for full, which is ink."""
    if strategy == FULL:
        return None
    names = [name for name in STRATEGIES if name != FULL]
    return (names.index(strategy) if strategy in names else len(names)) % SERIES


def colour_of(strategy: str) -> str:
    """The stand-in for :func:`series`."""
    place = series(strategy)
    return INK if place is None else f"#1a01{place:02x}"


def marker_of(strategy: str) -> str:
    """The marker of a strategy, by matplotlib's name."""
    place = series(strategy)
    return "D" if place is None else list(MARKERS)[place % len(MARKERS)]


def strategy_of(section: Section, method: str) -> str:
    """The strategy of a method."""
    return next(cell.strategy for cell in section.cells if cell.method == method)


def by_method(section: Section, cells: Sequence[Cell]) -> list[list[Cell]]:
    """The cells of each method, in the order of the section."""
    groups = [[cell for cell in cells if cell.method == method] for method in section.methods]
    return [group for group in groups if group]


def variants(lines: Sequence[list[Cell]]) -> list[tuple[list[Cell], int]]:
    """Each line with its number among the lines of its strategy."""
    seen: dict[str, int] = {}
    out = []
    for cells in lines:
        out.append((cells, seen.get(cells[0].strategy, 0)))
        seen[cells[0].strategy] = out[-1][1] + 1
    return out
