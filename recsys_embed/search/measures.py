"""What a search measures of a trained model, beside its AUC and its bytes."""

from __future__ import annotations

from typing import Any

from recsys_embed.data import EncodedDataset
from recsys_embed.embeddings.base import name_of
from recsys_embed.report.run import Cell, Fitted, speed_when_shipped

BLOCKS = 5
"""Blocks of ids by frequency, of each vocabulary, that an allocation tells apart."""


def measure_allocation(fitted: Fitted, cell: Cell, dataset: EncodedDataset) -> dict[str, Any]:
    """``allocation``: for every vocabulary its strategy, its ids and the weights that an id of each block has."""
    found = {
        vocabulary: {
            "strategy": name_of(strategy),
            "ids": next(feature.size for feature in strategy.features if feature.vocab == vocabulary),
            "weights_per_id": per_id,
        }
        for strategy in fitted.model.embedding.plan.strategies
        for vocabulary, per_id in strategy.weights_per_id(BLOCKS).items()
    }
    return {"allocation": dict(sorted(found.items()))}


def measure_with_latency(fitted: Fitted, cell: Cell, dataset: EncodedDataset) -> dict[str, Any]:
    """As :func:`measure_allocation`; and ``latency``, that of a single row in microseconds."""
    speed = speed_when_shipped(fitted, cell, dataset)
    return measure_allocation(fitted, cell, dataset) | {"latency": speed.get("latency_single_row_microseconds")}
