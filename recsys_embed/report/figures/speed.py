"""Speed of training and of serving: a dot a cell, a row a method."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from recsys_embed.report.figures.canvas import axes, drawing, svg, text_at
from recsys_embed.report.figures.methods import by_method, colour_of, marker_of
from recsys_embed.report.figures.style import GRID, INK, LETTER, PAPER, WIDTH
from recsys_embed.report.summary import Cell, Section


def draw_training(section: Section, key: str) -> str:
    """A panel for training and one for prediction, means over seeds; nothing where no speed is known."""
    panels = (
        ("train_samples_per_second", "training, samples per second (more is better)"),
        ("predict_microseconds_per_row", "prediction, µs per row (less is better)"),
    )
    return _draw(section, key, "Speed of training and prediction", panels, Cell.mean)


def draw_serving(section: Section, key: str) -> str:
    """A panel for single rows and one for batches, medians over seeds; nothing where serving was not measured."""
    panels = (
        ("latency_single_row_microseconds", "one row, µs (less is better)"),
        ("predict_rows_per_second", "batches, rows per second (more is better)"),
    )
    return _draw(section, key, "Speed of serving", panels, Cell.median)


def _draw(
    section: Section,
    key: str,
    title: str,
    panels: Sequence[tuple[str, str]],
    over_seeds: Callable[[Cell, str], float],
) -> str:
    """A panel for each column of the results with its title."""
    methods = by_method(section, [cell for cell in section.cells if cell.seeds])
    if not any(not np.isnan(over_seeds(cell, column)) for cells in methods for cell in cells for column, _ in panels):
        return ""
    left = 12 + LETTER * max(len(cells[0].method) for cells in methods)
    width = (WIDTH * 72 - left - 40) / 2
    row = 17.0
    with drawing((row * len(methods) + 44) / 72) as fig:
        for number, (column, heading) in enumerate(panels):
            ax = axes(fig, (left + number * (width + 24), 20.0, width, row * len(methods)))
            ax.set_ylim(len(methods) - 0.5, -0.5)
            ax.grid(False)
            most = 0.0
            for place, cells in enumerate(methods):
                values = [value for cell in cells if not np.isnan(value := over_seeds(cell, column))]
                ax.axhline(place, color=GRID, lw=0.7, zorder=0)
                if values:
                    most = max(most, *values)
                    colour = colour_of(cells[0].family)
                    ax.plot([min(values), max(values)], [place] * 2, color=colour, lw=1.6, zorder=2)
                    marker = marker_of(cells[0].family)
                    ax.plot(
                        values,
                        [place] * len(values),
                        marker=marker,
                        ms=5.5,
                        mfc=colour,
                        mec=PAPER,
                        mew=0.5,
                        lw=0,
                        zorder=3,
                    )
            ax.set_xlim(0, (most or 1) * 1.06)
            ax.xaxis.set_major_formatter(_thousands)
            ax.locator_params(axis="x", nbins=5)
            ax.set_yticks(range(len(methods)), [cells[0].method for cells in methods] if number == 0 else [])
            ax.tick_params(axis="y", length=0, pad=6)
            text_at(ax, 0.0, 1.0, heading, (0, 7), colour=INK, frame="both")
        return svg(fig, key, title, "The numbers are in the table beneath.")


def _thousands(value: float, _: float) -> str:
    return f"{value / 1e6:g} M" if abs(value) >= 1e6 else f"{value / 1e3:g} k" if abs(value) >= 1e4 else f"{value:g}"
