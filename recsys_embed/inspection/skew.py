"""Amounts of which a few are many times the others: they are better scaled by their logarithm."""

from __future__ import annotations

import numpy as np

from recsys_embed.data.numeric import signed_log
from recsys_embed.inspection.sample import Sample

SKEWED = 2.0
"""An exponential distribution's skewness."""
_LARGEST = 1e100  # its cube is finite


def is_skewed(sample: Sample) -> bool:
    """Whether a column's numbers are skewed to the right, above an exponential distribution, and their logarithms
    much less."""
    if np.abs(sample.numbers).max(initial=0) > _LARGEST:
        return True
    before = skewness(sample.numbers, sample.totals)
    return before > SKEWED and abs(skewness(signed_log(sample.numbers), sample.totals)) < 0.5 * before


def skewness(values: np.ndarray, weights: np.ndarray) -> float:
    """The third moment of ``values [n]``, each as often as its weight says, standardised; 0 where they do not vary."""
    away = values - np.average(values, weights=weights)
    variance = np.average(away**2, weights=weights)
    return float(np.average(away**3, weights=weights) / variance**1.5) if variance else 0.0
