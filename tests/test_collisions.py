"""Expected collisions, against counts over hash seeds and closed forms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from recsys_embed import EmbeddingLayer, Feature
from recsys_embed.collisions import PARTS, collisions
from recsys_embed.embeddings.hash import Hash
from recsys_embed.ids import Ids

SEEDS = 100


def zipf(size: int, seed: int = 0) -> np.ndarray:
    """Frequencies, some of them equal, in no order."""
    counts = (1000 / np.arange(1, size + 1)).astype(np.int64)
    return np.random.default_rng(seed).permutation(counts)


FEATURES = (Feature("user", 90, counts=zipf(90)), Feature("item", 40, counts=zipf(40, 1)))


def plan_of(features: Any, strategy: Any, budget: Any, seed: int = 0, dim: int = 4) -> Any:
    return EmbeddingLayer(features, dim, strategy=strategy, budget=budget, exact=(), hash_seed=seed).plan.strategies


def thirds(counts: np.ndarray) -> np.ndarray:
    """By brute force: the third of the traffic in which the middle of an id's frequency falls."""
    total = counts.sum()
    middle = np.array([counts[counts > one].sum() + counts[counts == one].sum() / 2 for one in counts])
    return np.minimum(3 * middle / total, 2).astype(int)


def counted(strategies: Any) -> dict[str, np.ndarray]:
    """Shares of lookups by part, from the rows that are read."""
    sums = {"shared": np.zeros(4), "merged": np.zeros(4)}
    lookups = np.zeros(4)
    for strategy in strategies:
        ids, rows = [], []
        for place, feature in enumerate(strategy.features):
            ids += [(-int(count), feature.vocab, place, id) for id, count in enumerate(feature.counts)]
            batch = Ids(torch.arange(feature.size).expand(len(strategy.features), -1), len(strategy.features))
            rows.append(torch.cat([one(batch)[place] for one in strategy.index_maps.values()]).T.tolist())
        part_of = [thirds(feature.counts) for feature in strategy.features]
        homes = [[home for read in strategy.reads().values() for home in read[place]] for place in range(len(part_of))]
        taken: set[tuple[str, int]] = set()
        known: set[tuple[int, ...]] = set()
        for count, _, place, id in sorted(ids):
            read = list(zip(homes[place], rows[place][id], strict=True))
            found = np.mean([one in taken for one in read]), (place, *rows[place][id]) in known
            taken |= set(read)
            known.add((place, *rows[place][id]))
            parts = np.array([1, *(part_of[place][id] == np.arange(3))]) * -count
            lookups += parts
            for name, value in zip(sums, found, strict=True):
                sums[name] += value * parts
    return {name: total / lookups for name, total in sums.items()}


@pytest.mark.parametrize(
    ("strategy", "budget", "dim"),
    [
        ("hash", 0.5, 4),
        ("unified", 0.15, 4),
        ({"name": "unified", "chunks": 4, "tables": 2}, 0.06, 4),
        ({"name": "unified", "chunks": 1}, 0.1, 4),
        ({"name": "robe", "block": 3}, 0.06, 4),
    ],
)
def test_expectations_equal_counts_over_hash_seeds(strategy: Any, budget: float, dim: int) -> None:
    """Within five standard errors of the mean of the counts, and a thousandth where none was counted."""
    found = [counted(plan_of(FEATURES, strategy, budget, seed, dim)) for seed in range(SEEDS)]
    expected = collisions(plan_of(FEATURES, strategy, budget, 0, dim))
    for name in ("shared", "merged"):
        seen = np.array([one[name] for one in found])
        error = seen.std(0) / math.sqrt(SEEDS)
        told = np.array([getattr(expected, name)[part] for part in PARTS])
        assert (np.abs(told - seen.mean(0)) <= 5 * error + 1e-3).all(), (name, told, seen.mean(0), error)


def test_digits_are_counted() -> None:
    plan = plan_of(FEATURES, "compositional", 0.4)
    expected, found = collisions(plan), counted(plan)
    for name in ("shared", "merged"):
        assert list(getattr(expected, name).values()) == pytest.approx(list(found[name]))
    assert expected.shared["tail"] > expected.shared["head"]
    assert set(expected.merged.values()) == {0.0}


@pytest.mark.parametrize("ratio", [4 / 3, 1.0, 0.5, 0.1])
def test_the_share_of_ids_without_a_slot_of_their_own(ratio: float) -> None:
    """1 - r (1 - exp(-1/r)) at r = rows/ids, for a large table: 29.65 % at 4/3."""
    ids = 300_000
    strategy = Hash([Feature("user", ids)], 4, rows={"user": round(ratio * ids)})
    expected = 1 - ratio * (1 - math.exp(-1 / ratio))
    assert collisions([strategy]).shared["all"] == pytest.approx(expected, abs=1e-5)
    assert collisions([strategy]).merged["all"] == pytest.approx(expected, abs=1e-5)
    if ratio == 4 / 3:
        assert round(100 * collisions([strategy]).shared["all"], 2) == 29.65


@pytest.mark.parametrize(("strategy", "budget"), [("full", None), ("dnis", 0.5)])
def test_a_row_for_each_id_collides_with_nothing(strategy: str, budget: float | None) -> None:
    found = collisions(plan_of(FEATURES, strategy, budget))
    assert set(found.shared.values()) | set(found.merged.values()) == {0.0}


def test_one_row_for_all() -> None:
    found = collisions([Hash([Feature("user", 10)], 4, rows={"user": 1})])
    assert found.shared["all"] == found.merged["all"] == pytest.approx(0.9)
