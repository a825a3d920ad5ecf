"""Drawn requests for the rows of a group."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from recsys_embed.tables.base import Request


def drawn_request(
    sizes: Sequence[int],
    batch: int,
    generator: torch.Generator,
    *,
    jagged: bool,
    weighted: bool,
    absent: bool,
    dtype: torch.dtype,
) -> Request:
    """A row for each lane and sample, or bags of up to three; ``sizes`` are those of each lane's table, whose first
    rows come most often."""
    lengths = torch.ones(len(sizes), batch, dtype=torch.int64)
    if jagged:
        lengths = torch.randint(0, 4, (len(sizes), batch), generator=generator)
    draws = [
        (torch.rand(int(n), generator=generator).square() * (size + absent)).long() - int(absent)
        for size, n in zip(sizes, lengths.sum(1), strict=True)
    ]
    rows = torch.cat(draws).to(dtype)
    if not jagged:
        return Request(rows.view(len(sizes), batch), batch)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.view(-1).cumsum(0)])
    weights = torch.randn(rows.numel(), generator=generator) if weighted else None
    return Request(rows, batch, offsets, weights)
