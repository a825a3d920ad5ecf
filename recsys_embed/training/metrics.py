"""How good predicted probabilities are, exactly: no sampling, no histogram.

Shapes: N rows. ``labels [N]`` are 0 or 1, ``scores [N]`` are probabilities (any finite number for :func:`auc`),
``weights [N]`` are not negative. A metric that the rows do not define (one class only, no rows) is nan, never a
number that looks like a result. A score that is not finite raises: dropping it would flatter the model.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from recsys_embed.errors import DataError, DivergedError

BUCKETS = ("head", "torso", "tail", "unseen")
CLIP = 1e-15
"""Probabilities are kept this far from 0 and 1 in a logarithm: a certain and wrong row costs 34.5, not infinity."""

_Array = NDArray[np.float64]


def auc(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Area under the ROC curve: the chance that a positive row scores above a negative one, ties counting half.

    Exact, by one sort. nan with one class.

    Raises:
        DivergedError: a score is not finite.
        DataError: lengths differ, a label is neither 0 nor 1, or a weight is negative.
    """
    y, s, w = _checked(labels, scores, weights)
    order = np.argsort(s, kind="stable")
    s, positive = s[order], (y * w)[order]
    negative = w[order] - positive
    starts = np.flatnonzero(np.r_[True, s[1:] != s[:-1]]) if len(s) else np.zeros(0, dtype=np.intp)
    if len(starts) == len(s):  # no ties
        pairs = float(positive @ (np.cumsum(negative) - negative / 2)) if len(s) else 0.0
    else:
        positive, negative = np.add.reduceat(positive, starts), np.add.reduceat(negative, starts)
        pairs = float(positive @ (np.cumsum(negative) - negative / 2))
    possible = float(positive.sum()) * float(negative.sum())
    return pairs / possible if possible > 0 else math.nan


def logloss(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Mean negative log likelihood in nats, of probabilities clipped to [1e-15, 1 - 1e-15]; errors as :func:`auc`."""
    y, p, w = _checked(labels, scores, weights)
    p = np.clip(p, CLIP, 1 - CLIP)
    total = float(w.sum())
    return float(-(w @ np.where(y == 1, np.log(p), np.log1p(-p)))) / total if total > 0 else math.nan


def normalised_entropy(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Logloss over that of predicting these rows' own base rate: below 1 is better than knowing the rate alone.

    He et al., "Practical Lessons from Predicting Clicks on Ads at Facebook", 2014, section 2. nan with one class.
    """
    y, _, w = _checked(labels, scores, weights)
    total = float(w.sum())
    rate = float(y @ w) / total if total > 0 else 0.0
    if not 0 < rate < 1:
        return math.nan
    return logloss(labels, scores, weights) / -(rate * math.log(rate) + (1 - rate) * math.log1p(-rate))


def calibration(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Mean score over mean label: 1 is right, above 1 predicts too much. nan without a positive row."""
    y, p, w = _checked(labels, scores, weights)
    positives = float(y @ w)
    return float(p @ w) / positives if positives > 0 else math.nan


def evaluate(
    labels: ArrayLike, scores: ArrayLike, buckets: ArrayLike | None = None, weights: ArrayLike | None = None
) -> dict[str, float]:
    """All metrics: auc, logloss, ne, calibration, and auc_head, auc_torso, auc_tail, auc_unseen.

    ``buckets [N]`` are 0 head, 1 torso, 2 tail, 3 unseen; without them the four are nan.
    """
    y, p, w = _checked(labels, scores, weights)
    result = {
        "auc": auc(y, p, w),
        "logloss": logloss(y, p, w),
        "ne": normalised_entropy(y, p, w),
        "calibration": calibration(y, p, w),
    }
    which = None if buckets is None else np.asarray(buckets)
    if which is not None and which.shape != y.shape:
        raise DataError(f"{len(which)} buckets for {len(y)} rows")
    for number, name in enumerate(BUCKETS):
        here = slice(0) if which is None else which == number
        result[f"auc_{name}"] = auc(y[here], p[here], w[here])
    return result


def _checked(labels: ArrayLike, scores: ArrayLike, weights: ArrayLike | None) -> tuple[_Array, _Array, _Array]:
    y, s = np.asarray(labels, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    w = np.ones_like(y) if weights is None else np.asarray(weights, dtype=np.float64)
    if y.ndim != 1 or s.shape != y.shape or w.shape != y.shape:
        raise DataError(f"labels {y.shape}, scores {s.shape} and weights {w.shape} must be one row each")
    finite = np.isfinite(s)
    if not finite.all():
        row = int(np.argmin(finite))
        raise DivergedError(f"{int((~finite).sum())} of {len(s)} scores are not finite, first in row {row}: {s[row]}")
    wrong = (y != 0) & (y != 1)
    if wrong.any():
        row = int(np.argmax(wrong))
        raise DataError("a label is 0 or 1", row=row + 1, value=float(y[row]))
    if not (w >= 0).all() or not np.isfinite(w).all():
        raise DataError("weights are finite and not negative")
    return y, s, w
