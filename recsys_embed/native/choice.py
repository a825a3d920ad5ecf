"""Whether the kernels do a piece of work, or torch."""

from __future__ import annotations

import torch
from torch import Tensor

from recsys_embed.native.library import load

THERE = not isinstance(load(), str)
"""A constant, as a compiler of programs cannot look for kernels."""

LEAST = 4096
"""Ids that torch takes longer for."""


def natively(*tensors: Tensor, compiled: bool = False) -> bool:
    """Whether the kernels are there for these tensors: all on CPU, and in a program that runs. What is traced or
    compiled is left to torch, so that servers can run it without this package; with ``compiled`` the kernels are taken
    by what is compiled for this very process."""
    if torch.compiler.is_exporting() or torch.jit.is_tracing():  # type: ignore[attr-defined,no-untyped-call]
        return False
    if (torch.compiler.is_compiling() and not compiled) or not THERE:
        return False
    return all(tensor.device.type == "cpu" for tensor in tensors)


def all_inside(ids: Tensor, offsets: Tensor | None, sizes: Tensor) -> bool:
    """Whether ids ``[F, B]``, or ``[N]`` with offsets ``[F*B + 1]``, lie in ``[0, size)`` of their features, as the
    kernels see it; False also where they cannot."""
    if not natively(ids, sizes) or ids.dtype not in (torch.int32, torch.int64) or ids.stride(-1) != 1:
        return False
    if offsets is not None and (offsets.dtype != torch.int64 or not offsets.is_contiguous()):
        return False
    from recsys_embed.native import ops

    return bool(ops.first_outside(ids, offsets, sizes) == ops.FINE)


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
