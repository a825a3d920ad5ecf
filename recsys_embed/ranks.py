"""The processes of a run: what they agree on. In a process without a process group, everything is its own.

The calls are collective: every rank makes them, in the same order.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def count() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def own() -> int:
    """This process's rank, from 0."""
    return dist.get_rank() if count() > 1 else 0


def summed(tensor: Tensor) -> Tensor:
    """The sum over ranks, of one shape on all of them."""
    if count() == 1:
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total


def largest(tensor: Tensor) -> Tensor:
    """The elementwise maximum over ranks, of one shape on all of them."""
    if count() == 1:
        return tensor
    most = tensor.clone()
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return most


def gathered(tensor: Tensor) -> Tensor:
    """All ranks' tensors one after another, in the order of ranks; their first dimensions may differ."""
    if count() == 1:
        return tensor
    mine = torch.tensor([tensor.shape[0]], device=tensor.device)
    lengths = [torch.empty_like(mine) for _ in range(count())]
    dist.all_gather(lengths, mine)
    longest = max(int(length) for length in lengths)
    padded = tensor.new_zeros(longest, *tensor.shape[1:])
    padded[: tensor.shape[0]] = tensor
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(length)] for part, length in zip(parts, lengths, strict=True)])
