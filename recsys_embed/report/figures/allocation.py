"""What a search found: the weights that an id of each vocabulary has, by how frequent it is; a panel a find."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from recsys_embed.report.figures.canvas import axes, drawing, svg, text_at
from recsys_embed.report.figures.labels import clip
from recsys_embed.report.figures.methods import colour_of
from recsys_embed.report.figures.style import FONT, LETTER, MUTED, PAPER, WIDTH, on_shade, shade
from recsys_embed.search.choice import method_of
from recsys_embed.search.table import object_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_ROW, _BLOCKS, _GAP, _HEAD, _FOOT = 12.5, 104.0, 16.0, 32.0, 14.0
_LEVELS = 4
"""Shades, each for half the weights of the one before."""


@dataclass(frozen=True)
class Panel:
    """A find and, of each vocabulary, its strategy and the weights of an id in each block."""

    name: str
    strategies: Mapping[str, str]
    weights: Mapping[str, Sequence[float]]

    @property
    def mixed(self) -> bool:
        """Whether its strategy is not the same for all."""
        return len(set(self.strategies.values())) > 1


def panels(finds: Mapping[str, str]) -> tuple[list[Panel], dict[str, float]]:
    """The finds, and all their vocabularies with their ids, the largest first.

    Args:
        finds: the cell ``allocation`` of each.
    """
    shown, ids = list[Panel](), dict[str, float]()
    for name, text in finds.items():
        found: dict[str, Any] = object_of(text)
        if found:
            strategies = {vocabulary: one["strategy"] for vocabulary, one in found.items()}
            shown.append(Panel(name, strategies, {key: one["weights_per_id"] for key, one in found.items()}))
            ids |= {vocabulary: max(ids.get(vocabulary, 0), one["ids"]) for vocabulary, one in found.items()}
    return shown, dict(sorted(ids.items(), key=lambda item: (-item[1], item[0])))


def draw(finds: Mapping[str, str], key: str) -> str:
    """Heat maps of all finds in rows of panels; nothing where no allocation is known."""
    shown, ids = panels(finds)
    if not shown:
        return ""
    names = [f"{clip(name, 24)} ({_count(count)})" for name, count in ids.items()]
    left = 10 + LETTER * max(map(len, names))
    spots, rows = layout(shown, left)
    tall = _HEAD + _ROW * len(ids) + _FOOT
    height = tall * rows
    most = max((max(one) for panel in shown for one in panel.weights.values()), default=0.0)
    with drawing(height / 72) as fig:
        for panel, (x, row) in zip(shown, spots, strict=True):
            ax = axes(fig, (x, height - tall * (row + 1) + _FOOT, _BLOCKS, _ROW * len(ids)))
            ax.set_xlim(0, 1)
            ax.set_ylim(len(ids) - 0.5, -0.5)
            ax.grid(False)
            ax.spines["bottom"].set_visible(False)
            ax.set_xticks([])
            ax.set_yticks(range(len(ids)), names if x == left else [])
            ax.tick_params(axis="y", length=0, pad=5)
            for place, vocabulary in enumerate(ids):
                _cells(ax, place, panel.weights.get(vocabulary), most)
                if panel.mixed and vocabulary in panel.strategies:
                    text_at(ax, 1.0, place, clip(panel.strategies[vocabulary], 18), (4, 0), colour=MUTED)
            text_at(ax, 0.0, 1.0, panel.name, (0, 13), colour=colour_of(method_of(panel.name)), frame="both")
            same = "" if panel.mixed else clip(next(iter(panel.strategies.values())), 24)
            text_at(ax, 0.0, 1.0, same or "strategies beside", (0, 4), colour=MUTED, frame="both")
            text_at(ax, 0.0, 0.0, "frequent", (0, -9), colour=MUTED, frame="both")
            text_at(ax, 1.0, 0.0, "rare", (0, -9), colour=MUTED, frame="both", ha="right")
        return svg(fig, key, "Weights an id, by vocabulary and frequency", "The numbers are in search.csv.")


def layout(shown: Sequence[Panel], left: float) -> tuple[list[tuple[float, int]], int]:
    """Where each panel begins, and in which row; and how many rows there are."""
    spots, x, row = [], left, 0
    for panel in shown:
        beside = LETTER * min(18, max(map(len, panel.strategies.values()))) + 6 if panel.mixed else 0.0
        need = max(_BLOCKS + beside, LETTER * len(panel.name))
        if x > left and x + need > WIDTH * 72 - 4:
            x, row = left, row + 1
        spots.append((x, row))
        x += need + _GAP
    return spots, row + 1


def _cells(ax: Axes, place: int, weights: Sequence[float] | None, most: float) -> None:
    """The blocks of a vocabulary: one cell where all are equal."""
    if weights is None:
        text_at(ax, 0.5, place, "–", (0, 0), colour=MUTED, ha="center")
        return
    values = weights if len(set(weights)) > 1 else weights[:1]
    width = 1 / len(values)
    for number, value in enumerate(values):
        level = _level(value, most)
        face = PAPER if level is None else shade(level)
        ax.barh(place, width, left=number * width, height=0.94, color=face, ec=PAPER, lw=0.8)
        if len(values) <= 8:
            colour = MUTED if level is None else on_shade(level)
            at = ((number + 0.5) * width, place)
            ax.text(*at, weight_text(value), ha="center", va="center_baseline", color=colour, fontsize=FONT - 1)


def _level(value: float, most: float) -> int | None:
    """The shade of some weights: the darkest for more than half of the most there are; None for no weights."""
    return None if value <= 0 else min(_LEVELS - 1, math.floor(math.log2(most / value)))


def weight_text(value: float) -> str:
    """Two digits.

    >>> [weight_text(value) for value in (0, 0.004, 0.147, 1.0, 1.32, 16.0, 128.4)]
    ['0', '<.01', '0.15', '1', '1.3', '16', '128']
    """
    if 0 < value < 0.01:
        return "<.01"
    return f"{value:.0f}" if value >= 10 else f"{round(value, 2 if value < 1 else 1):g}"


def _count(count: float) -> str:
    return f"{count / 1e6:.3g}M" if count >= 1e6 else f"{count / 1e3:.3g}k" if count >= 1e4 else f"{count:,.0f}"
