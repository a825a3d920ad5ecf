"""The contract, for full."""

from recsys_embed.config import FullConfig
from recsys_embed.testing import StrategyContract


class TestFull(StrategyContract):
    config = FullConfig()
    budget = None
