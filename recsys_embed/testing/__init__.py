"""Contract tests that new strategies and models inherit in about ten lines; see CONTRIBUTING.md."""

from recsys_embed.testing.models import ModelContract
from recsys_embed.testing.strategies import BAGS, FEATURES, StrategyContract, draw_ids, slow_vectors, train_steps

__all__ = ["BAGS", "FEATURES", "ModelContract", "StrategyContract", "draw_ids", "slow_vectors", "train_steps"]
