"""What a search measures of a trained model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from recsys_embed import EmbeddingLayer, Feature
from recsys_embed.search.measures import BLOCKS, measure_allocation

FEATURES = [
    Feature("user", 1000),
    Feature("item", 400),
    Feature("seen", vocabulary="item", multi_valued=True),
    Feature("city", 3),
    Feature("noise", 90),
    Feature("shop", 80),
    Feature("brand", 20),
]


def allocation(emb: EmbeddingLayer) -> Any:
    fitted = cast(Any, SimpleNamespace(model=SimpleNamespace(embedding=emb)))
    return measure_allocation(fitted, cast(Any, None), cast(Any, None))["allocation"]


def test_the_allocation_of_a_layer_made_by_hand() -> None:
    """Widths by block; hashed rows in equal parts; what is shared, by ids; a dropped feature has nothing."""
    emb = EmbeddingLayer(
        FEATURES,
        8,
        strategy={
            "user": {"name": "mixed_dimension", "width": [8, 4, 0, 0, 1]},
            "item": {"name": "hash", "bytes": 400 * 8},
            "seen": {"name": "hash", "bytes": 400 * 8},
            "noise": {"name": "mixed_dimension", "width": 0},
            "[sb]*": {"name": "unified", "chunks": 1, "bytes": 50 * 8 * 4},
            "*": "full",
        },
        exact=["city"],
    )
    assert allocation(emb) == {
        "brand": {"strategy": "unified", "ids": 20, "weights_per_id": [4.0] * 5},
        "city": {"strategy": "full", "ids": 3, "weights_per_id": [8.0] * 3},
        "item": {"strategy": "hash", "ids": 400, "weights_per_id": [2.0] * 5},
        "noise": {"strategy": "mixed_dimension", "ids": 90, "weights_per_id": [0.0] * 5},
        "shop": {"strategy": "unified", "ids": 80, "weights_per_id": [4.0] * 5},
        "user": {"strategy": "mixed_dimension", "ids": 1000, "weights_per_id": [8.0, 4.0, 0.0, 0.0, 1.0]},
    }
    assert BLOCKS == 5


def test_of_a_pruned_layer_it_is_what_stayed() -> None:
    """The largest weights, which are those of the first ids."""
    emb = EmbeddingLayer([Feature("a", 50)], 4, strategy="magnitude", budget=0.3, exact=())
    emb.begin_stage("warm_up")
    with torch.no_grad():
        emb.tables.get("a").copy_(torch.arange(200.0, 0.0, -1.0).view(50, 4))
    emb.end_stage()
    kept = emb.strategies[0].kept
    found = allocation(emb)["a"]
    assert found["strategy"] == "magnitude"
    expected = [min(max(kept - 40 * block, 0), 40) / 10 for block in range(5)]
    assert found["weights_per_id"] == pytest.approx(expected)
    assert 0 < kept < 80
