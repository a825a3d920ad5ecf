"""recsys_embed: recommender embedding tables under a memory budget."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from recsys_embed.errors import BudgetError, CheckpointError, ConfigError, DataError, DivergedError, StackError

if TYPE_CHECKING:
    from recsys_embed.budget import ByteBudget
    from recsys_embed.data.planted import planted
    from recsys_embed.data.prepare import prepare
    from recsys_embed.embedding import Embedding, EmbeddingBag
    from recsys_embed.export import load
    from recsys_embed.features import Feature
    from recsys_embed.layer import EmbeddingLayer
    from recsys_embed.search.space import suggest_layer
    from recsys_embed.swap import swap_embeddings

__version__ = "0.1.0"

# What needs torch or pandas is imported when it is first used: `recsys-embed --help` and `doctor` need neither.
_HOMES = {
    "ByteBudget": "budget",
    "Embedding": "embedding",
    "EmbeddingBag": "embedding",
    "EmbeddingLayer": "layer",
    "Feature": "features",
    "load": "export",
    "planted": "data.planted",
    "prepare": "data.prepare",
    "suggest_layer": "search.space",
    "swap_embeddings": "swap",
}

__all__ = [
    "BudgetError",
    "ByteBudget",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DivergedError",
    "Embedding",
    "EmbeddingBag",
    "EmbeddingLayer",
    "Feature",
    "StackError",
    "load",
    "planted",
    "prepare",
    "suggest_layer",
    "swap_embeddings",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
