"""Whether the kernels do a piece of work, or torch."""

from __future__ import annotations

import torch
from torch import Tensor

from recsys_embed.native.library import load


def natively(*tensors: Tensor) -> bool:
    """Whether the kernels are there for these tensors: all on CPU, and in a program that runs. What is traced or
    compiled is left to torch, so that servers can run it without this package."""
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
    if traced or isinstance(load(), str):
        return False
    return all(tensor.device.type == "cpu" for tensor in tensors)
