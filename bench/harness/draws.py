"""Ids for a measurement: ranks of falling frequency, as ``prepare`` numbers ids, or scattered over the table.

They are drawn on the generator's device, and lie there.
"""

from __future__ import annotations

import torch
from torch import Tensor

ZIPF = 1.05


def zipf_ranks(features: int, rows: int, batch: int, generator: torch.Generator) -> Tensor:
    """Ids ``[F, B]`` int64 in ``[0, rows)``, drawn from Zipf(1.05): id 0 is the most frequent."""
    weights = torch.arange(1, rows + 1, dtype=torch.float64, device=generator.device) ** -ZIPF
    edges = weights.cumsum(0) / weights.sum()
    drawn = torch.rand(features, batch, generator=generator, dtype=torch.float64, device=generator.device)
    return torch.searchsorted(edges, drawn).clamp_(max=rows - 1)


def scattered(ranks: Tensor, rows: int) -> Tensor:
    """The same ids in another order of the rows: neighbours in frequency are no neighbours in memory."""
    return ranks * 7_368_787 % rows


def uniform(features: int, rows: int, batch: int, generator: torch.Generator) -> Tensor:
    """Ids ``[F, B]`` int64, all of ``[0, rows)`` as likely."""
    return torch.randint(rows, (features, batch), generator=generator, device=generator.device)
