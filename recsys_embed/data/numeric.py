"""Numeric columns: centred and scaled as the training split says, with a flag where cells are missing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from recsys_embed.errors import DataError

_BLOCK = 65_536


def signed_log(x: np.ndarray) -> np.ndarray:
    """sign(x)·log(1 + \\|x\\|): the usual log1p for counts, and defined for negative numbers too."""
    return np.asarray(np.copysign(np.log1p(np.abs(x)), x))


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
        """Scaled cells, ``[rows]`` float64 to float32; NaN becomes 0."""
        y = signed_log(x) if self.scaling == "log" else x
        return np.nan_to_num((y - self.mean) / self.deviation, copy=False).astype(np.float32)


class Moments:
    """Streaming mean and deviation, over blocks of fixed size, so that the size of the chunks makes no difference."""

    def __init__(self, column: str, scaling: Literal["standard", "log"]) -> None:
        self.column, self.scaling = column, scaling
        self.count = self.missing = 0
        self._origin = self._mean = self._squares = 0.0
        self._held: list[np.ndarray] = []

    def add(self, x: np.ndarray) -> None:
        """Take in cells, ``[rows]`` float64 with NaN where missing."""
        there = x[~np.isnan(x)]
        self.missing += len(x) - len(there)
        self._held.append(signed_log(there) if self.scaling == "log" else there)
        held = np.concatenate(self._held)
        while len(held) >= _BLOCK:
            self._merge(held[:_BLOCK])
            held = held[_BLOCK:]
        self._held = [held]

    def scaler(self) -> Scaler:
        """The scaler these cells give. A column that never varies is only centred.

        Raises:
            DataError: numbers too large to square.
        """
        for held in self._held:
            self._merge(held)
        self._held = []
        with np.errstate(over="ignore"):
            deviation = float(np.sqrt(self._squares / max(self.count, 1)))
        if not np.isfinite(deviation):
            raise DataError("the numbers are too large to be standardised; scale them by 'log'", column=self.column)
        return Scaler(self.column, self.scaling, self._origin + self._mean, deviation or 1.0, self.missing > 0)

    def _merge(self, block: np.ndarray) -> None:
        """Chan's update. Measured from the first cell, which makes a constant column's deviation exactly 0."""
        if not len(block):
            return
        if not self.count:
            self._origin = float(block[0])
        with np.errstate(over="ignore", invalid="ignore"):
            x = block - self._origin
            mean = float(x.mean())
            total = self.count + len(x)
            delta = mean - self._mean
            self._squares += float(np.square(x - mean).sum()) + delta * delta * self.count * len(x) / total
            self._mean += delta * len(x) / total
        self.count = total
