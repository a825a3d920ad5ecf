"""Colours, marks and measures that all figures share.

Colours are stand-ins until :func:`recsys_embed.report.figures.canvas.svg` replaces them by :data:`VARIABLES`.
"""

from __future__ import annotations

from typing import Any

SERIES = 7
"""Colours of methods: ``--series-0`` … in the page's style sheet."""
SHADES = 7
"""Colours of parts of a whole: ``--shade-0`` …"""

INK, MUTED, GRID, PAPER = "#1a0001", "#1a0002", "#1a0003", "#1a0004"
VARIABLES = {
    INK: "currentColor",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    PAPER: "var(--paper)",
    **{f"#1a01{place:02x}": f"var(--series-{place})" for place in range(SERIES)},
    **{f"#1a02{place:02x}": f"var(--shade-{place})" for place in range(SHADES)},
    **{f"#1a03{place:02x}": f"var(--on-shade-{place})" for place in range(SHADES)},
}
"""The CSS of every stand-in."""

MARKERS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚", "X": "✖"}
"""Markers of matplotlib, with the letters that look like them."""
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (2, 1.2)), (0, (6, 1.5, 1.5, 1.5)))
"""Of the lines of one strategy, in turn."""

FONT = 7.5
"""Points."""
WIDTH = 7.6
"""Inches; the page shows figures wider."""
LINE = 9.5
"""Points between two labels."""
LETTER = 4.4
"""Points that a letter takes."""


def shade(place: int) -> str:
    """The colour of a part of a whole; the last one is that of all further parts."""
    return f"#1a02{min(place, SHADES - 1):02x}"


def on_shade(place: int) -> str:
    """The colour of text on :func:`shade`."""
    return f"#1a03{min(place, SHADES - 1):02x}"
