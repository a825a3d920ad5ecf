"""Sharding: from the config to placements, and what they mean for each rank, without the hardware.

Shapes: R ranks, n rows of a table.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from recsys_embed import ranks
from recsys_embed.budget import size_in_bytes
from recsys_embed.config import ShardingConfig
from recsys_embed.embeddings.base import Strategy, TableSpec
from recsys_embed.errors import ConfigError
from recsys_embed.hashed import names_of
from recsys_embed.ids import Ids
from recsys_embed.tables.base import Group, Tables, UpdateRule
from recsys_embed.tables.fbgemm import OPTIMIZERS
from recsys_embed.tables.placement import Kind, Placement, kinds_of, row_wise, splits_by_row, table_wise
from recsys_embed.tables.reference import ReferenceTables

ZIPF = 1.05
"""The exponent of the frequencies that are taken for those of a feature without counts."""

_BLOCK = 65_536


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
    placements, fits = place(specs, source.groups, config, rule, world_size=ranks.count(), device_type=device.type)
    if not fits:
        report = describe(placements, [], rule, world_size=ranks.count(), device_memory=memory_of(config))
        raise ConfigError("; ".join(report.trouble), path="sharding.device_memory")
    return ShardedTables(source, placements, rule, device)


def place(
    specs: Sequence[TableSpec],
    groups: Sequence[Group],
    config: ShardingConfig,
    rule: UpdateRule,
    *,
    world_size: int,
    device_type: str,
) -> tuple[list[Placement], bool]:
    """A placement for every table, as pinned in the config or planned by TorchRec, and whether all ranks can hold it.

    Needs no process group. Where nothing fits, the placement is the most even one there is.

    Raises:
        ConfigError: a placement is impossible.
    """
    from recsys_embed.tables.sharded import DoesNotFit, plan_placements

    check_rule(rule.name)
    kinds = kinds_of(
        specs,
        config.placement,
        world_size=world_size,
        replicate_below=size_in_bytes(config.replicate_below),
        rule=rule,
    )
    lanes = [name for group in groups for name in group.lanes]
    memory = memory_of(config)
    try:
        placements = plan_placements(
            specs, lanes, kinds, rule, world_size=world_size, device_type=device_type, device_memory=memory
        )
    except DoesNotFit:
        return _most_even(specs, kinds, rule, world_size), False
    most = max(sum(one.bytes_on(rank, rule) for one in placements) for rank in range(world_size))
    return placements, memory is None or most <= memory


def check_rule(name: str) -> None:
    """Refuse a tables optimizer that sharded tables have not.

    Raises:
        ConfigError: it is one.
    """
    if name not in OPTIMIZERS:
        raise ConfigError(
            f"sharded tables cannot be trained by {name!r}: take one of {', '.join(map(repr, OPTIMIZERS))}",
            path="training.optimizer.tables",
        )


def memory_of(config: ShardingConfig) -> int | None:
    """Bytes that a rank may give; None for no limit."""
    return None if config.device_memory is None else size_in_bytes(config.device_memory)


def _most_even(
    specs: Sequence[TableSpec], kinds: Mapping[str, Sequence[Kind]], rule: UpdateRule, world_size: int
) -> list[Placement]:
    """Rows of every table on all ranks, where it may be so; others, largest first, on the rank with most room."""
    used = [0] * world_size
    found: dict[str, Placement] = {}
    for spec in sorted(specs, key=lambda spec: (-spec.rows * spec.width, spec.name)):
        if "data_parallel" in kinds[spec.name]:
            one = Placement(spec, "data_parallel")
        elif "row_wise" in kinds[spec.name] and splits_by_row(spec.rows, world_size):
            one = row_wise(spec, world_size)
        else:
            one = table_wise(spec, used.index(min(used)))
        found[spec.name] = one
        used = [bytes_ + one.bytes_on(rank, rule) for rank, bytes_ in enumerate(used)]
    return [found[spec.name] for spec in specs]


# --- how often rows are read ---------------------------------------------------------------------------------


def row_loads(strategies: Sequence[nn.Module]) -> dict[str, NDArray[np.float64]]:
    """How often each row ``[n]`` of every table is read in a pass over the training data, by the ids' frequencies.

    Features without counts are taken to be ranked by frequency, with that of Zipf's law (:data:`ZIPF`). NaN for tables
    that a hashed feature reads: nobody has a list of its ids.
    """
    loads: dict[str, NDArray[np.float64]] = {}
    for strategy in strategies:
        assert isinstance(strategy, Strategy)
        for spec in strategy.tables():
            loads[spec.name] = np.zeros(spec.rows)
        homes, count = strategy.reads(), len(strategy.features)
        for place, feature in enumerate(strategy.features):
            if feature.hashed:
                for tables in homes.values():
                    for table in tables[place]:
                        loads[table][:] = np.nan
                continue
            weights = _frequencies(feature.counts, feature.size)
            for start in range(0, feature.size, _BLOCK):
                ids = torch.arange(start, min(start + _BLOCK, feature.size))
                batch = torch.zeros(count, ids.numel(), dtype=torch.int64)
                batch[place] = ids
                for name, rows in strategy.address(Ids(batch, count)).rows.items():
                    for slot, table in enumerate(homes[name][place]):
                        asked = rows[place, slot].numpy()
                        there = asked >= 0
                        part = weights[start : start + ids.numel()][there]
                        loads[table] += np.bincount(asked[there], part, len(loads[table]))
    return loads


def _frequencies(counts: NDArray[Any] | None, size: int) -> NDArray[np.float64]:
    if counts is not None:
        return np.asarray(counts, np.float64)
    law = 1 / np.arange(1, size + 1) ** ZIPF
    return np.asarray(law / law.sum(), np.float64)


def work_of(
    placement: Placement, load: NDArray[np.float64], world_size: int, *, scattered: bool = True
) -> NDArray[np.float64]:
    """Floats that each rank ``[R]`` reads of a table for others; none of a data-parallel one.

    Without ``scattered``: as if the blocks of rows were contiguous.
    """
    work = np.zeros(world_size)
    scatter = placement.scatter if scattered else None
    place = np.arange(len(load)) if scatter is None else scatter(torch.arange(len(load))).numpy()
    for shard in placement.shards:
        inside = (place >= shard.row) & (place < shard.row + shard.rows)
        work[shard.rank] += load[inside].sum() * shard.columns
    return work


def balance(work: NDArray[np.float64]) -> float:
    """The busiest rank's work over the mean: 1 is even, R is all on one rank. NaN where work is unknown."""
    return float(work.max() / work.mean()) if work.sum() else 1.0


