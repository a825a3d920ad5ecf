"""F4: every kind of file cut at a random place.

A plain CSV file that is cut between two rows is a shorter CSV file, which no reader can tell: ``.gz`` can.
"""

from __future__ import annotations

import random
from pathlib import Path

from bench.injections.damage import damage_everything
from bench.injections.tally import Scale, Tally


def cut(data: bytes, draw: random.Random) -> bytes:
    """The first bytes alone; possibly none."""
    return data[: draw.randrange(len(data))] if data else data


def inject(scale: Scale, folder: Path) -> Tally:
    """Cut all artifacts."""
    return damage_everything(cut, scale.of(15, 50), folder)
