"""Drop-in counterparts of ``nn.Embedding`` and ``nn.EmbeddingBag`` over one feature of an :class:`EmbeddingLayer`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from recsys_embed.features import Feature
from recsys_embed.ids import Ids
from recsys_embed.layer import EmbeddingLayer
from recsys_embed.tables.optimizer import TablesOptimizer


class _OneFeature(nn.Module):
    """A layer with the single feature ``name``; ``options`` are those of :class:`EmbeddingLayer`."""

    def __init__(self, feature: Feature, embedding_dim: int, options: dict[str, Any]) -> None:
        super().__init__()
        options.setdefault("exact", ())
        self.layer = EmbeddingLayer([feature], embedding_dim, **options)
        self.num_embeddings, self.embedding_dim = feature.size, embedding_dim

    def optimizer(self, name: str = "rowwise_adagrad", *, lr: float, eps: float = 1e-8) -> TablesOptimizer:
        """See :meth:`EmbeddingLayer.optimizer`."""
        return self.layer.optimizer(name, lr=lr, eps=eps)

    def penalty(self) -> Tensor:
        """See :meth:`EmbeddingLayer.penalty`."""
        return self.layer.penalty()

    def after_step(self) -> None:
        """See :meth:`EmbeddingLayer.after_step`."""
        self.layer.after_step()


class Embedding(_OneFeature):
    """Like ``nn.Embedding``: ids of any shape become vectors ``(..., embedding_dim)``.

    >>> Embedding(5_000, 16, strategy="unified", budget="64KB")(torch.tensor([[1, 2, 3]])).shape
    torch.Size([1, 3, 16])
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, *, name: str = "id", **options: Any) -> None:
        super().__init__(Feature(name, num_embeddings), embedding_dim, options)

    def forward(self, ids: Tensor) -> Tensor:
        """Vectors of the ids."""
        vectors: Tensor = self.layer(ids.reshape(1, -1))
        return vectors.view(*ids.shape, self.embedding_dim)


class EmbeddingBag(_OneFeature):
    """Like ``nn.EmbeddingBag`` with mode ``sum`` or ``mean``: bags of ids become one vector each.

    >>> bag = EmbeddingBag(5_000, 16, mode="mean", strategy="hash", budget=0.5)
    >>> bag(torch.tensor([1, 2, 3]), torch.tensor([0, 2])).shape
    torch.Size([2, 16])
    """

    def __init__(
        self, num_embeddings: int, embedding_dim: int, *, mode: str = "mean", name: str = "id", **options: Any
    ) -> None:
        feature = Feature(name, num_embeddings, multi_valued=True, pooling=mode)  # type: ignore[arg-type]
        super().__init__(feature, embedding_dim, options)
        self.mode = mode

    def forward(self, ids: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None) -> Tensor:
        """Bags ``[B, L]``, or ids ``[N]`` with the ``offsets [B]`` where each bag starts; gives ``[B, D]``."""
        if offsets is None:
            offsets = torch.arange(0, ids.numel() + 1, ids.shape[1], device=ids.device)
        else:
            offsets = torch.cat([offsets, offsets.new_full((1,), ids.numel())])
        weights = None if per_sample_weights is None else per_sample_weights.reshape(-1)
        vectors: Tensor = self.layer(Ids(ids.reshape(-1), 1, offsets, weights))
        return vectors.squeeze(1)
