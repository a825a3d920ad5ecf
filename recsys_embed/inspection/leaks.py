"""How well a single column predicts the label in rows that it was not fitted to."""

from __future__ import annotations

import math

import numpy as np

from recsys_embed.inspection.columns import Column
from recsys_embed.training.metrics import auc

BINS = 64
LEAST = 20  # rows of each class: with fewer a good AUC may be chance
PRIOR = 1.0  # rows at the base rate that are added to every value's


def leak_auc(column: Column, meaning: np.ndarray) -> float:
    """AUC of the label by the column alone, out of fold; nan where a class has few rows.

    Each value's score in a fold is the share of positives among its rows in the other folds, drawn to the base rate:
    values that stand in one row, or seldom, predict nothing, however many of them there are. Numbers are scored by
    :data:`BINS` bins of equally many rows too, and the better of both counts. Of a column with more values than are
    counted, it is the AUC in the rows of a random sample of the values.

    ``meaning [labels]`` says of each label's number whether it is positive (1), negative (0) or neither.
    """
    sample = column.sample
    counts = sample.counts
    counts = np.pad(counts, ((0, 0), (0, 0), (0, len(meaning) - counts.shape[2])))
    missing = np.pad(column.missing_counts, ((0, 0), (0, len(meaning) - column.missing_counts.shape[1])))
    positives = np.concatenate([counts[..., meaning == 1].sum(2), [missing[:, meaning == 1].sum(1) * sample.share]])
    negatives = np.concatenate([counts[..., meaning == 0].sum(2), [missing[:, meaning == 0].sum(1) * sample.share]])
    best = _out_of_fold(positives, negatives)
    if column.numbers and len(sample.hashes) > BINS:
        order = np.argsort(sample.numbers, kind="stable")
        rows = (positives + negatives)[:-1].sum(1)[order]
        before = np.cumsum(rows) - rows
        bins = np.empty(len(positives), np.int64)
        bins[order] = np.minimum(before * BINS / max(rows.sum(), 1), BINS - 1)
        bins[-1] = BINS
        grouped = _out_of_fold(_sums(positives, bins), _sums(negatives, bins))
        best = grouped if math.isnan(best) else max(best, grouped)
    return best


def _sums(values: np.ndarray, bins: np.ndarray) -> np.ndarray:
    sums = np.zeros((BINS + 1, values.shape[1]))
    np.add.at(sums, bins, values)
    return sums


def _out_of_fold(positives: np.ndarray, negatives: np.ndarray) -> float:
    """AUC over values and folds, ``[values, folds]`` each."""
    total = positives.sum() + negatives.sum()
    if min(positives.sum(), negatives.sum()) < LEAST:
        return math.nan
    rate = positives.sum() / total
    other_positives = positives.sum(1, keepdims=True) - positives
    others = other_positives + negatives.sum(1, keepdims=True) - negatives
    scores = ((other_positives + PRIOR * rate) / (others + PRIOR)).ravel()
    labels = np.repeat([1.0, 0.0], len(scores))
    return auc(labels, np.tile(scores, 2), np.concatenate([positives.ravel(), negatives.ravel()]))
