"""A drawing from its empty sheet to the SVG that a page takes in."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from recsys_embed.report.figures.style import FONT, GRID, INK, MUTED, VARIABLES, WIDTH

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@contextmanager
def drawing(height: float) -> Iterator[Figure]:
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
                "font.size": FONT,
                "font.family": "DejaVu Sans",
                "text.color": INK,
                "axes.edgecolor": MUTED,
                "axes.labelcolor": INK,
                "axes.labelsize": FONT,
                "axes.linewidth": 0.7,
                "xtick.color": MUTED,
                "ytick.color": MUTED,
                "xtick.labelcolor": INK,
                "ytick.labelcolor": INK,
                "xtick.major.size": 3,
                "ytick.major.size": 0,
                "grid.color": GRID,
                "grid.linewidth": 0.6,
                "lines.solid_capstyle": "round",
            }
        )
        figure = Figure(figsize=(WIDTH, height), dpi=72)
        FigureCanvasSVG(figure)
        yield figure


def axes(fig: Figure, box: tuple[float, float, float, float]) -> Axes:
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


def text_at(
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


def svg(fig: Figure, key: str, title: str, description: str) -> str:
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
    text = re.sub(r"#1a0[0-3][0-9a-f]{2}", lambda found: VARIABLES.get(found[0], found[0]), text)
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', text)
    assert size is not None
    head = (
        f'<svg viewBox="0 0 {size[1]} {size[2]}" role="img" aria-labelledby="{key}-title {key}-desc" '
        f'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink">'
        f'<title id="{key}-title">{html.escape(title)}</title><desc id="{key}-desc">{html.escape(description)}</desc>'
    )
    return head + re.sub(r"\s*\n\s*", "\n", text[text.index(">", text.index("<svg")) + 1 :]).strip()
