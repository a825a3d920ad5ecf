"""The figures, as SVG that takes its colours and fonts from the page around it.

Everything is drawn in stand-in colours, which are then replaced by CSS variables: so one figure serves light, dark and
print. Lines are labelled at their ends. matplotlib is imported when the first figure is drawn, without a back end for
windows and without touching the caller's settings.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from recsys_embed.config import STRATEGIES
from recsys_embed.report.results import BUCKETS
from recsys_embed.report.summary import FULL, Budget, Cell, Section

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SERIES = 7
"""Colours of methods: ``--series-0`` … in the page's style sheet."""
SHADES = 7
"""Colours of parts of a whole: ``--shade-0`` …"""

_INK, _MUTED, _GRID, _PAPER = "#1a0001", "#1a0002", "#1a0003", "#1a0004"
_COLOURS = {
    _INK: "currentColor",
    _MUTED: "var(--muted)",
    _GRID: "var(--grid)",
    _PAPER: "var(--paper)",
    **{f"#1a01{place:02x}": f"var(--series-{place})" for place in range(SERIES)},
    **{f"#1a02{place:02x}": f"var(--shade-{place})" for place in range(SHADES)},
    **{f"#1a03{place:02x}": f"var(--on-shade-{place})" for place in range(SHADES)},
}
_MARKERS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚", "X": "✖"}
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (2, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
_FONT = 7.5
_WIDTH = 7.6  # inches; the page shows them wider
_LINE = 9.5  # points between two labels
_TEXT = 4.4  # points a letter takes
_PANELS = 3


def format_bytes(size: float) -> str:
    """Decimal units, three digits.

    >>> [format_bytes(size) for size in (999, 20_480, 999_999, 2_048_000, 64e9)]
    ['999 B', '20.5 kB', '1 MB', '2.05 MB', '64 GB']
    """
    if np.isnan(size):
        return "–"
    for unit in ("B", "kB", "MB", "GB"):
        digits = f"{size:.0f}" if unit == "B" or size >= 100 else f"{size:.3g}"
        if float(digits) < 1000:
            return f"{digits} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def series(strategy: str) -> int | None:
    """The colour of a strategy, the same in every figure and every report; None for full, which is ink."""
    if strategy == FULL:
        return None
    names = [name for name in STRATEGIES if name != FULL]
    return (names.index(strategy) if strategy in names else len(names)) % SERIES


# --- Pareto --------------------------------------------------------------------------------------------------


def pareto(section: Section, key: str) -> str:
    """Test AUC against serving bytes."""
    shown = [cell for cell in section.cells if cell.seeds and not np.isnan(cell.auc) and cell.bytes > 0]
    sizes = [cell.bytes for cell in shown] + [float(b.bytes) for b in section.budgets if b.bytes]
    if len(shown) < 2:
        return ""
    optimal = {id(cell) for cell in section.pareto()}
    lines = [cells for cells in _by_method(section, shown) if cells[0].strategy != FULL]
    pad = 14 + _TEXT * max((len(cells[0].method) for cells in lines), default=0)
    box = (40.0, 30.0, 414.0, 236.0)
    with _figure(4.1) as fig:
        ax = _axes(fig, box)
        ax.set_xscale("log")
        _log_limits(ax, sizes, box[2], pad, 16)
        low, high, bayes = _auc_limits(shown, section.bayes)
        ax.set_ylim(low, high)
        _budget_rules(ax, [(float(budget.bytes), budget.text) for budget in section.budgets if budget.bytes])
        _byte_ticks(ax, box[2])

        rules = []
        if section.full is not None:
            ax.axhline(section.full.auc, color=_INK, lw=0.9, ls=(0, (5, 3)), zorder=1)
            rules.append((section.full.auc, f"full {section.full.auc:.4f}"))
        if bayes:
            ax.axhline(section.bayes, color=_MUTED, lw=0.9, ls=(0, (1.5, 2)), zorder=1)
            rules.append((section.bayes, f"Bayes limit {section.bayes:.4f}"))
        elif not np.isnan(section.bayes):
            rules.append((high, f"↑ Bayes limit {section.bayes:.4f}"))
        _rule_labels(ax, rules)

        marks: list[tuple[float, float, str, str]] = []
        for cells, variant in _variants(lines):
            cells = sorted(cells, key=lambda cell: cell.bytes)
            colour = _colour(cells[0].strategy)
            x, y = [cell.bytes for cell in cells], [cell.auc for cell in cells]
            ax.plot(x, y, color=colour, lw=1.3, ls=_DASHES[variant % len(_DASHES)], zorder=2)
            marks.append((x[0], y[0], cells[0].method, colour))
        for cell in shown:
            colour, best = _colour(cell.strategy), id(cell) in optimal
            if not np.isnan(cell.sd("test_auc")):
                ax.errorbar(cell.bytes, cell.auc, cell.sd("test_auc"), color=colour, lw=0, elinewidth=1.0, capsize=2)
            ax.plot(
                cell.bytes,
                cell.auc,
                marker=_marker(cell.strategy),
                ms=6.5 if best else 4.5,
                mfc=colour if best else _PAPER,
                mec=colour,
                mew=1.1,
                lw=0,
                zorder=3,
            )
        _line_labels(ax, marks, [([cell.bytes for cell in cells], [cell.auc for cell in cells]) for cells in lines])
        _absent_marks(ax, section)
        ax.set_ylabel("test AUC")
        ax.set_xlabel("serving bytes (logarithmic)")
        described = "; ".join(f"{cell.method} {format_bytes(cell.bytes)} {cell.auc:.4f}" for cell in shown)
        return _svg(fig, key, "Test AUC against serving bytes", described)


def _budget_rules(ax: Axes, budgets: Sequence[tuple[float, str]]) -> None:
    """A faint line at each budget, named above the axes."""
    names = [f"budget {text}" for _, text in budgets]
    at = [float(ax.transData.transform((size, 1))[0]) for size, _ in budgets]
    places = spread(at, 6 + _TEXT * max((len(name) for name in names), default=0), 0, _WIDTH * 72)
    for (size, _), name, here, there in zip(budgets, names, at, places, strict=True):
        ax.axvline(size, color=_GRID, lw=0.8, zorder=0)
        _text(ax, size, 1.0, name, (there - here, 4), colour=_MUTED, frame="top", ha="center")


def _auc_limits(shown: Sequence[Cell], bayes: float) -> tuple[float, float, bool]:
    """The range of AUC, and whether the Bayes limit fits in without flattening the rest."""
    spread = [np.nan_to_num(cell.sd("test_auc")) for cell in shown]
    low = min(cell.auc - sd for cell, sd in zip(shown, spread, strict=True))
    high = max(cell.auc + sd for cell, sd in zip(shown, spread, strict=True))
    near = bool(not np.isnan(bayes) and bayes - high <= max(2 * (high - low), 0.01))
    if near:
        high, low = max(high, bayes), min(low, bayes)
    room = max(high - low, 1e-3)
    return low - 0.13 * room, high + 0.07 * room, near


def _log_limits(ax: Axes, sizes: Sequence[float], width: float, left: float, right: float) -> None:
    """Limits that leave ``left`` and ``right`` points free beside the data."""
    low, high = np.log10(min(sizes)), np.log10(max(sizes))
    if high - low < 0.3:
        low, high = low - 0.15, high + 0.15
    scale = (high - low) / max(60.0, width - left - right)
    ax.set_xlim(float(10 ** (low - left * scale)), float(10 ** (high + right * scale)))


def _byte_ticks(ax: Axes, width: float) -> None:
    """Ticks at 1, 2, 5 times powers of ten, as many as fit."""
    low, high = ax.get_xlim()
    decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    for steps in ((1.0, 2.0, 5.0), (1.0, 3.0), (1.0,)):
        ticks = [step * 10.0**decade for decade in decades for step in steps if low <= step * 10.0**decade <= high]
        if len(ticks) * 44 <= width:
            break
    ax.set_xticks(ticks, [format_bytes(tick) for tick in ticks])
    ax.set_xticks([], minor=True)


def _line_labels(
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
    for (x, y, name, colour), at, to in zip(first, heights, spread(heights, _LINE, bottom + 12, top - 3), strict=True):
        shift, moved = float(edge - place(x, y)[0]), abs(to - at) > 2
        _text(ax, x, y, name, (shift - (13 if moved else 8), to - at), colour=colour, ha="right", halo=True)
        if moved:
            ax.annotate(
                "",
                (x, y),
                (shift - 11.5, to - at),
                textcoords="offset points",
                arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.6, "shrinkA": 0, "shrinkB": 3},
            )

    taken = [place(x, y) for x, y, _, _ in marks]
    for xs, ys in lines:
        for start, stop in pairwise(place(x, y) for x, y in zip(xs, ys, strict=True)):
            taken += [start + (stop - start) * part for part in np.linspace(0, 1, 80)]
    for mark in marks:
        if mark not in first:
            x, y, name, colour = mark
            spot = _freest(place(x, y), _TEXT * len(name), np.array(taken), bottom + 6, top + 4)
            _text(ax, x, y, name, spot[:2], colour=colour, ha=spot[2], halo=True)
            reach = _TEXT * len(name) * (1 if spot[2] == "left" else -1)
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


def _rule_labels(ax: Axes, rules: Sequence[tuple[float, str]]) -> None:
    """Names of horizontal lines, to the right of the axes."""
    bottom, top = (float(ax.transData.transform((1, edge))[1]) for edge in ax.get_ylim())
    heights = [float(ax.transData.transform((1, value))[1]) for value, _ in rules]
    places = spread(heights, _LINE, bottom, top)
    for (value, name), at, to in zip(rules, heights, places, strict=True):
        _text(ax, 1.0, value, name, (5, to - at), colour=_INK, frame="right")


def _absent_marks(ax: Axes, section: Section) -> None:
    """A cross on the bottom edge for every cell without a result, at its budget."""
    for budget in section.budgets:
        absent = [cell for cell in section.at(budget) if not cell.seeds]
        for place, cell in enumerate(absent if budget.bytes else []):
            ax.annotate(
                "×",
                (float(budget.bytes or 0), 0),
                (10 * (place - (len(absent) - 1) / 2), 1),
                xycoords=ax.get_xaxis_transform(),
                textcoords="offset points",
                ha="center",
                va="bottom",
                color=_colour(cell.strategy),
                fontsize=12,
                fontweight="bold",
            )


def absent(section: Section) -> list[str]:
    """What the crosses of :func:`pareto` stand for."""
    return [
        f"{cell.method} at {budget.text}: {', '.join(sorted(set(cell.runs['status'])))}"
        for budget in section.budgets
        for cell in section.at(budget)
        if not cell.seeds
    ]


# --- head, torso, tail ---------------------------------------------------------------------------------------


def buckets(section: Section, key: str) -> str:
    """AUC by how often a row's ids were trained, against full where there is full; a panel for up to three budgets."""
    reference = section.full
    panels = [b for b in section.budgets if any(_known_buckets(cell) for cell in section.at(b))]
    if len(panels) > _PANELS:
        panels = [panels[int(place)] for place in np.linspace(0, len(panels) - 1, _PANELS).round()]
    if not panels or (reference is not None and not _known_buckets(reference)):
        return ""
    methods = [method for method in section.methods if section.full is None or method != section.full.method]
    rows = {
        (budget.text, cell.method): points
        for budget in panels
        for cell in section.at(budget)
        if _known_buckets(cell) and (points := _bucket_points(section, cell, reference))
    }
    values = [edge for points in rows.values() for _, *edges in points for edge in edges if not np.isnan(edge)]
    if not values:
        return ""
    low, high = min(values + [0.0] * (reference is not None)), max(values + [0.0] * (reference is not None))
    room = max(high - low, 1e-3)
    label = 12 + _TEXT * max((len(method) for method in methods), default=0)
    left, gap = 46.0, 10.0
    width = (_WIDTH * 72 - left - label - gap * (len(panels) - 1)) / len(panels)
    lasting = {method: max(n for n, b in enumerate(panels) if (b.text, method) in rows) for _, method in rows}
    early = [method for method in methods if lasting.get(method, len(panels) - 1) < len(panels) - 1]
    lines = len(early)
    with _figure(2.8 + 10 * lines / 72) as fig:
        for number, budget in enumerate(panels):
            ax = _axes(fig, (left + number * (width + gap), 24.0, width, 160.0))
            ax.set_xlim(-0.5, 3.5)
            ax.set_ylim(low - 0.08 * room, high + 0.08 * room)
            ax.set_xticks(range(4), list(BUCKETS), fontsize=min(_FONT, width / 16))
            ax.tick_params(axis="x", length=0)
            if number:
                ax.tick_params(axis="y", labelleft=False, length=0)
            if reference is not None:
                ax.axhline(0, color=_INK, lw=0.9, ls=(0, (5, 3)), zorder=1)
            _text(ax, 0.5, 1.0, f"budget {budget.text}", (0, 4 + 10 * lines), colour=_MUTED, frame="both", ha="center")
            ends = []
            for cell in section.at(budget):
                line = rows.get((budget.text, cell.method))
                if line:
                    shift = 0.36 * (methods.index(cell.method) / max(1, len(methods) - 1) - 0.5)
                    end = _bucket_line(ax, line, shift, cell, section)
                    ends += [end] if lasting[cell.method] == number else []
            if number == len(panels) - 1:
                _right_labels(ax, ends, 3.5)
                continue
            for _, _, name, colour in ends:  # no later panel has it: named above this one
                marker, row = _MARKERS[_marker(_strategy(section, name))], early.index(name)
                _text(ax, 0.5, 1.0, f"{marker} {name}", (0, 4 + 10 * row), colour=colour, frame="both", ha="center")
        fig.axes[0].set_ylabel("AUC, difference to full" if reference is not None else "test AUC")
        fig.axes[0].yaxis.set_major_formatter(_signed if reference is not None else _plain)
        title = "AUC on frequent and rare ids" + (", as difference to full" if reference is not None else "")
        return _svg(fig, key, title, "A panel for each budget; the numbers are in the table beneath.")


def _known_buckets(cell: Cell) -> bool:
    return any(not np.isnan(cell.mean(f"auc_{name}")) for name in BUCKETS) if cell.seeds else False


def _bucket_points(section: Section, cell: Cell, reference: Cell | None) -> list[tuple[int, float, float, float]]:
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


def _bucket_line(
    ax: Axes, points: Sequence[tuple[int, float, float, float]], shift: float, cell: Cell, section: Section
) -> tuple[float, float, str, str]:
    colour = _colour(cell.strategy)
    names = [method for method in section.methods if _strategy(section, method) == cell.strategy]
    x, y = [place + shift for place, *_ in points], [value for _, value, *_ in points]
    ax.plot(x, y, color=colour, lw=0.9, ls=_DASHES[names.index(cell.method) % len(_DASHES)], zorder=2)
    for place, _, low, high in points:
        if not (np.isnan(low) or np.isnan(high)):
            ax.plot([place + shift] * 2, [low, high], color=colour, lw=0.9, zorder=2)
    ax.plot(x, y, marker=_marker(cell.strategy), ms=4, mfc=colour, mec=colour, lw=0, zorder=3)
    return x[-1], y[-1], cell.method, colour


def _right_labels(ax: Axes, ends: Sequence[tuple[float, float, str, str]], edge: float) -> None:
    """Names at the right ends of lines, outside the axes."""
    bottom, top = (float(ax.transData.transform((0, y))[1]) for y in ax.get_ylim())
    heights = [float(ax.transData.transform((0, y))[1]) for _, y, _, _ in ends]
    places = spread(heights, _LINE, bottom + 4, top - 4)
    for (x, y, name, colour), at, to in zip(ends, heights, places, strict=True):
        start = float(ax.transData.transform((x, y))[0])
        stop = float(ax.transData.transform((edge, y))[0]) + 4 - start
        _text(ax, x, y, name, (stop + 2, to - at), colour=colour)
        ax.annotate(
            "",
            (x, y),
            (stop, to - at),
            textcoords="offset points",
            arrowprops={"arrowstyle": "-", "color": colour, "lw": 0.6, "shrinkA": 0, "shrinkB": 3},
        )


def _signed(value: float, _: float) -> str:
    return "0" if abs(value) < 1e-9 else f"{value:+.4g}".replace("-", "−")


def _plain(value: float, _: float) -> str:
    return f"{value:.4g}"


# --- where the bytes went ------------------------------------------------------------------------------------


def top_parts(cells: Sequence[Cell]) -> list[str]:
    """The parts that are named: the largest shares of any cell; all others are drawn and listed as one."""
    largest: dict[str, float] = {}
    for cell in cells:
        total = sum(cell.parts.values())
        for name, size in cell.parts.items():
            largest[name] = max(largest.get(name, 0.0), size / total if total else 0.0)
    ranked = sorted(largest, key=lambda name: (-largest[name], name))
    return ranked if len(ranked) <= SHADES else ranked[: SHADES - 1]


def parts(cells: Sequence[Cell], key: str) -> str:
    """Stacked bars: the share of each feature or part in the serving bytes of each cell."""
    cells = [cell for cell in cells if sum(cell.parts.values()) > 0]
    if not cells:
        return ""
    named = top_parts(cells)
    left = 12 + _TEXT * max(len(cell.method) for cell in cells)
    width, bar = _WIDTH * 72 - left - 60, 19.0
    keys = [*named, *(["all others"] if any(set(cell.parts) - set(named) for cell in cells) else [])]
    texts = [_clip(name, 40) for name in keys]
    rows, x = 1, 0.0
    spots = []
    for text in texts:
        need = 18 + 4.3 * len(text)
        if x and x + need > width + 50:
            rows, x = rows + 1, 0.0
        spots.append((x, rows))
        x += need
    height = bar * len(cells) + 12 * rows + 16
    with _figure(height / 72) as fig:
        ax = _axes(fig, (left, 4.0, width, bar * len(cells)))
        ax.set_xlim(0, 1)
        ax.set_ylim(len(cells) - 0.5, -0.5)
        ax.spines["bottom"].set_visible(False)
        ax.set_xticks([])
        ax.set_yticks(range(len(cells)), [cell.method for cell in cells])
        ax.tick_params(axis="y", length=0, pad=6)
        ax.grid(False)
        for row, cell in enumerate(cells):
            total, start = sum(cell.parts.values()), 0.0
            sizes = [cell.parts.get(name, 0.0) for name in named]
            for place, size in enumerate([*sizes, max(0.0, total - sum(sizes))]):
                share = size / total
                if share > 1e-9:
                    shade = _shade(min(place, SHADES - 1))
                    ax.barh(row, share, left=start, height=0.68, color=shade, ec=_PAPER, lw=0.8)
                    if share > 0.06:
                        ax.text(
                            start + share / 2,
                            row,
                            f"{share:.0%}",
                            ha="center",
                            va="center",
                            color=f"#1a03{min(place, SHADES - 1):02x}",
                            fontsize=_FONT - 1,
                        )
                start += share
            _text(ax, 1.0, row, format_bytes(total), (6, 0), colour=_MUTED, frame="right")
        for (x, line), text, place in zip(spots, texts, range(len(keys)), strict=True):
            y = height - 9 - 12 * (line - 1)
            at = ((left + x) / (_WIDTH * 72), y / height)
            fig.text(*at, "■", color=_shade(min(place, SHADES - 1)), fontsize=_FONT + 1, va="center")
            fig.text((left + x + 10) / (_WIDTH * 72), at[1], text, color=_INK, fontsize=_FONT - 0.3, va="center")
        return _svg(fig, key, "Where the bytes went", "Shares are in the table beneath.")


# --- speed ---------------------------------------------------------------------------------------------------


def speed(section: Section, key: str) -> str:
    """Training and prediction speed: a dot a cell, a row a method."""
    methods = _by_method(section, [cell for cell in section.cells if cell.seeds])
    columns = (
        ("train_samples_per_second", "training, samples per second (more is better)"),
        ("predict_microseconds_per_row", "prediction, µs per row (less is better)"),
    )
    if not any(not np.isnan(cell.mean(column)) for cells in methods for cell in cells for column, _ in columns):
        return ""
    left = 12 + _TEXT * max(len(cells[0].method) for cells in methods)
    width = (_WIDTH * 72 - left - 40) / 2
    row = 17.0
    with _figure((row * len(methods) + 44) / 72) as fig:
        for number, (column, title) in enumerate(columns):
            ax = _axes(fig, (left + number * (width + 24), 20.0, width, row * len(methods)))
            ax.set_ylim(len(methods) - 0.5, -0.5)
            ax.grid(False)
            most = 0.0
            for place, cells in enumerate(methods):
                values = [value for cell in cells if not np.isnan(value := cell.mean(column))]
                ax.axhline(place, color=_GRID, lw=0.7, zorder=0)
                if values:
                    most = max(most, *values)
                    colour = _colour(cells[0].strategy)
                    ax.plot([min(values), max(values)], [place] * 2, color=colour, lw=1.6, zorder=2)
                    marker = _marker(cells[0].strategy)
                    ax.plot(
                        values,
                        [place] * len(values),
                        marker=marker,
                        ms=5.5,
                        mfc=colour,
                        mec=_PAPER,
                        mew=0.5,
                        lw=0,
                        zorder=3,
                    )
            ax.set_xlim(0, (most or 1) * 1.06)
            ax.xaxis.set_major_formatter(_thousands)
            ax.locator_params(axis="x", nbins=5)
            ax.set_yticks(range(len(methods)), [cells[0].method for cells in methods] if number == 0 else [])
            ax.tick_params(axis="y", length=0, pad=6)
            _text(ax, 0.0, 1.0, title, (0, 7), colour=_INK, frame="both")
        return _svg(fig, key, "Speed of training and prediction", "The numbers are in the table beneath.")


def _thousands(value: float, _: float) -> str:
    return f"{value / 1e6:g} M" if abs(value) >= 1e6 else f"{value / 1e3:g} k" if abs(value) >= 1e4 else f"{value:g}"


# --- drawing -------------------------------------------------------------------------------------------------


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


@contextmanager
def _figure(height: float) -> Iterator[Figure]:
    """A figure under our own style, whatever the user's; height in inches."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "svg.fonttype": "none",
                "svg.hashsalt": "recsys_embed",
                "text.parse_math": False,
                "font.size": _FONT,
                "font.family": "DejaVu Sans",
                "text.color": _INK,
                "axes.edgecolor": _MUTED,
                "axes.labelcolor": _INK,
                "axes.labelsize": _FONT,
                "axes.linewidth": 0.7,
                "xtick.color": _MUTED,
                "ytick.color": _MUTED,
                "xtick.labelcolor": _INK,
                "ytick.labelcolor": _INK,
                "xtick.major.size": 3,
                "ytick.major.size": 0,
                "grid.color": _GRID,
                "grid.linewidth": 0.6,
                "lines.solid_capstyle": "round",
            }
        )
        figure = Figure(figsize=(_WIDTH, height), dpi=72)
        FigureCanvasSVG(figure)
        yield figure


def _axes(fig: Figure, box: tuple[float, float, float, float]) -> Axes:
    """Axes at left, bottom, width, height in points."""
    width, height = fig.get_size_inches() * 72
    ax = fig.add_axes((box[0] / width, box[1] / height, box[2] / width, box[3] / height))
    ax.patch.set_visible(False)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.grid(True, axis="y")
    ax.set_axisbelow(True)
    ax.tick_params(axis="y", length=0)
    return ax


def _text(
    ax: Axes,
    x: float,
    y: float,
    text: str,
    offset: tuple[float, float],
    *,
    colour: str,
    ha: str = "left",
    frame: str = "data",
    halo: bool = False,
) -> None:
    """Text beside a point; ``frame`` says which coordinates are fractions of the axes."""
    coordinates: Any = {
        "data": ax.transData,
        "top": ax.get_xaxis_transform(),
        "right": ax.get_yaxis_transform(),
        "both": ax.transAxes,
    }[frame]
    ax.annotate(
        text,
        (x, y),
        offset,
        xycoords=coordinates,
        textcoords="offset points",
        ha=ha,
        va="bottom" if frame in ("top", "both") else "center_baseline",
        color=colour,
        gid="halo" if halo else None,
        annotation_clip=False,
        zorder=5,
    )


def _by_method(section: Section, cells: Sequence[Cell]) -> list[list[Cell]]:
    groups = [[cell for cell in cells if cell.method == method] for method in section.methods]
    return [group for group in groups if group]


def _variants(lines: Sequence[list[Cell]]) -> list[tuple[list[Cell], int]]:
    """Each line with its number among the lines of its strategy."""
    seen: dict[str, int] = {}
    out = []
    for cells in lines:
        out.append((cells, seen.get(cells[0].strategy, 0)))
        seen[cells[0].strategy] = out[-1][1] + 1
    return out


def _strategy(section: Section, method: str) -> str:
    return next(cell.strategy for cell in section.cells if cell.method == method)


def _colour(strategy: str) -> str:
    place = series(strategy)
    return _INK if place is None else f"#1a01{place:02x}"


def _shade(place: int) -> str:
    return f"#1a02{place:02x}"


def _marker(strategy: str) -> str:
    place = series(strategy)
    return "D" if place is None else list(_MARKERS)[place % len(_MARKERS)]


def _clip(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _svg(fig: Figure, key: str, title: str, description: str) -> str:
    """The figure as an element to put into a page; ``key`` keeps its ids apart from those of other figures."""
    buffer = io.StringIO()
    fig.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="halo"', 'class="halo"', text)
    text = re.sub(
        r'<g id="(?:figure|axes|patch|line2d|text|xtick|ytick|matplotlib\.axis|LineCollection)[^"]*"', "<g", text
    )
    text = re.sub(r'\bid="([^"]+)"', rf'id="{key}-\1"', text)
    text = re.sub(r'href="#([^"]+)"', rf'href="#{key}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{key}-\1)", text)
    text = re.sub(r"(font(?:-family)?: ?(?:[\w.]+px )?)'DejaVu Sans'[^;\"]*", r"\1var(--sans)", text)
    text = re.sub(r"#1a0[0-3][0-9a-f]{2}", lambda found: _COLOURS[found[0]] if found[0] in _COLOURS else found[0], text)
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)
    assert size is not None
    head = (
        f'<svg viewBox="0 0 {size[1]} {size[2]}" role="img" aria-labelledby="{key}-title {key}-desc" '
        f'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
        f'<title id="{key}-title">{html.escape(title)}</title><desc id="{key}-desc">{html.escape(description)}</desc>'
    )
    return head + re.sub(r"\s*\n\s*", "\n", text[text.index(">", text.index("<svg")) + 1 :]).strip()


def budget_name(budget: Budget) -> str:
    """A budget as it was asked for, with what it came to."""
    size = format_bytes(budget.bytes) if budget.bytes else ""
    return f"{budget.text} ({size})" if size and size.replace(" ", "") != budget.text.replace(" ", "") else budget.text
