"""What a column is: a feature of some kind, or none."""

from __future__ import annotations

from enum import StrEnum

import numpy as np

from recsys_embed.inspection.columns import Column
from recsys_embed.inspection.names import words

FEW_ROWS = 100  # fewer rows with all values different say nothing
MANY_DISTINCT = 20
UNIQUE = 0.999  # of a column's values stand in one row: it is a number for each row
SPLIT = {"train", "val", "test"}

_AMOUNTS = {
    *("age", "amount", "amt", "balance", "cost", "count", "cnt", "distance", "duration", "gain", "height", "hours"),
    *("income", "length", "loss", "minutes", "price", "qty", "quantity", "revenue", "salary", "score", "seconds"),
    *("size", "weight", "width"),
}
_CODES = {"id", "ids", "code", "key", "hash", "no", "type", "category", "class", "group", "bucket", "zip"}
_TIMES = {"time", "timestamp", "ts", "date", "datetime", "day", "hour", "created", "updated", "at", "stamp"}
_EPOCHS = ((946_684_800, 1), (946_684_800_000, 1_000), (946_684_800_000_000, 1_000_000))  # 2000-01-01
_EPOCH_END = 2_051_222_400  # 2035-01-01


class Kind(StrEnum):
    """What a column is taken for; the last six are not features."""

    CATEGORICAL = "categorical"
    NUMERIC = "numeric"
    MULTI_VALUED = "multi_valued"
    LABEL = "label"
    SPLIT = "split"
    TIMESTAMP = "timestamp"
    ID_PER_ROW = "id_per_row"
    CONSTANT = "constant"
    UNREADABLE = "unreadable"

    @property
    def feature(self) -> bool:
        """Whether a model can learn from it."""
        return self in (Kind.CATEGORICAL, Kind.NUMERIC, Kind.MULTI_VALUED)


def kind_of(column: Column) -> Kind:
    """What a column is, the label aside.

    Numeric is what has many distinct values and fractions, negative numbers or the name of an amount. Other whole
    numbers may just as well be ids, and are categorical.
    """
    if column.unreadable is not None:
        return Kind.UNREADABLE
    if column.distinct == 0 or (column.distinct == 1 and not column.missing):
        return Kind.CONSTANT
    if not column.missing and {value for value, _ in column.top(4)} == SPLIT and column.distinct == len(SPLIT):
        return Kind.SPLIT
    if is_timestamp(column):
        return Kind.TIMESTAMP
    if _is_numeric(column):
        return Kind.NUMERIC
    if column.present >= FEW_ROWS and _is_unique(column):
        return Kind.ID_PER_ROW
    return Kind.MULTI_VALUED if column.bags is not None else Kind.CATEGORICAL


def is_timestamp(column: Column) -> bool:
    """Whether it has ISO dates; or numbers that are seconds, milli- or microseconds since 1970, or digits such as
    YYYYMMDD and YYMMDDHH, under a name that says so."""
    if column.dates:
        return column.distinct > 1
    numbers = column.numbers
    if not numbers or not set(words(column.name)) & _TIMES or column.distinct < 2:
        return False
    if any(start <= numbers.low and numbers.high < _EPOCH_END * unit for start, unit in _EPOCHS):
        return True
    digits = column.sample.numbers
    hours = digits % 100 < 24
    return numbers.whole and (_is_calendar(digits) or (bool(hours.all()) and _is_calendar(digits // 100)))


def _is_calendar(digits: np.ndarray) -> bool:
    """Whether numbers are year, month and day in digits: 20141021, or 141021."""
    years, months, days = digits // 10_000, digits // 100 % 100, digits % 100
    lived = _within(years, 1900, 2100) | _within(years, 10, 99)
    return bool((lived & _within(months, 1, 12) & _within(days, 1, 31)).all())


def _within(values: np.ndarray, low: int, high: int) -> np.ndarray:
    return np.asarray((values >= low) & (values <= high))


def _is_numeric(column: Column) -> bool:
    numbers = column.numbers
    if not numbers or numbers.code or numbers.big or column.distinct < min(MANY_DISTINCT, column.present):
        return False
    if not numbers.whole:
        return True
    named = set(words(column.name))
    signed = int((column.sample.numbers < 0).sum()) > 1  # a single one may stand for "unknown" among ids
    return column.distinct >= MANY_DISTINCT and (signed or bool(named & _AMOUNTS and not named & _CODES))


def _is_unique(column: Column) -> bool:
    once = int((column.sample.totals == 1).sum())
    return once >= UNIQUE * len(column.sample.hashes) and column.missing <= 0.1 * column.rows
