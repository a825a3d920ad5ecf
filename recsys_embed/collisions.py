"""How much traffic shares rows: expected collisions of a plan, without training.

Ids are put into an order: by falling training frequency, then by vocabulary and id. Two shares of lookups are told:

- **shared**: the part of an id's slots whose row an id before it reads as well, of any feature. With one slot and a
  table for one feature these are the ids without a slot of their own: of n ids in m rows, all equally frequent, in
  expectation 1 - r (1 - exp(-1/r)) at r = m/n.
- **merged**: ids that read the same rows as an id before them in their own feature: no model can tell the two apart.

Where rows are drawn by hashes both are expectations over hash seeds; digits are counted. Where training gives ids rows
of their own (``cafe``), they are told as though it had not yet: they are bounds from above.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from recsys_embed.embeddings.base import Strategy
from recsys_embed.embeddings.index_maps import Digits, IndexMap, Stretch
from recsys_embed.features import Feature

PARTS = ("all", "head", "torso", "tail")

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Collisions:
    """Shares of lookups, by part: ``all``; ``head``, ``torso`` and ``tail`` are each feature's lookups in thirds by the
    training frequency of their id."""

    shared: dict[str, float]
    merged: dict[str, float]


def collisions(strategies: Sequence[Strategy]) -> Collisions:
    """Of the strategies of one layer. Every id counts once where a feature has no ``counts``."""
    lookups, shared, merged = np.zeros(len(PARTS)), np.zeros(len(PARTS)), np.zeros(len(PARTS))
    for strategy in strategies:
        readers = _readers(strategy)
        for place, feature in enumerate(strategy.features):
            counts = _counts(feature)
            order = np.argsort(-counts, kind="stable")
            weights = counts[order]
            parts = np.concatenate([[np.ones_like(weights)], _thirds(weights)]) * weights
            lookups += parts.sum(1)
            shared += parts @ _shared(strategy, readers, place, order)
            merged += parts @ _merged(strategy, place, order)
    told = [dict(zip(PARTS, (found / np.maximum(lookups, 1)).tolist(), strict=True)) for found in (shared, merged)]
    return Collisions(*told)


def _map(strategy: Strategy, read: str) -> IndexMap:
    index_map = strategy.index_maps[read]
    assert isinstance(index_map, IndexMap)
    return index_map


def _counts(feature: Feature) -> Array:
    return np.ones(feature.size) if feature.counts is None else np.asarray(feature.counts, np.float64)


def _thirds(weights: Array) -> Array:
    """``[3, ids]`` of ids by falling weight: 1 where an id belongs; ids of one weight stay together."""
    distinct, first = np.unique(-weights, return_inverse=True)
    traffic = np.bincount(first, weights, minlength=len(distinct))
    middle = np.cumsum(traffic) - traffic / 2
    third = np.minimum(np.floor(3 * middle / max(traffic.sum(), 1)), 2)[first]
    return np.stack([third == one for one in range(3)]).astype(np.float64)


def _readers(strategy: Strategy) -> dict[str, dict[str, tuple[Array, float]]]:
    """For each table whose rows are drawn, each vocabulary that reads it: its sorted frequencies, and the log of the
    chance that one of its ids misses a given row."""
    readers: dict[str, dict[str, tuple[Array, float]]] = {}
    for read, homes in strategy.reads().items():
        if (odds := _map(strategy, read).odds()) is not None:
            for place, feature in enumerate(strategy.features):
                for table in dict.fromkeys(homes[place]):
                    slots = [slot for slot, home in enumerate(homes[place]) if home == table]
                    missed = float(odds.miss[place, slots].sum())
                    readers.setdefault(table, {})[feature.vocab] = np.sort(_counts(feature)), missed
    return readers


def _shared(
    strategy: Strategy, readers: dict[str, dict[str, tuple[Array, float]]], place: int, order: NDArray[np.int64]
) -> Array:
    """``[ids]`` in their order: the expected part of slots that an id before it reads."""
    feature = strategy.features[place]
    weights, slots, found = _counts(feature)[order], 0, np.zeros(len(order))
    for read, homes in strategy.reads().items():
        index_map = _map(strategy, read)
        drawn = index_map.odds() is not None
        if not drawn and not isinstance(index_map, Digits):
            continue  # a row per id, or rows that training will give
        for slot, table in enumerate(homes[place]):
            slots += 1
            if isinstance(index_map, Digits):
                rows = index_map.digit(torch.from_numpy(order), place, slot).numpy()
                again = np.ones(len(order))
                again[np.unique(rows, return_index=True)[1]] = 0
                found += again
            else:
                found += _taken(readers[table], feature.vocab, weights)
    return found / max(slots, 1)


def _taken(readers: dict[str, tuple[Array, float]], vocabulary: str, weights: Array) -> Array:
    """The chance that the row of an id, of one slot in one table, is read by an id before it."""
    missed = np.zeros(len(weights))
    for name, (counts, log_missed) in readers.items():
        if name == vocabulary:
            before: NDArray[np.int64] = np.arange(len(weights))
        else:
            before = len(counts) - np.searchsorted(counts, weights, side="left" if name < vocabulary else "right")
        missed += np.where(before > 0, before * log_missed if np.isfinite(log_missed) else -np.inf, 0.0)
    taken: Array = -np.expm1(missed)
    return taken


def _merged(strategy: Strategy, place: int, order: NDArray[np.int64]) -> Array:
    """``[ids]`` in their order: the chance that an id before it in its feature reads the same rows."""
    odds = [_map(strategy, read).odds() for read in strategy.index_maps]
    drawn = [float(one.same[place].sum()) for one in odds if one is not None]
    before = np.arange(len(order))
    if not drawn:
        return _rowless(strategy, place, order)
    if len(drawn) < len(odds) and not strategy.absent:  # told apart by a row for each id, or by digits that differ
        return np.zeros(len(order))
    if sum(drawn) == 0:  # one row for all
        return np.minimum(before, 1.0)
    merged: Array = -np.expm1(before * np.log1p(-np.exp(sum(drawn))))
    return merged


def _rowless(strategy: Strategy, place: int, order: NDArray[np.int64]) -> Array:
    """``[ids]`` in their order, of rows that are not drawn: 1 for ids that read none, as another one before them."""
    none = np.ones(len(order), bool)
    for read in strategy.index_maps:
        index_map = _map(strategy, read)
        if not isinstance(index_map, Stretch):
            return np.zeros(len(order))
        none &= index_map.row(torch.from_numpy(order), place).numpy() < 0
    return (none & (np.cumsum(none) > 1)).astype(np.float64)
