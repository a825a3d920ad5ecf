"""Names at the ends of lines, moved apart where they would meet.

A line to name is ``(x, y, name, colour)``: the point that the name belongs to, in data coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Literal

import numpy as np

from recsys_embed.report.figures.canvas import text_at
from recsys_embed.report.figures.style import INK, LETTER, LINE, MARKERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def spread(places: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Move labels as little as possible, so that neighbours are ``gap`` apart and all lie in [low, high] if they fit.

    >>> spread([10.0, 10.0, 50.0], 10.0, 0.0, 100.0)
    [5.0, 15.0, 50.0]
    """
    order = sorted(range(len(places)), key=lambda one: places[one])
    blocks: list[list[float]] = []  # [sum, count] of what is pushed together, by the pool-adjacent rule
    for rank, one in enumerate(order):
        blocks.append([places[one] - rank * gap, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            total, count = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += count
    out = [0.0] * len(places)
    flat = [block[0] / block[1] for block in blocks for _ in range(int(block[1]))]
    most = high - (len(places) - 1) * gap
    for rank, (one, value) in enumerate(zip(order, flat, strict=True)):
        out[one] = max(low, min(value, max(low, most))) + rank * gap
    return out


def name_lines_left(
    ax: Axes, marks: Sequence[tuple[float, float, str, str]], lines: Sequence[tuple[list[float], list[float]]]
) -> None:
    """Names at the left ends of lines: beside those that begin at the smallest size, moved apart; and where there is
    most room around the first point of the others."""
    if not marks:
        return

    def place(x: float, y: float) -> np.ndarray:
        return np.asarray(ax.transData.transform((x, y)), dtype=np.float64)

    bottom, top = (float(place(marks[0][0], edge)[1]) for edge in ax.get_ylim())
    edge = min(place(x, y)[0] for x, y, _, _ in marks)
    first = [mark for mark in marks if place(*mark[:2])[0] - edge < 60]
    heights = [float(place(x, y)[1]) for x, y, _, _ in first]
    for (x, y, name, colour), at, to in zip(first, heights, spread(heights, LINE, bottom + 12, top - 3), strict=True):
        shift, moved = float(edge - place(x, y)[0]), abs(to - at) > 2
        text_at(ax, x, y, name, (shift - (13 if moved else 8), to - at), colour=colour, ha="right", halo=True)
        if moved:
            _leader(ax, (x, y), (shift - 11.5, to - at), colour)

    taken = [place(x, y) for x, y, _, _ in marks]
    for xs, ys in lines:
        for start, stop in pairwise(place(x, y) for x, y in zip(xs, ys, strict=True)):
            taken += [start + (stop - start) * part for part in np.linspace(0, 1, 80)]
    for mark in marks:
        if mark not in first:
            x, y, name, colour = mark
            spot = _freest(place(x, y), LETTER * len(name), np.array(taken), bottom + 6, top + 4)
            text_at(ax, x, y, name, spot[:2], colour=colour, ha=spot[2], halo=True)
            reach = LETTER * len(name) * (1 if spot[2] == "left" else -1)
            taken += [place(x, y) + np.array([spot[0] + reach * part, spot[1]]) for part in np.linspace(0, 1, 12)]


_SPOTS: tuple[tuple[int, int, Literal["left", "right"]], ...] = (
    (-8, 0, "right"),
    (-4, -11, "right"),
    (-4, 11, "right"),
    (6, -11, "left"),
    (6, 11, "left"),
)


def _freest(
    at: np.ndarray, width: float, taken: np.ndarray, bottom: float, top: float
) -> tuple[int, int, Literal["left", "right"]]:
    """Where around a point a name meets least: the offsets and the side that is aligned."""

    def clutter(spot: tuple[int, int, str]) -> int:
        left, height = at[0] + spot[0] - (width if spot[2] == "right" else 0), at[1] + spot[1]
        met = (taken[:, 0] > left) & (taken[:, 0] < left + width) & (abs(taken[:, 1] - height) < 6)
        return int(met.sum()) + 1000 * (not bottom < height < top)

    return min(_SPOTS, key=clutter)


def name_lines_right(ax: Axes, ends: Sequence[tuple[float, float, str, str]], edge: float) -> None:
    """Names at the right ends of lines, outside the axes."""
    bottom, top = (float(ax.transData.transform((0, y))[1]) for y in ax.get_ylim())
    heights = [float(ax.transData.transform((0, y))[1]) for _, y, _, _ in ends]
    places = spread(heights, LINE, bottom + 4, top - 4)
    for (x, y, name, colour), at, to in zip(ends, heights, places, strict=True):
        start = float(ax.transData.transform((x, y))[0])
        stop = float(ax.transData.transform((edge, y))[0]) + 4 - start
        text_at(ax, x, y, name, (stop + 2, to - at), colour=colour)
        _leader(ax, (x, y), (stop, to - at), colour)


def name_marks(fig: Figure, marks: Sequence[tuple[str, str, str]], left: float) -> None:
    """A line, or as many as it takes, above the axes: each ``(marker, name, colour)``."""
    width, height = (float(size) * 72 for size in fig.get_size_inches())
    x, y = left, height - 9
    for marker, name, colour in marks:
        text = f"{MARKERS[marker]} {name}"
        need = LETTER * len(text) + 12
        if x > left and x + need > width:
            x, y = left, y - 12
        fig.text(x / width, y / height, text, color=colour, va="center")
        x += need


def name_rules(ax: Axes, rules: Sequence[tuple[float, str]]) -> None:
    """Names of horizontal lines, to the right of the axes."""
    bottom, top = (float(ax.transData.transform((1, edge))[1]) for edge in ax.get_ylim())
    heights = [float(ax.transData.transform((1, value))[1]) for value, _ in rules]
    places = spread(heights, LINE, bottom, top)
    for (value, name), at, to in zip(rules, heights, places, strict=True):
        text_at(ax, 1.0, value, name, (5, to - at), colour=INK, frame="right")


def clip(text: str, most: int) -> str:
    """At most so many letters, with a mark where some are missing: names often differ at their ends.

    >>> clip("categorical_feature_7", 12)
    'catego…ure_7'
    """
    half = most // 2
    return text if len(text) <= most else f"{text[:half]}…{text[len(text) - (most - half - 1) :]}"


def _leader(ax: Axes, point: tuple[float, float], offset: tuple[float, float], colour: str) -> None:
    """A thin line from a point to the name that was moved away from it."""
    ax.annotate(
        "",
        point,
        offset,
        textcoords="offset points",
        arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.6, "shrinkA": 0, "shrinkB": 3},
    )
