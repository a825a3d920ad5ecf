"""Data whose right answer to a search for dimensions is planted, and what trains on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recsys_embed import EmbeddingLayer, Feature
from recsys_embed.config import StrategyNode, TrainingConfig
from recsys_embed.data.batches import Batch
from recsys_embed.data.columns import Columns
from recsys_embed.data.loader import batches
from recsys_embed.embeddings.bits import unpack_bits
from recsys_embed.embeddings.packed import PackedRows
from recsys_embed.embeddings.pruned import Pruned
from recsys_embed.recommender import Recommender
from recsys_embed.share import WHOLE, Share

N, D = 40, 16
RANKS: dict[str, tuple[int, ...]] = {"all": tuple(range(D)), "first": (0, 1), "second": (2, 3), "noise": ()}
"""The dimensions of each feature that matter."""


class Ranked:
    """Labels from ⟨e(id), x⟩ summed over four features, where e is zero but in a feature's own dimensions of
    ``ranks``: true ranks 16, 2, 2 and 0. The vectors x [D] are the dense columns."""

    fingerprint = "ranked"

    def __init__(
        self, rows: int, *, shuffled: bool = False, ranks: Mapping[str, tuple[int, ...]] = RANKS, seed: int = 0
    ) -> None:
        self.features = tuple(Feature(name, N) for name in ranks)
        draw = np.random.default_rng(seed)
        effects = np.zeros((len(ranks), N, D))
        for f, dims in enumerate(ranks.values()):
            effects[f][:, list(dims)] = draw.choice([-0.5, 0.5], (N, len(dims)))
        self.split: dict[str, Columns] = {}
        for split, count in (("train", rows), ("val", rows // 2)):
            ids = draw.integers(0, N, (len(ranks), count)).astype(np.int32)
            x = draw.normal(size=(count, D)).astype(np.float32)
            logit = sum((effects[f][ids[f]] * x).sum(1) for f in range(len(ranks)))
            label = (draw.uniform(size=count) < 1 / (1 + np.exp(-logit))).astype(np.float32)
            if shuffled:
                draw.shuffle(label)
            self.split[split] = Columns(tuple(ids), tuple(x.T.copy()), label)

    def rows(self, split: str) -> int:
        return len(self.split[split])

    def labels(self, split: str) -> np.ndarray:
        return self.split[split].label

    def weights(self, split: str) -> np.ndarray | None:
        return self.split[split].weight

    def buckets(self, split: str) -> np.ndarray:
        return np.zeros(self.rows(split), np.int8)

    def batches(
        self,
        split: str,
        batch_size: int,
        *,
        shuffle_seed: int | None = None,
        start: int = 0,
        share: Share = WHOLE,
        memory: int | None = None,
    ) -> Iterator[Batch]:
        return batches(self.split[split], batch_size, shuffle_seed, start, share, memory)


class Products(nn.Module):
    """The sum of all ⟨s · e, x⟩, with a factor s for each feature and dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(len(RANKS), D))

    def forward(self, vectors: Tensor, dense: Tensor) -> Tensor:
        return (vectors * self.scale * dense.unsqueeze(1)).sum((1, 2))


def model(config: StrategyNode, ranks: Mapping[str, tuple[int, ...]] = RANKS) -> Recommender:
    """As many weights as the planted answer has: 16, 2, 2 and 0 for each of N ids."""
    kept = N * sum(map(len, ranks.values()))
    budget = sum(PackedRows.sizes(len(ranks) * N, D, kept).values())
    features = tuple(Feature(name, N) for name in ranks)
    emb = EmbeddingLayer(features, D, strategy={"*": config}, budget=budget, exact=(), backend="reference")
    assert strategy_of(emb).kept == kept
    return Recommender(emb, Products())


def strategy_of(emb: EmbeddingLayer) -> Pruned:
    found = emb.strategies[0]
    assert isinstance(found, Pruned)
    return found


def kept_shares(emb: EmbeddingLayer) -> dict[str, Tensor]:
    """The share of ids that keep each dimension ``[D]``, by feature."""
    strategy = strategy_of(emb)
    return {one.name: unpack_bits(strategy._mask_of(one.name), D).float().mean(0) for one in emb.features}


def training(**options: Any) -> TrainingConfig:
    optimizer = {"tables": "adagrad", "tables_lr": 0.1, "dense_lr": 0.003}
    return TrainingConfig(**{"batch_size": 200, "epochs": 2, "patience": 1, "optimizer": optimizer, **options})
