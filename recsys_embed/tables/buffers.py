"""Memory for outputs that is used again once nobody holds them: pages of large ones are not asked for in every step."""

from __future__ import annotations

import math
import weakref

import numpy as np
import torch
from torch import Tensor

from recsys_embed.tables.pages import advise

LEAST = 2**18
"""Outputs of fewer floats are left to torch, whose allocator keeps such memory itself."""

KEPT = 2
"""Free pieces that are kept."""

_ALIGNED = 16  # floats of a cache line


class Buffers:
    """Lends memory. A tensor's own goes back with the last of its views, whoever holds it."""

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []

    def take(self, *shape: int) -> Tensor:
        """A float32 tensor of this shape, aligned to cache lines, with anything in it."""
        size = math.prod(shape)
        if size < LEAST:
            return torch.empty(shape)
        fitting = [one for one in self._free if one.size >= size]
        if fitting:
            piece = min(fitting, key=lambda one: one.size)
            self._free = [one for one in self._free if one is not piece]
        else:
            piece = _piece(size)
        lent = piece[:size]
        weakref.finalize(lent, self._give_back, piece).atexit = False
        return torch.from_numpy(lent).view(shape)

    def _give_back(self, piece: np.ndarray) -> None:
        self._free = sorted([*self._free, piece], key=lambda one: one.size)[-KEPT:]


def _piece(size: int) -> np.ndarray:
    memory = np.empty(size + _ALIGNED, np.float32)
    advise(torch.from_numpy(memory))
    skipped = -(memory.ctypes.data // 4) % _ALIGNED
    return memory[skipped : skipped + size]
