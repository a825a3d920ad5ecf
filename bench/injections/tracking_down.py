"""F13: an MLflow server that is absent, hangs, answers 500 or dies in the middle."""

from __future__ import annotations

from pathlib import Path

from bench.injections.tally import NotBuiltError, Scale, Tally


def inject(scale: Scale, folder: Path) -> Tally:
    """Not yet."""
    raise NotBuiltError(
        "there is no local spool yet, so metrics of the time a server was away cannot be counted back in; that a "
        "training goes on without its server is a test of the tracker"
    )
