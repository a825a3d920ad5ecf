"""The batch of ids that all strategies read.

Shapes: F features, B samples, N id occurrences, S slots of a feature (chunks, probes, partitions).

A batch is feature-major. With single-valued features only it is a matrix ``[F, B]``; with a multi-valued
feature among them it is jagged, ``values [N]`` cut by ``offsets [F*B + 1]``::

    features user, tags; samples 0, 1, 2     values   u0 u1 u2 | t7 t9 |  | t3
                                             offsets  0  1  2    3       5  5  6
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ids:
    """A batch of ids: ``values [F, B]``, or ``values [N]`` with ``offsets [F*B + 1]`` and, perhaps, ``weights [N]``."""

    values: Tensor
    features: int
    offsets: Tensor | None = None
    weights: Tensor | None = None

    @property
    def batch(self) -> int:
        """B, the number of samples."""
        return self.values.shape[1] if self.offsets is None else (self.offsets.numel() - 1) // self.features

    def bounds(self) -> list[int]:
        """Where each feature's occurrences begin in jagged ``values``, and the end: F + 1 numbers."""
        assert self.offsets is not None
        return self.offsets[:: self.batch].tolist() if self.batch else [0] * (self.features + 1)

    def lanes(self) -> Tensor:
        """The ids with an axis for slots: ``[F, 1, B]``, or ``[1, N]`` where jagged."""
        return self.values.unsqueeze(1) if self.offsets is None else self.values.unsqueeze(0)

    def by_vector(self, lanes: Tensor) -> Tensor:
        """Numbers in the order of :meth:`lanes`, ``[F, S, B]`` or ``[S, N]``, as ``[B, F, S]``, ``[N, S]``; a view."""
        return lanes.permute(2, 0, 1) if self.offsets is None else lanes.t()

    def spread(self, constants: Tensor) -> Tensor:
        """Constants ``[F, S]`` per feature and slot, broadcastable to :meth:`lanes`: ``[F, S, 1]`` or ``[S, N]``."""
        if self.offsets is None:
            return constants.unsqueeze(2)
        bounds = torch.tensor(self.bounds(), device=constants.device)
        return constants.repeat_interleave(bounds.diff(), dim=0, output_size=self.values.numel()).t()

    def to(self, device: torch.device) -> Ids:
        """The same batch on a device."""
        move = [None if one is None else one.to(device) for one in (self.offsets, self.weights)]
        return Ids(self.values.to(device), self.features, *move)

    def jagged(self) -> Ids:
        """The same batch with offsets, also where every bag holds one id."""
        if self.offsets is not None:
            return self
        flat = self.values.reshape(-1)
        return Ids(flat, self.features, torch.arange(flat.numel() + 1, device=flat.device))

    def select(self, features: Sequence[int]) -> Ids:
        """The batch of some of the features, in the order given; a matrix again where none is jagged."""
        wanted = list(features)
        if wanted == list(range(self.features)):
            return self
        if self.offsets is None:
            first, last = wanted[0], wanted[-1]
            if wanted == list(range(first, last + 1)):
                return Ids(self.values[first : last + 1], len(wanted))
            return Ids(self.values[wanted], len(wanted))
        bounds, batch = self.bounds(), self.batch
        lengths = self.offsets.diff().view(self.features, batch)[wanted]
        parts = [slice(bounds[f], bounds[f + 1]) for f in wanted]
        values = torch.cat([self.values[part] for part in parts])
        weights = None if self.weights is None else torch.cat([self.weights[part] for part in parts])
        if weights is None and all(bounds[f + 1] - bounds[f] == batch for f in wanted) and bool((lengths == 1).all()):
            return Ids(values.view(len(wanted), batch), len(wanted))
        return Ids(values, len(wanted), offsets_of(lengths), weights)


def offsets_of(lengths: Tensor) -> Tensor:
    """Offsets ``[n + 1]`` of bags with these lengths, in their flat order."""
    offsets = torch.zeros(lengths.numel() + 1, dtype=torch.int64, device=lengths.device)
    torch.cumsum(lengths.reshape(-1), 0, out=offsets[1:])
    return offsets
