"""How far two sets of frequencies are apart.

The *Jensen-Shannon divergence* (Lin, 1991, section IV) of two distributions p and q over ids is the mean of their
Kullback-Leibler divergences from (p + q) / 2: 0 bits where they are equal, 1 bit where they have no id in common. It
looks at every id, so that samples of one distribution are apart, too, the further the more ids there are for the rows.

The *population stability index* (Lewis, 1994; Siddiqi, 2006) compares few bands instead, here head, torso, tail and
unseen: Σ (q - p) · ln(q / p) over their shares. By its usual reading less than 0.1 is no change and more than 0.25 a
large one. DIFF: half an occurrence is added to each band, without which it is infinite where one is empty.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

HEAD, TORSO, TAIL, UNSEEN = range(4)


@dataclass(frozen=True)
class Frequencies:
    """How often ids occur: ``ids [n]`` int64 in rising order, ``counts [n]`` int64 above 0."""

    ids: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, ids: np.ndarray, counts: np.ndarray) -> Frequencies:
        """Ids ``[m]`` in any order, each as often as ``counts [m]`` says, more than once perhaps."""
        there = counts > 0
        found, places = np.unique(ids[there].astype(np.int64), return_inverse=True)
        sums = np.zeros(len(found), np.int64)
        np.add.at(sums, places, counts[there])
        return cls(found, sums)

    @classmethod
    def of_counts(cls, counts: np.ndarray) -> Frequencies:
        """Of ids that are the places in ``counts [cardinality]``."""
        ids = np.flatnonzero(counts > 0)
        return cls(ids, counts[ids])

    @property
    def total(self) -> int:
        """All occurrences."""
        return int(self.counts.sum())

    def at(self, ids: np.ndarray) -> np.ndarray:
        """Counts ``[m]`` of ids ``[m]``."""
        if not len(self.ids):
            return np.zeros(len(ids), np.int64)
        places = np.minimum(np.searchsorted(self.ids, ids), len(self.ids) - 1)
        return np.where(self.ids[places] == ids, self.counts[places], 0)


@dataclass(frozen=True)
class Distance:
    """Of two sets of frequencies: ``divergence`` is Jensen and Shannon's, in bits; ``stability`` the population
    stability index."""

    divergence: float
    stability: float

    @classmethod
    def between(cls, reference: Frequencies, other: Frequencies) -> Distance | None:
        """None where one of them has no occurrence. Bands are those of the reference."""
        if not reference.total or not other.total:
            return None
        ids = np.union1d(reference.ids, other.ids)
        one, two = reference.at(ids), other.at(ids)
        return cls(divergence(one, two), stability(one, two, bands(ids, one)))


@dataclass(frozen=True)
class Drift:
    """Of one feature, by split: the shares of occurrences that are ``unseen``, with id 0, and of those whose id is
    ``new``, given on the data set's own night, which were unseen the day before; and the distance ``from_train``, from
    the reference's training rows. Of a hashed feature only missing cells have id 0, and no id is new.

    ``from_life``: of the day's training rows from those of all nights before, by the ids there were then, so that what
    was new is unseen; of the whole vocabulary where features share one. None stands where there is nothing to compare.
    """

    unseen: Mapping[str, float | None]
    new: Mapping[str, float | None]
    from_train: Mapping[str, Distance | None]
    from_life: Distance | None = None

    @classmethod
    def of(cls, tree: dict[str, Any]) -> Drift:
        """What :meth:`tree` gave."""
        from_train, life = tree["from_train"], tree["from_life"]
        distances = {split: None if one is None else Distance(**one) for split, one in from_train.items()}
        return cls(tree["unseen"], tree["new"], distances, None if life is None else Distance(**life))

    def tree(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "unseen": dict(self.unseen),
            "new": dict(self.new),
            "from_train": {split: None if one is None else vars(one) for split, one in self.from_train.items()},
            "from_life": None if self.from_life is None else vars(self.from_life),
        }


def divergence(one: np.ndarray, other: np.ndarray) -> float:
    """Jensen and Shannon's, in bits, of counts ``[n]`` and ``[n]`` of the same ids, neither all zero."""
    p, q = one / one.sum(), other / other.sum()
    middle = (p + q) / 2
    total = 0.0
    for part in (p, q):
        there = part > 0
        total += float((part[there] * np.log2(part[there] / middle[there])).sum()) / 2
    return min(max(total, 0.0), 1.0)


def stability(one: np.ndarray, other: np.ndarray, band: np.ndarray) -> float:
    """The population stability index of counts ``[n]`` and ``[n]`` of ids in bands ``[n]``, of which there are four."""
    p, q = ((np.bincount(band, counts, UNSEEN + 1) + 0.5) / (counts.sum() + 2) for counts in (one, other))
    return float(((q - p) * np.log(q / p)).sum())


def bands(ids: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Head, torso, tail or unseen, ``[n]`` int8: thirds of all occurrences, the most frequent ids first; ids of one
    count stay together, where the middle one falls. Unseen are id 0 and what never occurs."""
    found, seen = np.full(len(ids), UNSEEN, np.int8), (ids != 0) & (counts > 0)
    if seen.any():
        _, group = np.unique(-counts[seen], return_inverse=True)
        sizes = np.bincount(group, counts[seen])
        middle = np.cumsum(sizes) - sizes / 2
        found[seen] = np.floor(3 * middle / sizes.sum()).astype(np.int8)[group]
    return found
