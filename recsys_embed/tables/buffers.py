"""Memory for outputs that is used again once nobody holds them: pages of large ones are not asked for in every step."""

from __future__ import annotations

import math
import threading
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
    """Lends memory, to any number of threads. A tensor's own goes back with the last of its views, whoever holds it.

    A copy begins with none.
    """

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []
        self._lock = threading.RLock()  # the thread that holds it may be the one to collect a tensor

    def __reduce__(self) -> tuple[type[Buffers], tuple[()]]:
        return Buffers, ()

    def take(self, *shape: int) -> Tensor:
        """A float32 tensor of this shape, aligned to cache lines, with anything in it."""
        size = math.prod(shape)
        if size < LEAST:
            return torch.empty(shape)
        with self._lock:
            fitting = [one for one in self._free if one.size >= size]
            piece = min(fitting, key=lambda one: one.size) if fitting else _piece(size)
            self._free = [one for one in self._free if one is not piece]
        lent = piece[:size]
        weakref.finalize(lent, self._give_back, piece).atexit = False
        return torch.from_numpy(lent).view(shape)

    def _give_back(self, piece: np.ndarray) -> None:
        with self._lock:
            self._free = sorted([*self._free, piece], key=lambda one: one.size)[-KEPT:]


def _piece(size: int) -> np.ndarray:
    memory = np.empty(size + _ALIGNED, np.float32)
    advise(torch.from_numpy(memory))
    skipped = -(memory.ctypes.data // 4) % _ALIGNED
    return memory[skipped : skipped + size]
