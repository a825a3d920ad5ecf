"""Data: readers, vocabularies, the encoded data set, batches and the planted generator."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from recsys_embed.data.continuation import continue_data
from recsys_embed.data.dataset import EncodedDataset
from recsys_embed.data.encoder import Encoder
from recsys_embed.data.forgetting import forget
from recsys_embed.data.planted import Planted, planted
from recsys_embed.data.prepare import prepare
from recsys_embed.data.readers import read_frames

if TYPE_CHECKING:
    from recsys_embed.data.batches import Batch

__all__ = [
    "Batch",
    "EncodedDataset",
    "Encoder",
    "Planted",
    "continue_data",
    "forget",
    "planted",
    "prepare",
    "read_frames",
]


def __getattr__(name: str) -> Any:
    """``Batch`` when it is first used: it needs torch, and the processes that prepare rows do not."""
    if name != "Batch":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from recsys_embed.data.batches import Batch

    return Batch
