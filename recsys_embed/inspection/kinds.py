"""What a column is: a feature of some kind, or none."""

from __future__ import annotations

from enum import StrEnum

import numpy as np
import pandas as pd

from recsys_embed.inspection.columns import Column
from recsys_embed.inspection.names import words
from recsys_embed.inspection.sample import Sample
from recsys_embed.inspection.times import is_timestamp

FEW_ROWS = 100  # fewer rows with all values different say nothing
MANY_DISTINCT = 20
UNIQUE = 0.999  # of a column's values stand in one row: it is a number for each row
SPLIT = {"train", "val", "test"}
ROWS_A_VALUE = 10  # with fewer, how frequent values are is chance
SMOOTH = 0.75  # correlation of the ranks of neighbours' frequencies

_AMOUNTS = {
    *("age", "amount", "amt", "balance", "cost", "count", "cnt", "distance", "duration", "gain", "height", "hours"),
    *("income", "length", "loss", "minutes", "price", "qty", "quantity", "revenue", "salary", "score", "seconds"),
    *("size", "weight", "width"),
}
_CODES = {"id", "ids", "code", "key", "hash", "no", "type", "category", "class", "group", "bucket", "zip"}
_ROUNDS = {"month", "week", "weekday", "day", "hour", "minute"}  # which begin again


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
    """What a column is, the label aside."""
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


def _is_numeric(column: Column) -> bool:
    """Whether numbers with many different values are amounts: with fractions, or below zero, or by name, or by how
    frequent they are. Whole numbers of which nothing tells may just as well be ids, and are taken for these."""
    numbers = column.numbers
    if not numbers or numbers.code or column.distinct < min(MANY_DISTINCT, column.present):
        return False
    if not numbers.whole:
        return True
    if numbers.big:  # of so many digits are ids
        return False
    named = set(words(column.name))
    signed = int((column.sample.numbers < 0).sum()) > 1  # a single one may stand for "unknown" among ids
    if signed or column.distinct < MANY_DISTINCT:
        return column.distinct >= MANY_DISTINCT
    if named & (_AMOUNTS | _CODES):
        return not named & _CODES
    return not named & _ROUNDS and _is_smooth(column)


def is_doubtful(column: Column) -> bool:
    """Whether a categorical column has whole numbers that may be amounts, for all that its name tells."""
    numbers = column.numbers
    amounts = bool(numbers) and not numbers.code and not numbers.big and column.distinct >= MANY_DISTINCT
    return amounts and not set(words(column.name)) & (_CODES | _ROUNDS)


def _is_smooth(column: Column) -> bool:
    """Whether neighbouring numbers are about as frequent, as those of an age or a count are, and ids are not: unless
    these are numbered by falling frequency, from the lowest on and without gaps."""
    sample: Sample = column.sample
    if column.present < ROWS_A_VALUE * column.distinct:
        return False
    order = np.argsort(sample.numbers)
    rows = sample.totals[order]
    ranks = pd.Series(rows).rank().to_numpy()
    if min(np.ptp(ranks[1:]), np.ptp(ranks[:-1])) == 0 or np.corrcoef(ranks[1:], ranks[:-1])[0, 1] < SMOOTH:
        return False
    gaps = column.distinct < 0.5 * (column.numbers.high - column.numbers.low + 1)
    return gaps or int(rows.argmax()) > 0


def _is_unique(column: Column) -> bool:
    return column.sample.once >= UNIQUE and column.missing <= 0.1 * column.rows
