"""Importance of what a search drew: a panel a method, a bar a parameter."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from recsys_embed.report.figures.canvas import axes, drawing, svg, text_at
from recsys_embed.report.figures.labels import clip
from recsys_embed.report.figures.methods import colour_of
from recsys_embed.report.figures.style import INK, LETTER, MUTED, WIDTH
from recsys_embed.report.importance import parameter_name

MOST = 20
"""Parameters that are drawn."""


def draw(found: Mapping[str, Mapping[str, float]], vocabularies: Collection[str], key: str) -> str:
    """The most important parameters of each method, in one order; nothing where none is known."""
    found = {method: mine for method, mine in found.items() if mine}
    if not found:
        return ""
    shown = ranked(found)[:MOST]
    names = [clip(parameter_name(name, vocabularies), 34) for name in shown]
    left = 14 + LETTER * max(map(len, names))
    gap, bar = 26.0, 12.5
    width = (WIDTH * 72 - left - 24 - gap * (len(found) - 1)) / len(found)
    most = max(max(mine.values()) for mine in found.values())
    with drawing((bar * len(shown) + 26) / 72) as fig:
        for number, (method, mine) in enumerate(found.items()):
            ax = axes(fig, (left + number * (width + gap), 4.0, width, bar * len(shown)))
            ax.set_xlim(0, most or 1)
            ax.set_ylim(len(shown) - 0.5, -0.5)
            ax.spines["bottom"].set_visible(False)
            ax.set_xticks([])
            ax.set_yticks(range(len(shown)), names if number == 0 else [])
            ax.tick_params(axis="y", length=0, pad=6)
            ax.grid(False)
            for row, name in enumerate(shown):
                value = mine.get(name, 0.0)
                ax.barh(row, value, height=0.66, color=colour_of(method), lw=0)
                text_at(ax, value, row, f"{value:.0%}", (4, 0), colour=MUTED)
            text_at(ax, 0.0, 1.0, method, (0, 5), colour=INK, frame="both")
        return svg(fig, key, "Importance of what the search drew", "Shares of the importance of all parameters.")


def ranked(found: Mapping[str, Mapping[str, float]]) -> list[str]:
    """All parameters, the most important over all methods first."""
    total: dict[str, float] = {}
    for mine in found.values():
        for name, value in mine.items():
            total[name] = total.get(name, 0.0) + value
    return sorted(total, key=lambda name: (-total[name], name))
