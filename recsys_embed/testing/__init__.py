"""Contract tests that new strategies and models inherit in about ten lines; see CONTRIBUTING.md."""

from recsys_embed.testing.models import ModelContract
from recsys_embed.testing.strategies import (
    BAGS,
    FEATURES,
    HashedContract,
    StrategyContract,
    draw_ids,
    slow_vectors,
    train_steps,
)

__all__ = [
    "BAGS",
    "FEATURES",
    "HashedContract",
    "ModelContract",
    "StrategyContract",
    "draw_ids",
    "slow_vectors",
    "train_steps",
]
