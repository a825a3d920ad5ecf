"""Data: readers, vocabularies, the encoded data set, batches and the planted generator."""

from recsys_embed.data.batches import Batch
from recsys_embed.data.continuation import continue_data
from recsys_embed.data.dataset import EncodedDataset
from recsys_embed.data.encoder import Encoder
from recsys_embed.data.forgetting import forget
from recsys_embed.data.planted import Planted, planted
from recsys_embed.data.prepare import prepare
from recsys_embed.data.readers import read_frames

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
