"""Numbers and lists of names in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from recsys_embed.report.statistics import LEVEL, Interval
from recsys_embed.report.summary import Cell
from recsys_embed.report.tables.cells import Text

PERCENT = f"{LEVEL:.0%}"


def number(value: float, digits: int = 4) -> str:
    """Fixed digits; what is not defined says so."""
    return "undefined" if np.isnan(value) else f"{value:.{digits}f}".replace("-", "−")


def signed(value: float, digits: int = 4) -> str:
    """With its sign; what rounds to zero has none."""
    if np.isnan(value):
        return "undefined"
    text = f"{value:+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", "−")


def interval(gap: Interval) -> str:
    """The bounds, or nothing where there are none."""
    return f"[{signed(gap.low)}, {signed(gap.high)}]" if gap.defined else ""


def percent(value: float) -> str:
    """One digit below a hundred."""
    return "–" if np.isnan(value) else f"{value:.0%}" if value >= 0.9995 else f"{value:.1%}"


def spread(cell: Cell, column: str, digits: int = 4) -> Text:
    """The mean over seeds, with the standard deviation where there is one."""
    sd = cell.sd(column)
    return Text(number(cell.mean(column), digits), "" if np.isnan(sd) else f"± {sd:.{digits}f}")


def values_text(values: Mapping[str, Any]) -> str:
    """Settings with their names.

    >>> values_text({"tables_lr": 0.0312, "decay": 1e-06})
    'tables lr 0.0312, decay 1e-06'
    """
    return ", ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in values.items())


def listing(names: Iterable[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    *rest, last = names
    return f"{', '.join(rest)} and {last}" if rest else last


def plural(count: int, noun: str) -> str:
    """``1 seed``, ``3 seeds``."""
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def grouped(value: Any) -> str:
    """A number with its thousands apart; anything else as it is."""
    return f"{value:,}" if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)
