"""Sizes and budgets in words."""

from __future__ import annotations

import math

from recsys_embed.report.summary import Budget


def format_bytes(size: float) -> str:
    """Decimal units, three digits.

    >>> [format_bytes(size) for size in (999, 20_480, 999_999, 2_048_000, 64e9)]
    ['999 B', '20.5 kB', '1 MB', '2.05 MB', '64 GB']
    """
    if math.isnan(size):
        return "–"
    for unit in ("B", "kB", "MB", "GB"):
        digits = f"{size:.0f}" if unit == "B" or size >= 100 else f"{size:.3g}"
        if float(digits) < 1000:
            return f"{digits} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


def budget_name(budget: Budget) -> str:
    """A budget as it was asked for, with what it came to."""
    size = format_bytes(budget.bytes) if budget.bytes else ""
    return f"{budget.text} ({size})" if size and size.replace(" ", "") != budget.text.replace(" ", "") else budget.text
