"""Bags of vectors: how the occurrences of a multi-valued feature count, and their sum.

Shapes: F features, B samples, N id occurrences, D width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from recsys_embed.features import Feature
from recsys_embed.ids import Ids


def occurrence_weights(features: Sequence[Feature], ids: Ids) -> Tensor | None:
    """Weights ``[N]`` of the occurrences: the caller's, and 1/length where a feature pools by mean; None for all 1."""
    assert ids.offsets is not None
    mean = [feature.pooling == "mean" and feature.multi_valued for feature in features]
    if not any(mean):
        return None if ids.weights is None else ids.weights.to(torch.float32)
    lengths = ids.offsets.diff().view(ids.features, ids.batch)
    divisors = torch.where(torch.tensor(mean, device=lengths.device).unsqueeze(1), lengths, 1).reshape(-1)
    weights = 1.0 / divisors.repeat_interleave(lengths.reshape(-1)).to(torch.float32)
    return weights if ids.weights is None else weights * ids.weights


def pool_occurrences(features: Sequence[Feature], ids: Ids, vectors: Tensor) -> Tensor:
    """Vectors ``[B, F, D]`` of the bags, from one ``[N, D]`` for each occurrence."""
    assert ids.offsets is not None
    weights = occurrence_weights(features, ids)
    if weights is not None:
        vectors = vectors * weights.unsqueeze(1)
    bags = torch.arange(ids.features * ids.batch, device=vectors.device).repeat_interleave(ids.offsets.diff())
    pooled = vectors.new_zeros(ids.features * ids.batch, vectors.shape[1]).index_add(0, bags, vectors)
    return pooled.view(ids.features, ids.batch, pooled.shape[-1]).transpose(0, 1)
