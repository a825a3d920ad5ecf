"""The rows that an id reads at several slots, as one vector: their product, or their sum.

Shapes: S slots, W width.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from recsys_embed.native.choice import natively
from recsys_embed.tables.buffers import LEAST, Buffers

Combination = Literal["sum", "product"]
"""What the rows of an id's slots become together."""

_OUTPUTS = Buffers()


def combined(slots: Tensor, combination: Combination) -> Tensor:
    """``[..., S, W]`` to ``[..., W]``, by the native kernels where there are many, else slot after slot."""
    if natively(slots) and slots.shape[-2] == 1:  # in this order: a trace would keep the comparison
        return slots.squeeze(-2)  # a view, and so is its gradient
    if _natively(slots):
        vectors: Tensor = _Combined.apply(slots, combination == "product")  # type: ignore[no-untyped-call]
        return vectors
    first, *others = slots.unbind(-2)
    for other in others:
        first = first * other if combination == "product" else first + other
    return first


def product_gradient(slots: Tensor, gradient: Tensor) -> Tensor:
    """The gradient ``[..., S, W]`` of rows by that of their product, ``[..., W]``; without a gradient of its own."""
    slots, gradient = slots.detach(), gradient.detach()
    if _natively(slots):
        from recsys_embed.native.ops import combine

        out = _OUTPUTS.take(*slots.shape)
        combine(out, slots, gradient.to(torch.float32).contiguous(), True)
        return out
    pieces = []
    for own in range(slots.shape[-2]):
        piece = gradient
        for other, rows in enumerate(slots.unbind(-2)):
            piece = piece if other == own else piece * rows
        pieces.append(piece)
    return torch.stack(pieces, dim=-2)


def _natively(slots: Tensor) -> bool:
    return natively(slots) and slots.dtype == torch.float32 and slots.is_contiguous() and slots.numel() >= LEAST


class _Combined(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, slots: Tensor, products: bool) -> Tensor:
        from recsys_embed.native.ops import combine

        ctx.save_for_backward(slots)
        ctx.products = products
        out = _OUTPUTS.take(*slots.shape[:-2], slots.shape[-1])
        combine(out, slots.detach(), None, products)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (slots,) = ctx.saved_tensors
        if ctx.products:
            return product_gradient(slots, gradient), None
        return gradient.unsqueeze(-2).expand(slots.shape), None
