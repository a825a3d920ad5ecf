"""F5: one bit flipped at a random place of every kind of file; the newest valid state is fallen back to."""

from __future__ import annotations

import random
from pathlib import Path

from bench.injections.damage import damage_everything
from bench.injections.tally import Scale, Tally


def flip(data: bytes, draw: random.Random) -> bytes:
    """The same bytes with one bit turned over."""
    if not data:
        return data
    changed = bytearray(data)
    changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def inject(scale: Scale, folder: Path) -> Tally:
    """Flip bits in all artifacts."""
    return damage_everything(flip, scale.of(40, 200), folder)
