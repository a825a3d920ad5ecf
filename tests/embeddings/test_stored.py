"""The contract of every strategy that has a storage, in every storage."""

from recsys_embed.config import (
    CompositionalConfig,
    FullConfig,
    HashConfig,
    MixedDimensionConfig,
    StoredNode,
    UnifiedConfig,
)
from recsys_embed.testing import StrategyContract

CONFIGS: list[type[StoredNode]] = [FullConfig, HashConfig, UnifiedConfig, CompositionalConfig, MixedDimensionConfig]


def contract(config: StoredNode) -> type[StrategyContract]:
    budget = None if isinstance(config, FullConfig) else 0.1
    return type(
        f"Test{type(config).__name__}In{config.storage}", (StrategyContract,), {"config": config, "budget": budget}
    )


for _node in CONFIGS:
    for _storage in ("fp16", "bf16", "int8", "int16"):
        _made = contract(_node(storage=_storage))
        globals()[_made.__name__] = _made
