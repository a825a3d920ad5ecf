"""Bits packed into bytes, eight to a byte, the lowest first.

Shapes: D bits, P = ceil(D / 8) bytes.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def packed_bytes(width: int) -> int:
    """P, the bytes of ``width`` bits."""
    return -(-width // 8)


def pack_bits(bits: Tensor) -> Tensor:
    """Booleans ``[..., D]`` as bytes ``[..., P]`` uint8; the bits that fill up are 0."""
    width = bits.shape[-1]
    filled: Tensor = functional.pad(bits.to(torch.int32), (0, 8 * packed_bytes(width) - width))
    weights = 1 << torch.arange(8, dtype=torch.int32, device=bits.device)
    return torch.mul(filled.unflatten(-1, (-1, 8)), weights).sum(-1).to(torch.uint8)


def unpack_bits(packed: Tensor, width: int) -> Tensor:
    """Booleans ``[..., D]`` from bytes ``[..., P]``."""
    places = torch.arange(8, dtype=torch.uint8, device=packed.device)
    return (packed.unsqueeze(-1) >> places).bitwise_and_(1).flatten(-2)[..., :width].to(torch.bool)


def count_bits(packed: Tensor) -> Tensor:
    """How many bits are set in each ``[..., P]``: ``[...]`` int64."""
    counts = packed - ((packed >> 1) & 0x55)
    counts = (counts & 0x33) + ((counts >> 2) & 0x33)
    return ((counts + (counts >> 4)) & 0x0F).sum(-1, dtype=torch.int64)
