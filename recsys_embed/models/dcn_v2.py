"""DCN-v2: cross layers that multiply the input with itself, and a deep network on top.

Wang et al., "DCN V2: Improved Deep & Cross Network", WWW 2021, arXiv:2008.13535: the cross network of section 3.2
with full-rank matrices, combined with the deep network in the stacked way of section 3.4. There is no batch
normalisation. Weights start as PyTorch's linear layers do, uniform within ±1/√inputs; the paper does not say.

Shapes: B samples, F features, D width of a vector, n dense columns, I = F·D + n width of the cross layers.

The MovieLens-1M protocol of "Unified Embedding" (arXiv:2305.12102) is ``cross_layers=1, hidden=(192,)``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from recsys_embed.models.mlp import PaddedLinear, mlp, padding


class CrossLayer(nn.Module):
    """``x₀ ⊙ (W x + b) + x``: one more degree of interaction for every layer. I² + I weights."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)

    def forward(self, x0: Tensor, x: Tensor) -> Tensor:
        """Both ``[B, I]``, or wider with zeros behind; so is the result."""
        weight: Tensor = self.linear.weight
        bias: Tensor = self.linear.bias
        if more := x.shape[1] - self.linear.in_features:
            weight, bias = functional.pad(weight, (0, more, 0, more)), functional.pad(bias, (0, more))
        return torch.addcmul(x, x0, functional.linear(x, weight, bias))


class DCNv2(nn.Module):
    """Stacked deep & cross network: the cross layers' output is the deep network's input.

    >>> model = DCNv2(3, 2, dim=8)
    >>> model(torch.zeros(5, 3, 8), torch.zeros(5, 2)).shape
    torch.Size([5])
    """

    def __init__(
        self,
        num_features: int,
        num_dense: int = 0,
        *,
        dim: int = 16,
        cross_layers: int = 2,
        hidden: Sequence[int] = (256, 128),
        dropout: float = 0.0,
        padded: bool = False,
    ) -> None:
        super().__init__()
        width = num_features * dim + num_dense
        self.cross = nn.ModuleList(CrossLayer(width) for _ in range(cross_layers))
        self.deep = mlp((width, *hidden), dropout=dropout)
        self.logit = PaddedLinear((width, *hidden)[-1], 1)
        self.padding = padding(width) if padded else 0

    def forward(self, vectors: Tensor, dense: Tensor) -> Tensor:
        """Logits ``[B]`` of ``vectors [B, F, D]`` and ``dense [B, n]``, where n may be 0."""
        parts = [vectors.flatten(1)]
        if dense.shape[1]:
            parts.append(dense)
        if self.training and self.padding:
            parts.append(dense.new_zeros(len(dense), self.padding))
        x0 = torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
        x = x0
        for layer in self.cross:
            x = layer(x0, x)
        logits: Tensor = self.logit(self.deep(x))
        return logits.squeeze(1)
