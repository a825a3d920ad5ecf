"""The one hash family: a seeded splitmix64 finaliser, mapped to rows by multiply-shift.

``row(x) = (high32(mix(x + seed)) * rows) >> 32`` with

    mix(z):  z ^= z >> 30;  z *= 0xBF58476D1CE4E5B9;  z ^= z >> 27;  z *= 0x94D049BB133111EB;  z ^= z >> 31

in unsigned 64-bit arithmetic (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014, with
Stafford's mix 13; Lemire, "Fast random integer generation in an interval", 2019). Torch has no unsigned 64-bit
multiplication, so everything is wrapped ``int64`` and right shifts are masked. A plain remainder of raw ids is never
taken: strided ids would share rows.

The family is frozen by a table of known answers in the tests: any change would invalidate every committed result.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recsys_embed.native.choice import address

MAX_ROWS = 2**31 - 1  # the product of 32 hash bits and the row count must stay below 2**63


def _signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


_MULTIPLY_1 = _signed(0xBF58476D1CE4E5B9)
_MULTIPLY_2 = _signed(0x94D049BB133111EB)


def mix(values: Tensor) -> Tensor:
    """64 well-mixed bits of each ``int64`` value; a bijection. Changes ``values`` in place and returns it."""
    values ^= (values >> 30).bitwise_and_((1 << 34) - 1)
    values *= _MULTIPLY_1
    values ^= (values >> 27).bitwise_and_((1 << 37) - 1)
    values *= _MULTIPLY_2
    values ^= (values >> 31).bitwise_and_((1 << 33) - 1)
    return values


SIGNS = 32
"""Signs that one hash gives: its high bits. Of sequential ids, low bits 4 to 6 agree with the ones 31 places further up
in 52 % of cases and not in 50 %, for the last step of the mix folds the one onto the other."""


def hash_signs(values: Tensor, seeds: Tensor, count: int) -> Tensor:
    """Signs of any integer values: -1 or +1, ``count`` for each, one from each of the high bits of its hashes.

    Args:
        values: integer ids ``[..., 1]``.
        seeds: ``int64`` seeds ``[..., ceil(count / SIGNS)]``, broadcastable against ``values``.
        count: signs for each value.

    Returns:
        ``int8`` signs ``[..., count]``, of the broadcast shape; ``values`` is left as it was.
    """
    bits = mix(values.to(torch.int64) + seeds).unsqueeze(-1)
    places = torch.arange(32, 32 + min(count, SIGNS), device=bits.device)
    ones = (bits >> places).bitwise_and_(1).to(torch.int8)
    return ones.flatten(-2)[..., :count].mul_(2).sub_(1)


def hash_rows(values: Tensor, seeds: Tensor, rows: Tensor) -> Tensor:
    """Row numbers in ``[0, rows)`` of any integer values.

    Args:
        values: integer ids or raw 64-bit values, any shape.
        seeds: ``int64`` seeds, broadcastable to the result.
        rows: ``int64`` table sizes, at most :data:`MAX_ROWS`, broadcastable to the result.

    Returns:
        ``int64`` rows, of the broadcast shape; ``values`` is left as it was.
    """
    found = address(values, seeds, rows, digits=False)
    if found is not None:
        return found
    bits = mix(values.to(torch.int64) + seeds)
    return (bits >> 32).bitwise_and_(0xFFFFFFFF).mul_(rows) >> 32
