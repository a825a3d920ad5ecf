"""Sharding: from the config to placements, and what they mean for each rank.

Shapes: R ranks, n rows of a table.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from recsys_embed import ranks
from recsys_embed.budget import size_in_bytes
from recsys_embed.config import ShardingConfig
from recsys_embed.embeddings.base import TableSpec
from recsys_embed.errors import ConfigError
from recsys_embed.tables.base import Group, Tables, UpdateRule
from recsys_embed.tables.placement import Placement, kinds_of
from recsys_embed.tables.reference import ReferenceTables


def sharded(source: ReferenceTables, config: ShardingConfig, rule: UpdateRule, device: torch.device) -> Tables:
    """The tables of ``source``, cut up over the ranks of the process group; a collective call.

    Raises:
        ConfigError: there is no process group, a placement is impossible, or the tables do not fit.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        raise ConfigError(
            "the sharded back end needs a process group: start the training with torchrun", path="embedding.backend"
        )
    from recsys_embed.tables.sharded import ShardedTables

    specs = list(source.specs.values())
    placements = place(specs, source.groups, config, rule, world_size=ranks.count(), device_type=device.type)
    return ShardedTables(source, placements, rule, device)


def place(
    specs: Sequence[TableSpec],
    groups: Sequence[Group],
    config: ShardingConfig,
    rule: UpdateRule,
    *,
    world_size: int,
    device_type: str,
) -> list[Placement]:
    """A placement for every table, as pinned in the config or planned by TorchRec. Needs no process group.

    Raises:
        ConfigError: a placement is impossible, or no placement fits ``device_memory``.
    """
    from recsys_embed.tables.sharded import DoesNotFit, plan_placements

    kinds = kinds_of(
        specs,
        config.placement,
        world_size=world_size,
        replicate_below=size_in_bytes(config.replicate_below),
        rule=rule,
    )
    lanes = [name for group in groups for name in group.lanes]
    memory = None if config.device_memory is None else size_in_bytes(config.device_memory)
    try:
        return plan_placements(
            specs, lanes, kinds, rule, world_size=world_size, device_type=device_type, device_memory=memory
        )
    except DoesNotFit as error:
        raise ConfigError(
            f"the tables do not fit {world_size} ranks of {memory} bytes: {error}", path="sharding.device_memory"
        ) from error
