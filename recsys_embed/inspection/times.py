"""Columns that say when, and whether rows can be split by them."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np

from recsys_embed.inspection.columns import Column
from recsys_embed.inspection.names import words

CROWDED = 0.1
"""Rows at one time: with fewer each, the fractions 0.8, 0.1 and 0.1 all have rows."""

_TIMES = {"time", "timestamp", "ts", "date", "datetime", "day", "hour", "created", "updated", "at", "stamp"}
_BEGIN, _END = 946_684_800, 2_051_222_400  # seconds since 1970 in the years 2000 and 2035
_UNITS = (1, 1_000, 1_000_000, 1_000_000_000)  # a second's


def is_timestamp(column: Column) -> bool:
    """Whether it has ISO dates; or numbers that are seconds, milli-, micro- or nanoseconds since 1970, or digits such
    as YYYYMMDD and YYMMDDHH, under a name that says so."""
    if column.distinct < 2:
        return False
    if column.dates:
        return True
    named = bool(set(words(column.name)) & _TIMES)
    return named and bool(column.numbers) and (_in_digits(column) or _unit(column) is not None)


def span(column: Column) -> tuple[str, str]:
    """From when to when, as it stands in the file; what is counted since 1970 is turned into dates."""
    if column.dates:
        return column.dates.low, column.dates.high
    unit = None if _in_digits(column) else _unit(column)
    low, high = (
        f"{number:.0f}" if unit is None else datetime.fromtimestamp(number / unit, UTC).strftime("%Y-%m-%d %H:%M")
        for number in (column.numbers.low, column.numbers.high)
    )
    return low, high


def unordered(column: Column) -> str | None:
    """Why rows cannot be split by a timestamp; None where they can."""
    if column.missing:
        return f"it is missing in {column.missing:,} {'row' if column.missing == 1 else 'rows'}"
    if column.dates and not column.dates.alike:
        return "it is not written in one way, so that its text is not in order"
    if column.numbers and column.floats and column.numbers.big:
        return "its floats have lost digits"
    most = max((count for _, count in column.top(1)), default=0) + column.frequent.lost
    if most >= CROWDED * column.rows:
        return f"a single time has {most / column.rows:.0%} of the rows"
    return None


def _unit(column: Column) -> int | None:
    numbers = column.numbers
    return next((unit for unit in _UNITS if _BEGIN * unit <= numbers.low and numbers.high < _END * unit), None)


def _in_digits(column: Column) -> bool:
    """Whether numbers are year, month and day in digits, or these and the hour."""
    digits = column.sample.numbers
    return column.numbers.whole and (
        _is_calendar(digits) or (bool((digits % 100 < 24).all()) and _is_calendar(digits // 100))
    )


def _is_calendar(digits: np.ndarray) -> bool:
    """Whether numbers are year, month and day in digits: 20141021, or 141021."""
    years, months, days = digits // 10_000, digits // 100 % 100, digits % 100
    lived = _within(years, 1900, 2100) | _within(years, 10, 99)
    return bool((lived & _within(months, 1, 12) & _within(days, 1, 31)).all())


def _within(values: np.ndarray, low: int, high: int) -> np.ndarray:
    return np.asarray((values >= low) & (values <= high))
