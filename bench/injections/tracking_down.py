"""F13: an MLflow server that is absent, hangs, answers 500 or dies in the middle."""

from __future__ import annotations

from pathlib import Path

from bench.injections.tally import NotBuiltError, Scale, Tally


def inject(scale: Scale, folder: Path) -> Tally:
    """Not yet."""
    raise NotBuiltError(
        "servers that are absent, hang, answer 500 or die are injected by the tests of the tracker alone; the "
        "counts of this row are not taken here yet"
    )
