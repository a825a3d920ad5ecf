"""What features without a vocabulary cannot have, refused by name before anything is read, trained or allocated.

The ids of a hashed feature are hashes of raw values. Nobody knows how many there are, nor how often each occurs: there
is no full table to compare with, no share of it to keep, and no strategy can count on ids in order of frequency.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from recsys_embed.config import FullConfig, StrategyNode
from recsys_embed.embeddings import CLASSES
from recsys_embed.errors import ConfigError
from recsys_embed.features import Feature
from recsys_embed.storage import FP32

if TYPE_CHECKING:
    from recsys_embed.budget import ByteBudget


def names_of(features: Sequence[Feature]) -> str:
    """The hashed ones among some features, joined by commas."""
    return ", ".join(feature.name for feature in features if feature.hashed)


def check_hashed(
    assigned: Mapping[str, Sequence[Feature]],
    strategy: Mapping[str, StrategyNode],
    budget: ByteBudget | None,
    exact: Sequence[str] | None,
) -> None:
    """Check that strategies and a budget can do without the number of ids, where features are hashed.

    Args:
        assigned: the features of each pattern.
        strategy: the strategy of each pattern.
        budget: that of the layer.
        exact: features that shall never be compressed.

    Raises:
        ConfigError: they cannot; names pattern and features.
    """
    takers = [config for config, cls in CLASSES.items() if cls.takes_hashed]
    able = ", ".join(config.model_fields["name"].default for config in takers)
    for pattern, features in assigned.items():
        names = names_of(features)
        if not names:
            continue
        config, path = strategy[pattern], f"embedding.strategy.{pattern}"
        if type(config) not in takers:
            raise ConfigError(
                f"strategy {config.name!r} needs a vocabulary, and {names} have none (raw hash): nobody knows how many "
                f"ids there are, nor which are frequent; {able} take them",
                path=path,
            )
        if budget is not None and budget.bytes is None:
            raise ConfigError(
                f"a budget of {budget.text!r} is a share of the full tables, and {names} have none (raw hash), as "
                "nobody knows how many ids there are: give bytes, such as '64MB'",
                path="embedding.budget",
            )
        if config.bytes is not None:
            continue
        if budget is None:
            raise ConfigError(f"{names} are hashed: give a budget in bytes, such as '64MB'", path="embedding.budget")
        sharing = [
            other
            for other, node in strategy.items()
            if node.bytes is None and not node.settled and not _has_one_size(node)
        ]
        if len(sharing) > 1:
            raise ConfigError(
                f"patterns {', '.join(map(repr, sharing))} share the budget in proportion to their full tables, and "
                f"{names} under {pattern!r} have none (raw hash): give {pattern!r} bytes of its own",
                path=f"{path}.bytes",
            )
    hashed = {feature.name for features in assigned.values() for feature in features if feature.hashed}
    for name in exact or ():
        if name in hashed:
            raise ConfigError(
                f"exact names {name!r}, which is hashed: there is no table with a row for each of its ids",
                path="embedding.exact",
            )


def _has_one_size(config: StrategyNode) -> bool:
    return isinstance(config, FullConfig) and config.table_storage() == FP32
