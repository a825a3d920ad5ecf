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

from torch import Tensor, nn

from recsys_embed.errors import ConfigError
from recsys_embed.models.mlp import PaddedLinear, mlp, padding
from recsys_embed.models.pairs import PairProducts


class DLRM(nn.Module):
    """Bottom network on the dense columns, dot products of all pairs, top network.

    ``bottom`` lists the hidden layers before the last one of width D.

    >>> import torch
    >>> model = DLRM(3, 2, dim=8)
    >>> model(torch.zeros(5, 3, 8), torch.zeros(5, 2)).shape
    torch.Size([5])

    Raises:
        ConfigError: a single feature without dense columns: there is no pair.
    """

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
        self.products = PairProducts(vectors)
        width = vectors * (vectors - 1) // 2 + (dim if num_dense else 0)
        self.top = mlp((width, *top), dropout=dropout)
        self.logit = PaddedLinear((width, *top)[-1], 1)
        self.padding = padding(width) if padded else 0

    def forward(self, vectors: Tensor, dense: Tensor) -> Tensor:
        """Logits ``[B]`` of ``vectors [B, F, D]`` and ``dense [B, n]``, where n may be 0."""
        own = None if self.bottom is None else self.bottom(dense)  # [B, D]
        x = self.products(own, vectors, self.padding if self.training else 0)
        logits: Tensor = self.logit(self.top(x))
        return logits.squeeze(1)
