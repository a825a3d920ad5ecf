"""Dividing a byte budget: shares become sizes, and no division is ever over the budget.

All integers are bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Division:
    """What each part got: the place of its size in its list of sizes; and the bytes that nobody could use."""

    chosen: dict[str, int]
    left_over: int


def divide(room: int, weights: Mapping[str, float], sizes: Mapping[str, Sequence[int]]) -> Division:
    """Divide ``room`` among parts in proportion to their weights.

    Each part has sizes of its own, rising. It gets the largest within its share, where the share of a part that cannot
    use all of it goes to the others. Then what rounding left over buys next sizes, for the part that is furthest below
    its share first. Where not even the smallest sizes fit, nothing does.

    Raises:
        ValueError: the smallest sizes together are over ``room``.
    """
    names = sorted(weights)
    least = sum(sizes[name][0] for name in names)
    if least > room:
        raise ValueError(f"the smallest sizes take {least} bytes, there are {room}")
    shares = _shares(room, {name: weights[name] for name in names}, sizes)
    chosen = {name: _place(sizes[name], shares[name]) for name in names}
    left = room - sum(sizes[name][place] for name, place in chosen.items())
    if left < 0:  # smallest sizes above their shares: the largest steps back until it fits
        for name in sorted(names, key=lambda name: (shares[name] - sizes[name][chosen[name]], name), reverse=True):
            while left < 0 and chosen[name]:
                left += sizes[name][chosen[name]] - sizes[name][chosen[name] - 1]
                chosen[name] -= 1
    while True:
        steps = [
            (sizes[name][chosen[name]] - shares[name], name)
            for name in names
            if chosen[name] + 1 < len(sizes[name]) and sizes[name][chosen[name] + 1] - sizes[name][chosen[name]] <= left
        ]
        if not steps:
            return Division(chosen, left)
        _, name = min(steps)
        left -= sizes[name][chosen[name] + 1] - sizes[name][chosen[name]]
        chosen[name] += 1


def _shares(room: int, weights: Mapping[str, float], sizes: Mapping[str, Sequence[int]]) -> dict[str, float]:
    """Bytes in proportion to the weights, none above what the part can use."""
    shares = dict.fromkeys(weights, 0.0)
    open_parts, left = dict(weights), float(room)
    while open_parts:
        total = sum(open_parts.values())
        part = {
            name: left * weight / total if total > 0 else left / len(open_parts) for name, weight in open_parts.items()
        }
        full = [name for name in open_parts if part[name] >= sizes[name][-1]]
        if not full:
            return shares | part
        for name in full:
            shares[name] = float(sizes[name][-1])
            left -= shares[name]
            del open_parts[name]
    return shares


def _place(sizes: Sequence[int], share: float) -> int:
    """The largest size within a share, or the smallest."""
    place = 0
    while place + 1 < len(sizes) and sizes[place + 1] <= share:
        place += 1
    return place
