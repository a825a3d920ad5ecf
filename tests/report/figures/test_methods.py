from __future__ import annotations

from recsys_embed.config import STRATEGIES
from recsys_embed.report.figures.methods import series


def test_a_strategy_keeps_its_colour_and_full_is_ink() -> None:
    assert series("full") is None
    colours = [series(name) for name in STRATEGIES if name != "full"]
    assert len(set(colours)) == min(len(colours), 7)
