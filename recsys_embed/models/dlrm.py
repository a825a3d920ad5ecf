"""DLRM: dot products between all pairs of vectors.

Naumov et al., "Deep Learning Recommendation Model for Personalization and Recommendation Systems",
arXiv:1906.00091, section 2: a bottom network makes one more vector of the dense columns, every pair of vectors is
multiplied, and a top network sees the products beside the dense vector. Weights start as PyTorch's linear layers
do, uniform within ±1/√inputs; the paper does not say.

Shapes: B samples, F features, D width of a vector, n dense columns, V vectors: F, and one more where n > 0;
P = V(V - 1)/2 pairs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recsys_embed.errors import ConfigError
from recsys_embed.models.mlp import PaddedLinear, mlp, padding


class DLRM(nn.Module):
    """Bottom network on the dense columns, dot products of all pairs, top network.

    ``bottom`` lists the hidden layers before the last one of width D.

    >>> model = DLRM(3, 2, dim=8)
    >>> model(torch.zeros(5, 3, 8), torch.zeros(5, 2)).shape
    torch.Size([5])

    Raises:
        ConfigError: a single feature without dense columns: there is no pair.
    """

    pairs: Tensor

    def __init__(
        self,
        num_features: int,
        num_dense: int = 0,
        *,
        dim: int = 16,
        bottom: Sequence[int] = (64,),
        top: Sequence[int] = (256, 128),
        dropout: float = 0.0,
        padded: bool = False,
    ) -> None:
        super().__init__()
        vectors = num_features + bool(num_dense)
        if vectors < 2:
            raise ConfigError("dlrm multiplies pairs of vectors: it needs two features, or one and a dense column")
        self.bottom = mlp((num_dense, *bottom, dim), dropout=dropout) if num_dense else None
        rows, columns = torch.tril_indices(vectors, vectors, offset=-1)
        self.register_buffer("pairs", rows * vectors + columns, persistent=False)
        width = self.pairs.numel() + (dim if num_dense else 0)
        self.top = mlp((width, *top), dropout=dropout)
        self.logit = PaddedLinear((width, *top)[-1], 1)
        self.padding = padding(width) if padded else 0

    def forward(self, vectors: Tensor, dense: Tensor) -> Tensor:
        """Logits ``[B]`` of ``vectors [B, F, D]`` and ``dense [B, n]``, where n may be 0."""
        parts = []
        if self.bottom is not None:
            parts.append(self.bottom(dense))  # [B, D]
            vectors = torch.cat((parts[0].unsqueeze(1), vectors), 1)
        parts.append(self._products(vectors))
        if self.training and self.padding:
            parts.append(parts[-1].new_zeros(len(dense), self.padding))
        x = torch.cat(parts, 1) if len(parts) > 1 else parts[0]
        logits: Tensor = self.logit(self.top(x))
        return logits.squeeze(1)

    def _products(self, vectors: Tensor) -> Tensor:
        """``[B, V, D] → [B, P]``: the lower triangle of the Gram matrix, row by row."""
        return torch.bmm(vectors, vectors.transpose(1, 2)).flatten(1).index_select(1, self.pairs)
