"""Where the bytes went."""

from __future__ import annotations

from collections.abc import Sequence

from recsys_embed.report.figures.parts import top_parts
from recsys_embed.report.sizes import format_bytes
from recsys_embed.report.summary import Budget, Cell, Section
from recsys_embed.report.tables.cells import Table, Text
from recsys_embed.report.tables.words import percent


def part_cells(section: Section, budget: Budget | None) -> list[Cell]:
    """Whose bytes are shown: those at the budget of the recommendation, and full."""
    cells = [cell for cell in section.at(budget) if cell.seeds and cell.parts] if budget else []
    return [*([section.full] if section.full is not None and section.full.parts else []), *cells]


def part_table(cells: Sequence[Cell]) -> Table | None:
    """Serving bytes by part, a column a method."""
    if not cells:
        return None
    named = top_parts(cells)
    rows = []
    for name in named:
        rows.append((Text(name), *(_part(cell, cell.parts.get(name, 0.0)) for cell in cells)))
    others = sorted({name for cell in cells for name in cell.parts} - set(named))
    if others:
        rest = [sum(cell.parts.get(name, 0.0) for name in others) for cell in cells]
        rows.append(
            (Text(f"{len(others)} others"), *(_part(cell, size) for cell, size in zip(cells, rest, strict=True)))
        )
    rows.append((Text("all"), *(Text(format_bytes(sum(cell.parts.values()))) for cell in cells)))
    kinds = ("",) * (len(rows) - 1) + ("reference",)
    return Table(("part", *(cell.method for cell in cells)), tuple(rows), 1, kinds)


def _part(cell: Cell, size: float) -> Text:
    return Text(format_bytes(size), percent(size / sum(cell.parts.values()))) if size else Text("–")
