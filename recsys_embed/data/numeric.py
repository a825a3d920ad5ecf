"""Numeric columns: centred and scaled as the training split says, with a flag where cells are missing."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np

from recsys_embed.data.chunks import Chunk
from recsys_embed.errors import DataError

_BLOCK = 65_536
_SPLIT = 2.0**27 + 1
_LARGEST = 1e150  # its square is finite
_UNIT = 2**1074
TOO_FAR = "the number is too far from those of the training rows; scale them by 'log'"
_TOO_LARGE = "the numbers are too large to be standardised; scale them by 'log'"


def signed_log(x: np.ndarray) -> np.ndarray:
    """sign(x)·log(1 + \\|x\\|): the usual log1p for counts, and defined for negative numbers too."""
    return np.asarray(np.copysign(np.log1p(np.abs(x)), x))


def numbers_of(chunk: Chunk, column: str, scaling: str) -> np.ndarray:
    """Cells of a numeric column, ``[rows]`` float64 with NaN where missing.

    Raises:
        DataError: a cell that is not a number, or too large to be squared where the scaling asks for that.
    """
    x = chunk.numbers(column)
    if scaling == "standard":
        large = np.abs(x) > _LARGEST
        if large.any():
            index = int(large.argmax())
            raise chunk.error(_TOO_LARGE, column, index, float(x[index]))
    return x


@dataclass(frozen=True)
class Scaler:
    """``(f(x) − mean) / deviation``, f the identity (``standard``) or :func:`signed_log` (``log``).

    A missing cell becomes 0, the mean; with ``flag`` (cells are missing in the training split) a second column says so.
    """

    column: str
    scaling: Literal["standard", "log"]
    mean: float = 0.0
    deviation: float = 1.0
    flag: bool = False

    def transform(self, x: np.ndarray) -> np.ndarray:
        """Scaled cells, ``[rows]`` float64 to float32; NaN becomes 0, and what float32 cannot hold infinite."""
        y = signed_log(x) if self.scaling == "log" else x
        with np.errstate(over="ignore"):
            scaled = ((y - self.mean) / self.deviation).astype(np.float32)
        return np.nan_to_num(scaled, copy=False, posinf=np.inf, neginf=-np.inf)


class Moments:
    """Mean and deviation from exact sums: how the cells are cut up and in which order they come makes no difference."""

    def __init__(self, column: str, scaling: Literal["standard", "log"]) -> None:
        self.column, self.scaling = column, scaling
        self.count = self.missing = 0
        self._sum, self._squares = ExactSum(), ExactSum()

    def add(self, x: np.ndarray) -> None:
        """Take in cells, ``[rows]`` float64 with NaN where missing.

        Raises:
            DataError: numbers too large to square.
        """
        there = x[~np.isnan(x)]
        self.missing += len(x) - len(there)
        self.count += len(there)
        if self.scaling == "log":
            there = signed_log(there)
        if len(there) and np.abs(there).max() > _LARGEST:
            raise DataError(_TOO_LARGE, column=self.column)
        self._sum.add(there)
        high = there * _SPLIT
        high = high - (high - there)
        low = there - high  # the halves' products have 53 bits at most, so they are exact (Dekker, 1971)
        for product in (high * high, 2 * high * low, low * low):
            self._squares.add(product)

    def scaler(self) -> Scaler:
        """The scaler these cells give. A column that never varies is only centred."""
        of = max(self.count, 1) * _UNIT
        mean = Fraction(self._sum.total, of)
        variance = Fraction(self._squares.total, of) - mean**2
        deviation = math.sqrt(max(variance, Fraction(0)))
        return Scaler(self.column, self.scaling, float(mean), deviation or 1.0, self.missing > 0)

    def tree(self) -> list[int]:
        """What was summed, as JSON."""
        return [self.count, self.missing, self._sum.total, self._squares.total]

    def merge(self, tree: Sequence[int]) -> None:
        """Add what another's :meth:`tree` holds."""
        count, missing, total, squares = tree
        self.count += count
        self.missing += missing
        self._sum.total += total
        self._squares.total += squares


class ExactSum:
    """The sum of float64 numbers without rounding: ``total`` in units of 2**-1074, of which each is a multiple."""

    def __init__(self) -> None:
        self.total = 0

    def add(self, x: np.ndarray) -> None:
        """Add finite numbers ``[n]``."""
        for begin in range(0, len(x), _BLOCK):
            mantissa, exponent = np.frexp(x[begin : begin + _BLOCK])
            whole = np.ldexp(mantissa, 53)  # integers below 2**53
            upper = np.trunc(whole * 2.0**-26)
            lowest = int(exponent.min())
            # Sums of at most 2**16 integers below 2**28: exact in float64.
            for part, shift in ((upper, 26), (whole - upper * 2.0**26, 0)):
                for place, value in enumerate(np.bincount(exponent - lowest, part).tolist()):
                    if value:
                        at = lowest + place - 53 + shift + 1074
                        self.total += int(value) << at if at >= 0 else int(value) >> -at
