"""Small layers of every strategy, for rows that go through all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from recsys_embed.config import STRATEGIES
from recsys_embed.errors import BudgetError
from recsys_embed.features import Feature
from recsys_embed.layer import EmbeddingLayer

BUDGETS = (0.25, 0.5, 0.75, 1.0, None)


def layer(strategy: str, features: Sequence[Feature], *, dim: int = 8, **options: Any) -> EmbeddingLayer:
    """A layer of one strategy alone at its defaults, at the smallest of :data:`BUDGETS` that it can be built with."""
    sizes = {feature.vocab: feature.cardinality for feature in features if feature.cardinality is not None}
    counted = [replace(f, counts=np.arange(sizes[f.vocab], 0, -1, dtype=np.int64)) for f in features]
    given: dict[str, Any] = {"strategy": STRATEGIES[strategy](name=strategy), "exact": (), **options}
    for budget in BUDGETS[:-1]:
        try:
            return _begun(EmbeddingLayer(counted, dim, **{"budget": budget, **given}))
        except BudgetError:
            continue
    return _begun(EmbeddingLayer(counted, dim, **given))


def _begun(emb: EmbeddingLayer) -> EmbeddingLayer:
    """In its first stage, as a trainer would have it."""
    emb.begin_stage(emb.stages[0].name)
    return emb
