"""An axis of bytes, logarithmic, with its budgets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from recsys_embed.report.figures.canvas import text_at
from recsys_embed.report.figures.labels import spread
from recsys_embed.report.figures.style import GRID, LETTER, MUTED, WIDTH
from recsys_embed.report.sizes import format_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def log_limits(ax: Axes, sizes: Sequence[float], width: float, left: float, right: float) -> None:
    """Limits that leave ``left`` and ``right`` points free beside the data."""
    low, high = np.log10(min(sizes)), np.log10(max(sizes))
    if high - low < 0.3:
        low, high = low - 0.15, high + 0.15
    scale = (high - low) / max(60.0, width - left - right)
    ax.set_xlim(float(10 ** (low - left * scale)), float(10 ** (high + right * scale)))


def byte_ticks(ax: Axes, width: float) -> None:
    """Ticks at 1, 2, 5 times powers of ten, as many as fit."""
    low, high = ax.get_xlim()
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    for steps in ((1.0, 2.0, 5.0), (1.0, 3.0), (1.0,)):
        ticks = [step * 10.0**decade for decade in decades for step in steps if low <= step * 10.0**decade <= high]
        if len(ticks) * 44 <= width:
            break
    ax.set_xticks(ticks, [format_bytes(tick) for tick in ticks])
    ax.set_xticks([], minor=True)


def budget_rules(ax: Axes, budgets: Sequence[tuple[float, str]]) -> None:
    """A faint line at each budget, named above the axes."""
    names = [f"budget {text}" for _, text in budgets]
    at = [float(ax.transData.transform((size, 1))[0]) for size, _ in budgets]
    places = spread(at, 6 + LETTER * max((len(name) for name in names), default=0), 0, WIDTH * 72)
    for (size, _), name, here, there in zip(budgets, names, at, places, strict=True):
        ax.axvline(size, color=GRID, lw=0.8, zorder=0)
        text_at(ax, size, 1.0, name, (there - here, 4), colour=MUTED, frame="top", ha="center")
