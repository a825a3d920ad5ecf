"""Products of all pairs of vectors, by the native kernels on CPU and by plain PyTorch elsewhere.

torch multiplies a small matrix for each sample, gathers the lower triangle out of the result, and scatters the gradient
back into it. The kernels do all of that sample by sample, near the processor, which takes less than half the time; they
compute in float32, whatever the precision of the layers is.

Shapes: B samples, F features, D width of a vector, V vectors: F, and one more where there is a first one;
P = V(V - 1)/2 pairs.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recsys_embed.native.choice import natively

MOST = 64
"""Vectors: of more, a matrix of each sample is large enough for torch."""


class PairProducts(nn.Module):
    """Of V vectors a sample. Keeps no state.

    >>> PairProducts(3)(None, torch.tensor([[[1.0], [2.0], [3.0]]]))
    tensor([[2., 3., 6.]])
    """

    places: Tensor

    def __init__(self, vectors: int) -> None:
        super().__init__()
        self.vectors = vectors
        rows, columns = torch.tril_indices(vectors, vectors, offset=-1)
        self.register_buffer("places", rows * vectors + columns, persistent=False)

    def forward(self, first: Tensor | None, others: Tensor, padding: int = 0) -> Tensor:
        """``[B, D + P + padding]``: the first vectors ``[B, D]``, if there are any; the products of all pairs of them
        and ``others [B, F, D]``, the lower triangle of the Gram matrix, row by row; and columns of zeros.

        Raises:
            ValueError: shapes that do not fit each other or V, seen before the kernels are called.
        """
        if natively(others, compiled=True) and self.vectors <= MOST and _kernels_take(first, others):
            from recsys_embed.native import ops

            self._check(first, others)
            products: Tensor = ops.multiply_pairs(None if first is None else first.float(), others, padding)
            return products
        every = others if first is None else torch.cat((first.unsqueeze(1), others), 1)
        gram = torch.bmm(every, every.transpose(1, 2)).flatten(1)
        parts = [] if first is None else [first]
        parts.append(gram.index_select(1, self.places))
        if padding:
            parts.append(gram.new_zeros(len(gram), padding))
        return torch.cat(parts, 1) if len(parts) > 1 else parts[0]

    def _check(self, first: Tensor | None, others: Tensor) -> None:
        batch, features, dim = others.shape
        if features + (first is not None) != self.vectors:
            raise ValueError(f"{self.vectors} vectors a sample are multiplied, got {features + (first is not None)}")
        if first is not None and first.shape != (batch, dim):
            raise ValueError(
                f"the first vectors are {[batch, dim]} beside {list(others.shape)}, got {list(first.shape)}"
            )


def _kernels_take(first: Tensor | None, others: Tensor) -> bool:
    """Float32, and first vectors that it loses nothing of."""
    types = (torch.float32, torch.float16, torch.bfloat16)
    return others.dtype == torch.float32 and (first is None or first.dtype in types)
