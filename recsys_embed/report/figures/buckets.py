"""AUC by how often a row's ids were trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from recsys_embed.report.figures.canvas import axes, drawing, svg, text_at
from recsys_embed.report.figures.labels import name_lines_right
from recsys_embed.report.figures.methods import colour_of, family_of, marker_of
from recsys_embed.report.figures.style import DASHES, FONT, INK, LETTER, MARKERS, MUTED, WIDTH
from recsys_embed.report.results import BUCKETS
from recsys_embed.report.summary import Cell, Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PANELS = 3


def draw(section: Section, key: str) -> str:
    """Against full where there is full, a panel for each of up to three budgets; nothing where no bucket is defined."""
    reference = section.full
    panels = [b for b in section.budgets if any(_known(cell) for cell in section.at(b))]
    if len(panels) > _PANELS:
        panels = [panels[int(place)] for place in np.linspace(0, len(panels) - 1, _PANELS).round()]
    if not panels or (reference is not None and not _known(reference)):
        return ""
    methods = [method for method in section.methods if section.full is None or method != section.full.method]
    rows = {
        (budget.text, cell.method): points
        for budget in panels
        for cell in section.at(budget)
        if _known(cell) and (points := _points(section, cell, reference))
    }
    values = [edge for points in rows.values() for _, *edges in points for edge in edges if not np.isnan(edge)]
    if not values:
        return ""
    low, high = min(values + [0.0] * (reference is not None)), max(values + [0.0] * (reference is not None))
    room = max(high - low, 1e-3)
    label = 12 + LETTER * max((len(method) for method in methods), default=0)
    left, gap = 46.0, 10.0
    width = (WIDTH * 72 - left - label - gap * (len(panels) - 1)) / len(panels)
    lasting = {method: max(n for n, b in enumerate(panels) if (b.text, method) in rows) for _, method in rows}
    early = [method for method in methods if lasting.get(method, len(panels) - 1) < len(panels) - 1]
    lines = len(early)
    with drawing(2.8 + 10 * lines / 72) as fig:
        for number, budget in enumerate(panels):
            ax = axes(fig, (left + number * (width + gap), 24.0, width, 160.0))
            ax.set_xlim(-0.5, 3.5)
            ax.set_ylim(low - 0.08 * room, high + 0.08 * room)
            ax.set_xticks(range(4), list(BUCKETS), fontsize=min(FONT, width / 16))
            ax.tick_params(axis="x", length=0)
            if number:
                ax.tick_params(axis="y", labelleft=False, length=0)
            if reference is not None:
                ax.axhline(0, color=INK, lw=0.9, ls=(0, (5, 3)), zorder=1)
            text_at(ax, 0.5, 1.0, f"budget {budget.text}", (0, 4 + 10 * lines), colour=MUTED, frame="both", ha="center")
            ends = []
            for cell in section.at(budget):
                line = rows.get((budget.text, cell.method))
                if line:
                    shift = 0.36 * (methods.index(cell.method) / max(1, len(methods) - 1) - 0.5)
                    end = _line(ax, line, shift, cell, section)
                    ends += [end] if lasting[cell.method] == number else []
            if number == len(panels) - 1:
                name_lines_right(ax, ends, 3.5)
                continue
            for _, _, name, colour in ends:  # no later panel has it: named above this one
                marker, row = MARKERS[marker_of(family_of(section, name))], early.index(name)
                text_at(ax, 0.5, 1.0, f"{marker} {name}", (0, 4 + 10 * row), colour=colour, frame="both", ha="center")
        fig.axes[0].set_ylabel("AUC, difference to full" if reference is not None else "test AUC")
        fig.axes[0].yaxis.set_major_formatter(_signed if reference is not None else _plain)
        title = "AUC on frequent and rare ids" + (", as difference to full" if reference is not None else "")
        return svg(fig, key, title, "A panel for each budget; the numbers are in the table beneath.")


def _known(cell: Cell) -> bool:
    return any(not np.isnan(cell.mean(f"auc_{name}")) for name in BUCKETS) if cell.seeds else False


def _points(section: Section, cell: Cell, reference: Cell | None) -> list[tuple[int, float, float, float]]:
    """Place, value and interval of each bucket that is defined."""
    out = []
    for place, name in enumerate(BUCKETS):
        if reference is not None:
            gap = section.difference(cell, reference, name)
            point = (place, gap.estimate, gap.low, gap.high)
        else:
            value, sd = cell.mean(f"auc_{name}"), cell.sd(f"auc_{name}")
            point = (place, value, value - sd, value + sd)
        if not np.isnan(point[1]):
            out.append(point)
    return out


def _line(
    ax: Axes, points: Sequence[tuple[int, float, float, float]], shift: float, cell: Cell, section: Section
) -> tuple[float, float, str, str]:
    """Draw the line of a cell; return its right end to name."""
    colour = colour_of(cell.family)
    names = [method for method in section.methods if family_of(section, method) == cell.family]
    x, y = [place + shift for place, *_ in points], [value for _, value, *_ in points]
    ax.plot(x, y, color=colour, lw=0.9, ls=DASHES[names.index(cell.method) % len(DASHES)], zorder=2)
    for place, _, low, high in points:
        if not (np.isnan(low) or np.isnan(high)):
            ax.plot([place + shift] * 2, [low, high], color=colour, lw=0.9, zorder=2)
    ax.plot(x, y, marker=marker_of(cell.family), ms=4, mfc=colour, mec=colour, lw=0, zorder=3)
    return x[-1], y[-1], cell.method, colour


def _signed(value: float, _: float) -> str:
    return "0" if abs(value) < 1e-9 else f"{value:+.4g}".replace("-", "−")


def _plain(value: float, _: float) -> str:
    return f"{value:.4g}"
