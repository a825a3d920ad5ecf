"""A tally: what a rank has seen of each key since the last merge over ranks.

Scores are summed in fixed point, so that the merged sums depend on nothing but what was seen: neither on the order nor
on how it was spread over ranks.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recsys_embed import ranks

UNIT = 2.0**-20
"""One step of a score in fixed point."""


class Tally(nn.Module):
    """Pairs of a key and a score, as they come: ``[n, 2]`` int64, bounded by what is seen between two merges.

    It is extra state and no buffer: its size varies, it differs between ranks, and nobody may broadcast it.
    """

    STATE = "_extra_state"
    """Its name in the state dict, below the module's."""

    def __init__(self) -> None:
        super().__init__()
        self._pairs = torch.zeros(0, 2, dtype=torch.int64)

    def add(self, keys: Tensor, scores: Tensor) -> None:
        """Note scores ``[n]``, not negative, of keys ``[n]``, in which a key may stand more than once."""
        pairs = torch.stack([keys, (scores.double() / UNIT).round().to(torch.int64)], dim=1)
        self._pairs = torch.cat([self._pairs.to(pairs.device), pairs])

    def take(self) -> tuple[Tensor, Tensor]:
        """Distinct keys, ascending, and the sums over all ranks of their scores in :data:`UNIT`; empties the tally."""
        pairs = ranks.gathered(self._pairs)
        self._pairs = self._pairs[:0].clone()
        keys, place = torch.unique(pairs[:, 0], return_inverse=True)
        return keys, torch.zeros_like(keys).index_add_(0, place, pairs[:, 1])

    def get_extra_state(self) -> Tensor:
        """The pairs."""
        return self._pairs

    def set_extra_state(self, state: Tensor) -> None:
        """Pairs of any number."""
        self._pairs = state.clone()
