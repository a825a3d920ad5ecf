"""The rows that an id reads at several slots, as one vector: their product, or their sum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from recsys_embed.native.choice import natively
from recsys_embed.tables.buffers import LEAST, Buffers

_OUTPUTS = Buffers()


def combined(slots: Tensor, *, products: bool) -> Tensor:
    """``[..., S, W]`` to ``[..., W]``, by the native kernels where there are many, else slot after slot."""
    if natively(slots) and slots.dtype == torch.float32 and slots.is_contiguous() and slots.numel() >= LEAST:
        vectors: Tensor = _Combined.apply(slots, products)  # type: ignore[no-untyped-call]
        return vectors
    first, *others = slots.unbind(-2)
    for other in others:
        first = first * other if products else first + other
    return first


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
        from recsys_embed.native.ops import combine

        (slots,) = ctx.saved_tensors
        out = _OUTPUTS.take(*slots.shape)
        combine(out, slots.detach(), gradient.to(torch.float32).contiguous(), ctx.products)
        return out, None
