"""F2: a rank that dies in its write."""

from __future__ import annotations

from pathlib import Path

from bench.injections.tally import NotBuiltError, Scale, Tally


def inject(scale: Scale, folder: Path) -> Tally:
    """Not yet."""
    raise NotBuiltError("there is no checkpoint of several ranks yet: `train` refuses WORLD_SIZE above 1")
