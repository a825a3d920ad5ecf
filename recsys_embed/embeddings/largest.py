"""The largest of many numbers that are seen part by part: exactly as many as asked for, in memory for counters only."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

_HALF = 16
_BINS = 1 << _HALF


def keep_largest(parts: Callable[[], Iterator[Tensor]], count: int) -> Iterator[Tensor]:
    """For every part a boolean tensor of its shape: which of its numbers are among the ``count`` largest of all.

    Of equal numbers the first are taken, in the order of parts and within them. Never fewer than ``count`` are, unless
    there are fewer.

    Args:
        parts: gives all parts, the same at every call (it is called three times); float32, none negative or nan.
        count: how many to keep.
    """
    if count <= 0:
        for part in parts():
            yield torch.zeros_like(part, dtype=torch.bool)
        return
    # The bits of floats that are not negative, read as integers, are in the order of the floats.
    high, left = _bin_of(_histogram(_bits(part) >> _HALF for part in parts()), count)
    low, left = _bin_of(
        _histogram(bits[bits >> _HALF == high] & (_BINS - 1) for bits in map(_bits, parts())),
        left,
    )
    threshold = high << _HALF | low
    for part in parts():
        bits = _bits(part)
        ties = (bits == threshold).flatten()
        taken = ties & (ties.cumsum(0) <= left)
        left -= int(taken.sum())
        yield (bits > threshold) | taken.view(part.shape)


def _bits(part: Tensor) -> Tensor:
    return part.contiguous().view(torch.int32)


def _histogram(parts: Iterator[Tensor]) -> Tensor:
    total = torch.zeros(_BINS, dtype=torch.int64)
    for part in parts:
        total += torch.bincount(part.flatten(), minlength=_BINS).cpu()
    return total


def _bin_of(histogram: Tensor, count: int) -> tuple[int, int]:
    """The bin where the ``count``-th largest lies, and how many of the bin are among them; the lowest where there are
    fewer."""
    above = histogram.flip(0).cumsum(0)
    place = min(int(torch.searchsorted(above, count)), _BINS - 1)
    return _BINS - 1 - place, count - (int(above[place - 1]) if place else 0)
