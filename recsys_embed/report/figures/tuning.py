"""Validation AUC of every trial against its learning rate: a panel a setting of the epochs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from recsys_embed.report.figures.canvas import axes, drawing, svg, text_at
from recsys_embed.report.figures.labels import name_lines_right
from recsys_embed.report.figures.methods import colour_of, marker_of
from recsys_embed.report.figures.style import DASHES, INK, LETTER, PAPER, WIDTH
from recsys_embed.report.results import epochs_name
from recsys_embed.report.summary import Budget, Cell, Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PANELS = 3
_HEIGHT = 180.0


def draw(section: Section, budget: Budget | None, key: str) -> str:
    """The trials of full and of all strategies at one budget; nothing where fewer than two have a result."""
    shown = [cell for cell in section.cells if cell.tuning and cell.budget in ("", budget.text if budget else "")]
    settings = sorted({cell.tuning["epochs"] for cell in shown})[:_PANELS]
    aucs = [auc for cell in shown for auc in section.trials_of(cell)["val_auc"].dropna()]
    if len(aucs) < 2:
        return ""
    low, high = min(aucs), max(aucs)
    room = max(high - low, 1e-3)
    label = 14 + LETTER * max(len(cell.name) for cell in shown)
    left, gap = 46.0, 12.0
    width = (WIDTH * 72 - left - label - gap * (len(settings) - 1)) / len(settings)
    with drawing((_HEIGHT + 58) / 72) as fig:
        for number, epochs in enumerate(settings):
            ax = axes(fig, (left + number * (width + gap), 32.0, width, _HEIGHT))
            ax.set_xscale("log")
            ax.set_ylim(low - 0.06 * room, high + 0.06 * room)
            if number:
                ax.tick_params(axis="y", labelleft=False, length=0)
            text_at(ax, 0.0, 1.0, epochs_name(epochs), (0, 7), colour=INK, frame="both")
            ax.set_xlabel("learning rate of the tables")
            mine = [cell for cell in shown if cell.tuning["epochs"] == epochs]
            ends = [
                _line(ax, section, cell, DASHES[_variant(mine, cell) % len(DASHES)])
                for cell in mine
                if section.trials_of(cell)["val_auc"].notna().any()
            ]
            _plain_ticks(ax)
            if number == len(settings) - 1:
                name_lines_right(ax, ends, ax.get_xlim()[1])
        fig.axes[0].set_ylabel("validation AUC")
        return svg(
            fig, key, "Validation AUC of the trials", "Against the learning rate; the numbers are in trials.csv."
        )


def _plain_ticks(ax: Axes) -> None:
    """Ticks at 1 and 3 times powers of ten, in digits."""
    low, high = ax.get_xlim()
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    ticks = [tick for decade in decades for tick in (10.0**decade, 3 * 10.0**decade) if low <= tick <= high]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.set_xticks([], minor=True)


def _variant(cells: list[Cell], cell: Cell) -> int:
    """Its number among those of its family."""
    return [other for other in cells if other.family == cell.family].index(cell)


def _line(ax: Axes, section: Section, cell: Cell, dash: object) -> tuple[float, float, str, str]:
    """Draw the trials of a cell, without decay hollow and the best one large; return the right end, to name it."""
    trials = section.trials_of(cell)
    trials = trials[trials["val_auc"].notna()].sort_values("tables_lr")
    colour, marker = colour_of(cell.family), marker_of(cell.family)
    x, y = trials["tables_lr"].tolist(), trials["val_auc"].tolist()
    ax.plot(x, y, color=colour, lw=0.8, ls=dash, zorder=2)
    for one, auc, decay, chosen in zip(x, y, trials["decay"], trials["chosen"], strict=True):
        face = colour if np.nan_to_num(decay) else PAPER
        ax.plot(one, auc, marker=marker, ms=7 if chosen else 3.5, mfc=face, mec=colour, mew=1.0, lw=0, zorder=3)
    return x[-1], y[-1], cell.name, colour
