"""Which differences are real: a paired bootstrap over test rows and seeds.

Shapes: N test rows, R runs, C cells (a method at a budget, with one run a seed), B resamples.

A row with a weight is one row all the same: it is drawn as the others are, and counts its weight each time.

Rows are resampled with replacement, the same rows for every run, so that what all runs find hard cancels out of a
difference. Seeds are few, often three, and resampling three values gives intervals that are far too narrow: so the
spread over seeds enters by normal multipliers of the deviations from a cell's mean, with the scale of Student's t. For
a difference of two cells that is exactly the paired t distribution, and all cells share the multipliers, so that any
two of them can be compared. The part of the spread over seeds that resampling rows already explains is taken out.

Everything is drawn from a fixed seed: the same runs give the same intervals.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

LEVEL = 0.95
_CHUNK_BYTES = 1 << 26
_BLOCK = 1 << 15
"""Rows × resamples that are summed at once: they stay in the processor's cache."""
_WORK = 500_000_000
"""Rows × runs × resamples that are spent on a study, within the bounds below."""
_LEAST, _MOST = 400, 1000


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval; NaN where undefined."""

    estimate: float
    low: float
    high: float

    @property
    def defined(self) -> bool:
        """Whether there is an interval."""
        return not (np.isnan(self.low) or np.isnan(self.high))

    @property
    def contains_zero(self) -> bool:
        """Whether the sign is open."""
        return bool(self.low <= 0 <= self.high)


def resamples_for(rows: int, runs: int) -> int:
    """How many resamples a study can afford: 400 to 1000."""
    return int(np.clip(_WORK // max(1, rows * runs), _LEAST, _MOST))


def resampled_auc(
    labels: npt.NDArray[np.generic],
    scores: npt.NDArray[np.generic],
    counts: npt.ArrayLike,
    weights: npt.NDArray[np.generic] | None = None,
) -> Floats:
    """AUC of every resample, exact with ties; NaN where a resample holds one class only.

    Rows are sorted once; a resample then costs one cumulative sum.

    Args:
        labels: [N] 0 or 1.
        scores: [N]
        counts: [B, N] how often each resample holds each row.
        weights: [N] what a row counts; by default 1.
    """
    times = np.asarray(counts)
    order = np.argsort(scores, kind="stable")
    positive = labels[order].astype(bool)
    pos, neg = order[positive], order[~positive]
    below = np.searchsorted(scores[neg], scores[pos], side="left")
    upto = np.searchsorted(scores[neg], scores[pos], side="right")
    out = np.full(len(times), np.nan)
    block = max(1, _BLOCK // max(1, len(order)))
    sums: type[np.generic] = np.int32 if len(order) < 1 << 23 else np.int64
    pairs_of: type[np.generic] = np.int64
    if weights is not None:
        sums = pairs_of = np.float64
    for start in range(0, len(times), block):
        some = times[start : start + block]
        if weights is not None:
            some = some * weights.astype(np.float64)
        beneath = np.zeros((len(some), len(neg) + 1), dtype=sums)
        np.cumsum(some.take(neg, axis=1), axis=1, out=beneath[:, 1:], dtype=sums)
        chosen = some.take(pos, axis=1).astype(pairs_of)
        pairs = beneath[:, -1].astype(np.float64) * chosen.sum(axis=1)
        chosen *= beneath.take(below, axis=1) + beneath.take(upto, axis=1).astype(pairs_of)
        known = pairs > 0
        out[start : start + block][known] = chosen.sum(axis=1)[known] / 2 / pairs[known]
    return out


def row_resamples(rows: int, resamples: int, seed: int = 0) -> Iterator[npt.NDArray[np.uint8]]:
    """Counts [b, rows] of resamples with replacement, in chunks that fit memory. The first row of all is the sample."""
    generator = np.random.default_rng(seed)
    size = max(1, _CHUNK_BYTES // rows)
    for start in range(0, resamples + 1, size):
        chunk = np.empty((min(size, resamples + 1 - start), rows), dtype=np.uint8)
        for place in range(len(chunk)):
            if start + place == 0:
                chunk[place] = 1
            else:
                drawn = np.bincount(generator.integers(0, rows, rows), minlength=rows)
                chunk[place] = np.minimum(drawn, 255)
        yield chunk


def bootstrap_rows(
    labels: npt.NDArray[np.generic],
    scores: Sequence[npt.NDArray[np.generic]],
    subsets: Sequence[npt.NDArray[np.intp] | None],
    *,
    resamples: int,
    seed: int = 0,
    weights: npt.NDArray[np.generic] | None = None,
) -> list[Floats]:
    """AUC of every run on every resample of the rows, which may have weights, for each subset of rows (None: all).

    Returns:
        One array [R, 1 + B] a subset; its first column is the sample itself.
    """
    out: list[list[Floats]] = [[] for _ in subsets]
    for chunk in row_resamples(len(labels), resamples, seed):
        for place, subset in enumerate(subsets):
            which = slice(None) if subset is None else subset
            mine = chunk if subset is None else np.ascontiguousarray(chunk[:, subset])
            count = None if weights is None else weights[which]
            runs = [resampled_auc(labels[which], one[which], mine, count) for one in scores]
            out[place].append(np.stack(runs) if runs else np.empty((0, len(chunk))))
    return [np.concatenate(parts, axis=1) for parts in out]


@dataclass(frozen=True)
class Draws:
    """Bootstrap draws of the mean AUC of each cell: ``means [C]`` and ``draws [C, B]``, joint over cells."""

    means: Floats
    draws: Floats

    def difference(self, one: int, other: int) -> Interval:
        """Of cell ``one`` minus cell ``other``."""
        return _interval(self.means[one] - self.means[other], self.draws[one] - self.draws[other])

    def mean(self, one: int) -> Interval:
        """Of a cell's own AUC."""
        return _interval(self.means[one], self.draws[one])

    def ranks(self, cells: Sequence[int]) -> list[tuple[int, int]]:
        """The ranks each of ``cells`` can hold: from 1 + those surely above it, to all but those surely below."""
        above = {(one, other): self.difference(one, other).low > 0 for one in cells for other in cells if one != other}
        return [
            (
                1 + sum(above[other, one] for other in cells if other != one),
                len(cells) - sum(above[one, other] for other in cells if other != one),
            )
            for one in cells
        ]


