"""Dividing a byte budget: shares become sizes, and no division is ever over the budget.

All integers are bytes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Division:
    """What each part got: the place of its size in its list of sizes; and the bytes that nobody could use."""

    chosen: dict[str, int]
    left_over: int


def divide(room: int, weights: Mapping[str, float], sizes: Mapping[str, Sequence[int]]) -> Division:
    """Divide ``room`` among parts in proportion to their weights.

    Each part has sizes of its own, rising. It gets the largest within its share, see :func:`shares`. Then what rounding
    left over buys next sizes, for the part that is furthest below its share first.

    Raises:
        ValueError: the smallest sizes together are over ``room``.
    """
    due = shares(room, weights, sizes)
    chosen = {name: _place(sizes[name], due[name]) for name in sorted(weights)}
    left = room - sum(sizes[name][place] for name, place in chosen.items())
    while True:
        steps = [
            (sizes[name][place] - due[name], name)
            for name, place in chosen.items()
            if place + 1 < len(sizes[name]) and sizes[name][place + 1] - sizes[name][place] <= left
        ]
        if not steps:
            return Division(chosen, left)
        _, name = min(steps)
        left -= sizes[name][chosen[name] + 1] - sizes[name][chosen[name]]
        chosen[name] += 1


def shares(room: int, weights: Mapping[str, float], sizes: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Bytes in proportion to the weights, none outside what its part can use: what one cannot use, others share.

    Raises:
        ValueError: the smallest sizes together are over ``room``.
    """
    least = sum(sizes[name][0] for name in weights)
    if least > room:
        raise ValueError(f"the smallest sizes take {least} bytes, there are {room}")
    found: dict[str, float] = {}
    free, left = sorted(weights), float(room)
    while free:
        total = sum(weights[name] for name in free)
        part = {name: left * weights[name] / total if total > 0 else left / len(free) for name in free}
        bound = {name: min(max(part[name], sizes[name][0]), sizes[name][-1]) for name in free}
        # Settle those on the side that moves more bytes: the others' shares then only move away from that side.
        moved = sum(bound.values()) - sum(part.values())
        settled = [name for name in free if (bound[name] - part[name]) * moved > 0] or free
        found |= {name: float(bound[name]) for name in settled}
        left -= sum(bound[name] for name in settled)
        free = [name for name in free if name not in found]
    return found


def _place(sizes: Sequence[int], share: float) -> int:
    """The largest size within a share, or the smallest."""
    return max(bisect_right(sizes, share) - 1, 0)
