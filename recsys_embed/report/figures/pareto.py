"""Test AUC against serving bytes: a line a method, a mark a budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from recsys_embed.report.figures.canvas import axes, drawing, svg
from recsys_embed.report.figures.labels import name_lines_left, name_rules
from recsys_embed.report.figures.methods import by_method, colour_of, marker_of, variants
from recsys_embed.report.figures.sizes import budget_rules, byte_ticks, log_limits
from recsys_embed.report.figures.style import DASHES, INK, LETTER, MUTED, PAPER
from recsys_embed.report.sizes import format_bytes
from recsys_embed.report.summary import Cell, Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(section: Section, key: str) -> str:
    """The figure, or nothing where fewer than two cells have a result."""
    shown = [cell for cell in section.cells if cell.seeds and not np.isnan(cell.auc) and cell.bytes > 0]
    sizes = [cell.bytes for cell in shown] + [float(b.bytes) for b in section.budgets if b.bytes]
    if len(shown) < 2:
        return ""
    optimal = {id(cell) for cell in section.pareto()}
    lines = [cells for cells in by_method(section, shown) if not cells[0].uncompressed]
    pad = 14 + LETTER * max((len(cells[0].method) for cells in lines), default=0)
    box = (40.0, 30.0, 414.0, 236.0)
    with drawing(4.1) as fig:
        ax = axes(fig, box)
        ax.set_xscale("log")
        log_limits(ax, sizes, box[2], pad, 16)
        low, high, bayes = _auc_limits(shown, section.bayes)
        ax.set_ylim(low, high)
        budget_rules(ax, [(float(budget.bytes), budget.text) for budget in section.budgets if budget.bytes])
        byte_ticks(ax, box[2])

        rules = []
        if section.full is not None:
            ax.axhline(section.full.auc, color=INK, lw=0.9, ls=(0, (5, 3)), zorder=1)
            rules.append((section.full.auc, f"full {section.full.auc:.4f}"))
        if bayes:
            ax.axhline(section.bayes, color=MUTED, lw=0.9, ls=(0, (1.5, 2)), zorder=1)
            rules.append((section.bayes, f"Bayes limit {section.bayes:.4f}"))
        elif not np.isnan(section.bayes):
            rules.append((high, f"↑ Bayes limit {section.bayes:.4f}"))
        name_rules(ax, rules)

        marks: list[tuple[float, float, str, str]] = []
        for cells, variant in variants(lines):
            cells = sorted(cells, key=lambda cell: cell.bytes)
            colour = colour_of(cells[0].family)
            x, y = [cell.bytes for cell in cells], [cell.auc for cell in cells]
            ax.plot(x, y, color=colour, lw=1.3, ls=DASHES[variant % len(DASHES)], zorder=2)
            marks.append((x[0], y[0], cells[0].method, colour))
        for cell in shown:
            colour, best = colour_of(cell.family), id(cell) in optimal
            if not np.isnan(cell.sd("test_auc")):
                ax.errorbar(cell.bytes, cell.auc, cell.sd("test_auc"), color=colour, lw=0, elinewidth=1.0, capsize=2)
            ax.plot(
                cell.bytes,
                cell.auc,
                marker=marker_of(cell.family),
                ms=6.5 if best else 4.5,
                mfc=colour if best else PAPER,
                mec=colour,
                mew=1.1,
                lw=0,
                zorder=3,
            )
        name_lines_left(ax, marks, [([cell.bytes for cell in cells], [cell.auc for cell in cells]) for cells in lines])
        _absent_marks(ax, section)
        ax.set_ylabel("test AUC")
        ax.set_xlabel("serving bytes (logarithmic)")
        described = "; ".join(f"{cell.method} {format_bytes(cell.bytes)} {cell.auc:.4f}" for cell in shown)
        return svg(fig, key, "Test AUC against serving bytes", described)


def absent(section: Section) -> list[str]:
    """What the crosses of :func:`draw` stand for."""
    return [
        f"{cell.method} at {budget.text}: {', '.join(sorted(set(cell.runs['status'])))}"
        for budget in section.budgets
        for cell in section.at(budget)
        if not cell.seeds
    ]


def _auc_limits(shown: Sequence[Cell], bayes: float) -> tuple[float, float, bool]:
    """The range of AUC, and whether the Bayes limit fits in without flattening the rest."""
    sds = [np.nan_to_num(cell.sd("test_auc")) for cell in shown]
    low = min(cell.auc - sd for cell, sd in zip(shown, sds, strict=True))
    high = max(cell.auc + sd for cell, sd in zip(shown, sds, strict=True))
    near = bool(not np.isnan(bayes) and bayes - high <= max(2 * (high - low), 0.01))
    if near:
        high, low = max(high, bayes), min(low, bayes)
    room = max(high - low, 1e-3)
    return low - 0.13 * room, high + 0.07 * room, near


def _absent_marks(ax: Axes, section: Section) -> None:
    """A cross on the bottom edge for every cell without a result, at its budget."""
    for budget in section.budgets:
        empty = [cell for cell in section.at(budget) if not cell.seeds]
        for place, cell in enumerate(empty if budget.bytes else []):
            ax.annotate(
                "×",
                (float(budget.bytes or 0), 0),
                (10 * (place - (len(empty) - 1) / 2), 1),
                xycoords=ax.get_xaxis_transform(),
                textcoords="offset points",
                ha="center",
                va="bottom",
                color=colour_of(cell.family),
                fontsize=12,
                fontweight="bold",
            )
