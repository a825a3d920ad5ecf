"""Where the bytes went: a stacked bar a method."""

from __future__ import annotations

from collections.abc import Sequence

from recsys_embed.report.figures.canvas import axes, drawing, svg, text_at
from recsys_embed.report.figures.labels import clip
from recsys_embed.report.figures.style import FONT, INK, LETTER, MUTED, PAPER, SHADES, WIDTH, on_shade, shade
from recsys_embed.report.sizes import format_bytes
from recsys_embed.report.summary import Cell


def draw(cells: Sequence[Cell], key: str) -> str:
    """The share of each feature or part in the serving bytes of each cell."""
    cells = [cell for cell in cells if sum(cell.parts.values()) > 0]
    if not cells:
        return ""
    named = top_parts(cells)
    left = 12 + LETTER * max(len(cell.method) for cell in cells)
    width, bar = WIDTH * 72 - left - 60, 19.0
    keys = [*named, *(["all others"] if any(set(cell.parts) - set(named) for cell in cells) else [])]
    texts = [clip(name, 40) for name in keys]
    rows, x = 1, 0.0
    spots = []
    for text in texts:
        need = 18 + 4.3 * len(text)
        if x and x + need > width + 50:
            rows, x = rows + 1, 0.0
        spots.append((x, rows))
        x += need
    height = bar * len(cells) + 12 * rows + 16
    with drawing(height / 72) as fig:
        ax = axes(fig, (left, 4.0, width, bar * len(cells)))
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
                    ax.barh(row, share, left=start, height=0.68, color=shade(place), ec=PAPER, lw=0.8)
                    if share > 0.06:
                        ax.text(
                            start + share / 2,
                            row,
                            f"{share:.0%}",
                            ha="center",
                            va="center",
                            color=on_shade(place),
                            fontsize=FONT - 1,
                        )
                start += share
            text_at(ax, 1.0, row, format_bytes(total), (6, 0), colour=MUTED, frame="right")
        for (x, line), text, place in zip(spots, texts, range(len(keys)), strict=True):
            y = height - 9 - 12 * (line - 1)
            at = ((left + x) / (WIDTH * 72), y / height)
            fig.text(*at, "■", color=shade(place), fontsize=FONT + 1, va="center")
            fig.text((left + x + 10) / (WIDTH * 72), at[1], text, color=INK, fontsize=FONT - 0.3, va="center")
        return svg(fig, key, "Where the bytes went", "Shares are in the table beneath.")


def top_parts(cells: Sequence[Cell]) -> list[str]:
    """The parts that are named: the largest shares of any cell; all others are drawn and listed as one."""
    largest: dict[str, float] = {}
    for cell in cells:
        total = sum(cell.parts.values())
        for name, size in cell.parts.items():
            largest[name] = max(largest.get(name, 0.0), size / total if total else 0.0)
    ranked = sorted(largest, key=lambda name: (-largest[name], name))
    return ranked if len(ranked) <= SHADES else ranked[: SHADES - 1]
