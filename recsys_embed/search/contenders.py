"""Ways to find widths: strategies that find their own while they train, and samplers that draw from a space."""

from __future__ import annotations

from collections.abc import Mapping

from recsys_embed.config import (
    Config,
    DnisConfig,
    FullConfig,
    MagnitudeConfig,
    MixedDimensionConfig,
    PepConfig,
    StrategyNode,
)

ONE_TRAINING: Mapping[str, StrategyNode] = {
    "full": FullConfig(),
    "uniform": MixedDimensionConfig(alpha=0.0, power_of_two=False),
    "mde": MixedDimensionConfig(),
    "magnitude": MagnitudeConfig(),
    "pep": PepConfig(),
    "dnis": DnisConfig(),
}
"""Full tables, to compare with; one width for all; widths by cardinality, in closed form; and three that learn which
weights to keep."""

SAMPLED = ("random", "optuna", "pareto")
"""Methods that draw trials from a space."""
METHODS = (*ONE_TRAINING, *SAMPLED)
"""All methods, the simpler ones first."""


def trained_once(config: Config, method: str) -> Config:
    """The config that a method of one training stands for; full tables have no budget."""
    node = ONE_TRAINING[method]
    budget = None if isinstance(node, FullConfig) else config.embedding.budget
    embedding = config.embedding.model_copy(update={"strategy": {"*": node}, "budget": budget})
    return config.model_copy(update={"embedding": embedding})
