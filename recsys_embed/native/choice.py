"""Whether the kernels do a piece of work, or torch."""

from __future__ import annotations

import torch
from torch import Tensor

from recsys_embed.native.library import load

LEAST = 4096
"""Ids that torch takes longer for."""


def natively(*tensors: Tensor) -> bool:
    """Whether the kernels are there for these tensors: all on CPU, and in a program that runs. What is traced or
    compiled is left to torch, so that servers can run it without this package."""
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
    if traced or isinstance(load(), str):
        return False
    return all(tensor.device.type == "cpu" for tensor in tensors)


def address(ids: Tensor, first: Tensor, second: Tensor, *, digits: bool) -> Tensor | None:
    """Row numbers as the kernels compute them, see ``ops.py``; None where they cannot, or torch is as fast."""
    if not natively(ids, first, second) or ids.numel() < LEAST:  # in this order: a trace would keep the comparison
        return None
    fits = ids.dtype in (torch.int32, torch.int64) and first.dtype == second.dtype == torch.int64
    if not fits or max(ids.dim(), first.dim(), second.dim()) > 3:
        return None
    from recsys_embed.native import ops

    rows: Tensor = ops.address(ids, first, second, digits)
    return rows
