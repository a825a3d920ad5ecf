"""Blocks of ids of like frequency, each holding equally many ids of its vocabulary.

Ids are taken as ranked by falling training frequency, as ``prepare`` ranks them, so that no side array is needed.
``Feature.counts`` are not looked at. Id 0 (missing, unseen, rare) is in the first block.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor


def block_of(ids: Tensor, blocks: int | Tensor, size: int | Tensor) -> Tensor:
    """The block of each id in ``[0, size)``: floor(id · blocks / size). Integers that broadcast.

    >>> block_of(torch.tensor([0, 3, 4, 9]), 2, 10).tolist()
    [0, 0, 0, 1]
    """
    return torch.div(ids * blocks, size, rounding_mode="floor")


def blocks_of(sizes: Mapping[str, int], most: int) -> dict[str, int]:
    """How many blocks each vocabulary has: ``most``, or one for each id where it has fewer."""
    return {name: min(most, size) for name, size in sizes.items()}


def means_of(values: Tensor, blocks: int) -> list[float]:
    """The mean of each block of a vocabulary whose ids have these values, ``[size]``.

    >>> means_of(torch.tensor([4.0, 2.0, 1.0, 0.0]), 2)
    [3.0, 0.5]
    """
    bounds = bounds_of(min(blocks, len(values)), len(values))
    return [float(part.double().mean()) for part in values.split([b - a for a, b in pairwise(bounds)])]


def bounds_of(blocks: int, size: int) -> list[int]:
    """Where each block begins, and the end: the first ids that :func:`block_of` puts into each.

    >>> bounds_of(3, 10)
    [0, 4, 7, 10]
    """
    return [-(-block * size // blocks) for block in range(blocks + 1)]