# --- what is printed -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ShardingReport:
    """A plan to read. ``tables`` and ``ranks`` have a dict of plain values for each; ``trouble`` says what does not
    fit, and is empty where all does. Balances and shares are NaN where hashed features read a table: how often
    is not known row by row, and ``not_measured`` names them."""

    world_size: int
    device_memory: int | None
    tables: list[dict[str, Any]]
    ranks: list[dict[str, Any]]
    contiguous_balance: float
    balance: float
    trouble: list[str]
    not_measured: str = ""

    def document(self) -> dict[str, Any]:
        """Everything, ready for JSON: what is unknown is None."""
        tree: dict[str, Any] = _without_nan(dataclasses.asdict(self))
        return tree

    def text(self) -> str:
        """Two tables and a line on the balance."""
        lines = [*_aligned(self.tables), "", *_aligned(self.ranks), ""]
        if self.not_measured:
            lines.append(f"not measured: {self.not_measured}")
        else:
            lines.append(
                f"busiest of {self.world_size} ranks, in units of the mean: {self.balance:.2f} "
                f"(with contiguous blocks of rows: {self.contiguous_balance:.2f})"
            )
        return "\n".join(lines + self.trouble)


def describe(
    placements: Sequence[Placement],
    strategies: Sequence[nn.Module],
    rule: UpdateRule,
    *,
    world_size: int,
    device_memory: int | None,
) -> ShardingReport:
    """What placements mean for each rank: bytes, and work by the frequencies of the strategies' features."""
    loads = row_loads(strategies)
    before, after = np.zeros(world_size), np.zeros(world_size)
    tables = []
    for placement in placements:
        spec = placement.spec
        load = loads.get(spec.name, np.zeros(spec.rows))
        contiguous, scattered = (work_of(placement, load, world_size, scattered=one) for one in (False, True))
        before, after = before + contiguous, after + scattered
        tables.append(
            {
                "table": spec.name,
                "rows": spec.rows,
                "width": spec.width,
                "dtype": spec.storage.dtype,
                "placement": placement.kind,
                "ranks": ",".join(map(str, placement.ranks)) if placement.shards else "all",
                "bytes_per_rank": max(placement.bytes_on(rank, rule) for rank in range(world_size)),
                "contiguous_balance": balance(contiguous),
                "balance": balance(scattered),
            }
        )
    each = [sum(one.bytes_on(rank, rule) for one in placements) for rank in range(world_size)]
    by_rank = [
        {
            "rank": rank,
            "bytes": each[rank],
            **({} if device_memory is None else {"of_memory": each[rank] / device_memory}),
            "contiguous_share": before[rank] / max(before.sum(), 1e-300),
            "share": after[rank] / max(after.sum(), 1e-300),
        }
        for rank in range(world_size)
    ]
    trouble = [] if device_memory is None else _trouble(placements, rule, world_size, device_memory)
    hashed = names_of([feature for one in strategies if isinstance(one, Strategy) for feature in one.features])
    unknown = (
        f"work and its balance: {hashed} are hashed, their ids are not counted one by one"
        if hashed and np.isnan(after).any()
        else ""
    )
    return ShardingReport(world_size, device_memory, tables, by_rank, balance(before), balance(after), trouble, unknown)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and np.isnan(value) else value


def _trouble(placements: Sequence[Placement], rule: UpdateRule, world_size: int, memory: int) -> list[str]:
    """The tables that are left over once the smaller ones have filled the fullest rank."""
    rank = max(range(world_size), key=lambda rank: sum(one.bytes_on(rank, rule) for one in placements))
    sizes = sorted((one.bytes_on(rank, rule), one.spec.name) for one in placements)
    total, found = 0, []
    for size, name in sizes:
        total += size
        if total > memory:
            found.append(f"does not fit: table {name!r} needs {size:,} bytes on rank {rank}")
    if found:
        every = sum(one.bytes_on(r, rule) for one in placements for r in range(world_size))
        found.append(
            f"{total:,} bytes on rank {rank}, {memory:,} a rank may give; {every:,} bytes over all {world_size} ranks"
        )
    return found


def _aligned(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each row, numbers to the right."""

    def cell(value: Any) -> str:
        if isinstance(value, float):
            return "–" if np.isnan(value) else f"{value:.3f}"
        return f"{value:,}" if isinstance(value, int) else str(value)

    names = list(rows[0])
    cells = [[name.replace("_", " ") for name in names], *([cell(row[name]) for name in names] for row in rows)]
    wide = [max(len(line[place]) for line in cells) for place in range(len(names))]
    number = [not isinstance(rows[0][name], str) for name in names]
    return [
        "  ".join(t.rjust(w) if n else t.ljust(w) for t, w, n in zip(line, wide, number, strict=True)).rstrip()
        for line in cells
    ]