def draw_cells(aucs: Floats, cell: Sequence[int], seeds: Sequence[int], *, seed: int = 0) -> Draws:
    """Means over seeds, with the uncertainty of rows and seeds.

    A cell with one run, where others have more, takes the others' spread over seeds. Where no cell has more than one
    run the draws say nothing about seeds.

    Args:
        aucs: [R, 1 + B] from :func:`bootstrap_rows`.
        cell: [R] the cell of each run, from 0.
        seeds: [R] the seed of each run.
        seed: of the multipliers.
    """
    cells, kinds = np.asarray(cell), sorted(set(seeds))
    count = int(cells.max()) + 1 if len(cells) else 0
    resamples = aucs.shape[1] - 1
    generator = np.random.default_rng([seed, 1])
    normal = generator.standard_normal((len(kinds), resamples))
    squares = np.cumsum(generator.standard_normal((max(1, len(kinds) - 1), resamples)) ** 2, axis=0)  # chi² by freedom

    members = [np.flatnonzero(cells == one) for one in range(count)]
    means = np.array([aucs[mine, 0].mean() for mine in members])
    draws = np.stack([aucs[mine, 1:].mean(axis=0) for mine in members]) if count else np.empty((0, resamples))
    repeated = [mine for mine in members if len(mine) > 1]
    if not repeated:
        return Draws(means, draws)

    spread = np.array([np.var(aucs[mine, 0], ddof=1) for mine in repeated])
    explained = np.array([_row_share(aucs[mine, 1:]) for mine in repeated])
    total = float(np.nansum(spread))
    kept = float(np.sqrt(max(0.0, 1 - np.nansum(explained) / total))) if total > 0 else 0.0
    pooled = float(np.sqrt(np.nanmean(spread))) if np.isfinite(spread).any() else 0.0
    for one, mine in enumerate(members):
        multipliers = normal[[kinds.index(seeds[run]) for run in mine.tolist()]]
        size = len(mine)
        if size > 1:
            student = np.sqrt((size - 1) / squares[size - 2] / (size * (size - 1)))
            noise = (aucs[mine, 0] - means[one]) @ multipliers * student
        else:
            noise = pooled * multipliers[0]
        draws[one] = draws[one] + kept * noise
    return Draws(means, draws)


def _row_share(aucs: Floats) -> float:
    """The variance over seeds that resampling rows explains: the rows on which one seed is lucky and another is not."""
    size = len(aucs)
    single, mean = aucs.var(axis=1, ddof=1).mean(), aucs.mean(axis=0).var(ddof=1)
    return float(max(0.0, single - mean) * size / (size - 1))


def _interval(estimate: float, draws: Floats) -> Interval:
    known = draws[np.isfinite(draws)]
    if np.isnan(estimate) or 2 * len(known) < len(draws) or len(known) == 0:
        return Interval(float(estimate), float("nan"), float("nan"))
    low, high = np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(estimate), float(low), float(high))
