"""Columns that say the same: each value of one always beside the same value of the other."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from recsys_embed.inspection.columns import Column

LEAST_ROWS = 100
LEAST_SHARED = 100  # values expected in both of two samples: with fewer nothing can be said
_CLOSE = 0.03  # distinct counts that are estimates


def twins(columns: Sequence[Column]) -> list[list[Column]]:
    """Groups of columns that are 1:1, a missing cell taken as one more value.

    A value stands in a set of rows, of which the sample has a hash: two columns are 1:1 where they have the same sets.
    Where there are more values than the sample holds, each column's sample is another random part of its values, and of
    two that are 1:1 as many have their rows in common as chance has it.
    """
    groups: list[list[Column]] = []
    for column in filter(_tells, columns):
        found = next((group for group in groups if _same(group[0], column)), None)
        groups.append([column]) if found is None else found.append(column)
    return [group for group in groups if len(group) > 1]


def _tells(column: Column) -> bool:
    """Whether its rows are many and some have a value in common: few rows, or all different ones, match by chance."""
    return column.rows >= LEAST_ROWS and bool((column.sample.totals > 1).any())


def _same(one: Column, other: Column) -> bool:
    a, b = one.sample, other.sample
    if one.missing != other.missing or one.missing_rows[0] != other.missing_rows[0] or a.cut != b.cut:
        return False
    if not a.cut:
        return len(a.rows) == len(b.rows) and bool((np.sort(a.rows) == np.sort(b.rows)).all())
    if abs(one.distinct - other.distinct) > _CLOSE * one.distinct:
        return False
    # Rare values may share their rows by chance, as all that stand once in the same row do.
    mine, its = a.rows[a.totals > 1], b.rows[b.totals > 1]
    expected = len(mine) * b.share
    return expected >= LEAST_SHARED and len(np.intersect1d(mine, its)) >= expected - 4 * math.sqrt(expected)
