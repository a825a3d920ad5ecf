"""The sharded back end: rows on other ranks, by TorchRec. The only importer of it.

Shapes: L lanes of a group, B samples of this rank, W width, R ranks.

Every group is one ``EmbeddingBagCollection`` whose features are the group's lanes: single-valued lookups are bags of
one, so that all of a group goes through one pooled exchange. Tables that are data-parallel lie whole on every rank in a
:class:`~recsys_embed.tables.reference.ReferenceTables`, whose updates merge the gradients of all ranks first.

The calls that read or write rows are collective: every rank makes them in the same order. Batches may differ in size,
and be empty; TorchRec's row-wise exchange wants equal ones, so that the shorter end in empty bags.

Gradients of ranks add up: the objective is the sum of what the ranks minimise. TorchRec divides by the number of ranks
in the exchange's backward; that is undone here.

DIFF from TorchRec: its modules initialise their rows by themselves, its outputs come in the order of the plan, and a
fused optimizer asked for a data-parallel table is dropped. Here rows are a function of seed and name, outputs are in
lane order, and data-parallel tables have the same rule as all others.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import xxhash
from torch import Tensor, nn

from recsys_embed import ranks
from recsys_embed.chatter import quiet
from recsys_embed.doctor import check_stack
from recsys_embed.embeddings.base import Rows, TableSpec
from recsys_embed.errors import ConfigError
from recsys_embed.ids import Ids
from recsys_embed.share import WHOLE, Share
from recsys_embed.tables.base import INIT_BLOCK, Group, Part, Request, Tables, UpdateRule, row_blocks
from recsys_embed.tables.fbgemm import correction, optimizer_of, padded, refuse_to_move
from recsys_embed.tables.placement import Kind, Placement, Scatter, Shard, column_wise, row_wise, table_wise
from recsys_embed.tables.reference import ReferenceTables


class ShardedTables(Tables):
    """Takes over the weights of ``source``, which holds the same on every rank, or nothing yet on the meta device."""

    def __init__(
        self, source: ReferenceTables, placements: Sequence[Placement], rule: UpdateRule, device: torch.device
    ) -> None:
        super().__init__(list(source.specs.values()), source.groups, source.seed)
        agree(placements)
        self.rule = rule
        self._placements = {placement.spec.name: placement for placement in placements}
        self._scatters = {name: placement.scatter for name, placement in self._placements.items()}
        self._device = device
        self._lr = math.nan
        self._sides, whole = _sides(self.groups, self._placements)
        # In lists: no part of the module tree, whose parameters and state are the caller's.
        self._replicas = [ReferenceTables([self.specs[name] for name in whole.names], whole.groups, source.seed)]
        self._replicas[0].to(device).train_by(rule, over_ranks=True)
        self._exchanges = [
            _Exchange(_Lanes(side.exchanged, group, self), rule, device) if side.exchanged else None
            for side, group in zip(self._sides, self.groups, strict=True)
        ]
        self._pieces: dict[str, list[_Piece]] = {name: [] for name in self.specs}
        for exchange in self._exchanges:
            for name, pieces in ({} if exchange is None else exchange.pieces).items():
                self._pieces[name] = pieces
        with torch.no_grad():
            for name in self.specs:
                for start, weights in source.blocks(name):
                    self._put(name, start, weights)

    @property
    def placements(self) -> tuple[Placement, ...]:
        """Where every table lies."""
        return tuple(self._placements.values())

    def read(self, group: int, request: Request) -> Tensor:
        """The exchange's rows, then those of data-parallel tables, in lane order."""
        side, exchange = self._sides[group], self._exchanges[group]
        parts = []
        if exchange is not None:
            parts.append(exchange.read(_select(request, side.exchanged, len(self.groups[group].lanes))))
        if side.whole:
            whole = self._replicas[0].read(side.place, _select(request, side.whole, len(self.groups[group].lanes)))
            parts.append(whole.detach())
        if len(parts) == 1:
            return parts[0]
        return torch.cat(parts, dim=1)[:, torch.tensor(side.back, device=self._device)]

    def set_lr(self, lr: float) -> None:
        """Kernels take the rate when they read, and keep it for that read's backward."""
        if lr != self._lr:
            self._replicas[0].set_lr(lr)
            for exchange in self._exchanges:
                if exchange is not None:
                    exchange.set_lr(lr)
            self._lr = lr

    def update(self, group: int, request: Request, read: Tensor | None, gradient: Tensor) -> None:
        """The exchange's backward and the kernels' updates in it; data-parallel tables merge over ranks."""
        side = self._sides[group]
        if self._exchanges[group] is not None:
            if read is None:
                with torch.enable_grad():
                    read = self.read(group, request)
            from torchrec.distributed.comm_ops import get_gradient_division

            assert self.rule is not None
            factor = correction(self.rule, self.groups[group].width)
            factor *= ranks.count() if get_gradient_division() else 1
            read.backward(gradient if factor == 1 else gradient * factor)
        if side.whole:
            asked = _select(request, side.whole, len(self.groups[group].lanes))
            self._replicas[0].steps = self.steps
            self._replicas[0].update(side.place, asked, None, gradient[:, side.whole])

    # --- rows by name: logical rows, on every rank ----------------------------------------------------------

    def get(self, name: str) -> Tensor:
        """A copy, gathered from all ranks."""
        return self._gathered(name, "weights")

    def stored(self, name: str) -> Tensor:
        """As it is held where it is whole on every rank, else gathered."""
        whole = self._placements[name].kind == "data_parallel"
        return self._replicas[0].stored(name) if whole else self.get(name)

    def put(self, name: str, weights: Tensor) -> None:
        """Copied to wherever the rows lie."""
        if self._placements[name].kind == "data_parallel":
            self._replicas[0].put(name, weights)
            return
        with torch.no_grad():
            self._put(name, 0, weights)

    def get_state(self, name: str) -> Tensor:
        """A copy, gathered from all ranks."""
        return self._gathered(name, "state")

    def put_state(self, name: str, state: Tensor) -> None:
        """Copied to wherever the rows lie."""
        for start, part in row_blocks(state):
            self._put_rows(name, torch.arange(start, start + part.shape[0], device=self._device), None, part)

    def share(self, name: str, part: Part) -> Tensor:
        """Gathered block by block; no rank holds more than its share and a block."""
        if self._placements[name].kind == "data_parallel":
            return super().share(name, part)
        return self._gathered(name, part, ranks.share())

    def put_share(self, name: str, part: Part, rows: Tensor) -> None:
        """Sent block by block to wherever the rows lie."""
        if self._placements[name].kind == "data_parallel":
            super().put_share(name, part, rows)
            return
        for rank in range(ranks.count()):
            first, last = Share(rank, ranks.count()).of(self.specs[name].rows)
            for start in range(first, last, INIT_BLOCK):
                numbers = torch.arange(start, min(start + INIT_BLOCK, last), device=self._device)
                block = torch.empty(numbers.numel(), rows.shape[1], device=self._device)
                if rank == ranks.own():
                    block.copy_(rows[start - first : start - first + numbers.numel()])
                ranks.sent(block, rank)
                with torch.no_grad():
                    self._put_rows(name, numbers, *((block, None) if part == "weights" else (None, block)))

    def get_rows(self, name: str, rows: Tensor) -> Rows:
        """Summed over ranks: each row comes from the one that holds it."""
        assert self.rule is not None
        if self._placements[name].kind == "data_parallel":
            return self._replicas[0].get_rows(name, rows)
        width, place = self.specs[name].width, self._place(name, rows)
        weights = torch.zeros(rows.numel(), padded(width), device=self._device)
        state = torch.zeros(rows.numel(), self.rule.state_width(padded(width)), device=self._device)
        for piece in self._pieces[name]:
            mine, local = piece.holds(place)
            weights[mine, piece.columns] = piece.weights[local]
            if piece.state is not None:
                state[mine, piece.state_columns] = piece.state[local]
        weights, state = ranks.summed(weights), ranks.summed(state)
        logical = self.rule.state_width(width)
        return Rows(weights[:, :width], state[:, :logical])

    def put_rows(self, name: str, rows: Tensor, values: Rows) -> None:
        """Written on the ranks that hold them."""
        self._put_rows(name, rows, values.weights, values.state)

    @property
    def device(self) -> torch.device:
        """This rank's."""
        return self._device

    def padded_width(self, width: int) -> int:
        """The next multiple of four. Data-parallel tables take a little less than this says."""
        return padded(width)

    def _gathered(self, name: str, part: Part, share: Share = WHOLE) -> Tensor:
        assert self.rule is not None
        width = self.specs[name].width if part == "weights" else self.rule.state_width(self.specs[name].width)
        count = self.specs[name].rows
        first, last = share.of(count)
        out = torch.empty(last - first, width, device=self._device)
        for start in range(0, count, INIT_BLOCK):  # every rank takes part in every block
            stop = min(start + INIT_BLOCK, count)
            rows = self.get_rows(name, torch.arange(start, stop, device=self._device))
            low, high = max(start, first), min(stop, last)
            if low < high:
                whole = rows.weights if part == "weights" else rows.state
                out[low - first : high - first] = whole[low - start : high - start]
        return out

    def _put(self, name: str, first: int, weights: Tensor) -> None:
        for start, part in row_blocks(weights):
            rows = torch.arange(first + start, first + start + part.shape[0], device=self._device)
            self._put_rows(name, rows, part, None)

    def _put_rows(self, name: str, rows: Tensor, weights: Tensor | None, state: Tensor | None) -> None:
        if self._placements[name].kind == "data_parallel":
            there = self._replicas[0]
            now = there.get_rows(name, rows)
            weights = now.weights if weights is None else weights.to(self._device)
            there.put_rows(name, rows, Rows(weights, now.state if state is None else state.to(self._device)))
            return
        width, place = self.specs[name].width, self._place(name, rows)
        wide = padded(width)
        if weights is not None:
            weights = F.pad(weights.detach().to(self._device), (0, wide - width))
        if state is not None:
            state = state.to(self._device)
            if state.shape[1] == width and state.shape[1] != 1:
                state = F.pad(state, (0, wide - width))
        for piece in self._pieces[name]:
            mine, local = piece.holds(place)
            if weights is not None:
                piece.weights[local] = weights[mine, piece.columns]
            if state is not None and piece.state is not None:
                piece.state[local] = state[mine, piece.state_columns]

    def _place(self, name: str, rows: Tensor) -> Tensor:
        scatter = self._scatters[name]
        return rows if scatter is None else scatter(rows)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ShardedTables:
        refuse_to_move("sharded", fn, self._device)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


# --- one group's exchange ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Lanes:
    """The lanes of a group that go through its exchange."""

    lanes: list[int]
    group: Group
    tables: ShardedTables

    @property
    def names(self) -> list[str]:
        """The table of each lane."""
        return [self.group.lanes[lane] for lane in self.lanes]


@dataclass(frozen=True)
class _Piece:
    """A shard on this rank: views of the kernel's memory."""

    shard: Shard
    weights: Tensor
    state: Tensor | None

    @property
    def columns(self) -> slice:
        return slice(self.shard.column, self.shard.column + self.shard.columns)

    @property
    def state_columns(self) -> slice:
        assert self.state is not None
        return slice(0, 1) if self.state.shape[1] == 1 else self.columns

    def holds(self, place: Tensor) -> tuple[Tensor, Tensor]:
        """Which of some scattered rows lie here, and where."""
        local = place - self.shard.row
        mine = ((local >= 0) & (local < self.shard.rows)).nonzero().view(-1)
        return mine, local[mine]


class _Exchange:
    """A sharded collection over the lanes of one group."""

    def __init__(self, lanes: _Lanes, rule: UpdateRule, device: torch.device) -> None:
        self._width, self._device = lanes.group.width, device
        self._wide = padded(self._width)
        self._names = lanes.names
        self._keys = [f"lane{lane}" for lane in range(len(self._names))]
        self._order: Tensor | None = None
        tables = lanes.tables
        placements = {name: tables._placements[name] for name in dict.fromkeys(self._names)}
        self._correction = correction(rule, self._width)
        self._module = _sharded_module(placements, self._keys, self._names, rule, device)
        scatters = [tables._scatters[name] for name in self._names]
        self._scattered = any(scatter is not None for scatter in scatters)
        specs = [tables.specs[name] for name in self._names]
        plain = [s or Scatter(spec.rows, 1, 0) for s, spec in zip(scatters, specs, strict=True)]
        self._affine = torch.tensor([[s.multiplier, s.offset, s.rows] for s in plain], device=device)  # [L, 3]
        self.pieces = _pieces(self._module, placements, rule)

    def read(self, request: Request) -> Tensor:
        """``[B, L, W]``: one exchange of rows, one of vectors."""
        lanes = len(self._keys)
        facts = torch.tensor([request.batch, request.weights is not None], device=self._device)
        longest, weighted = ranks.largest(facts).tolist()
        if not longest:
            return torch.zeros(0, lanes, self._width, device=self._device, requires_grad=torch.is_grad_enabled())
        keyed = self._module(self._bags(request, longest, bool(weighted)))
        keyed = keyed.wait() if hasattr(keyed, "wait") else keyed
        read: Tensor = keyed.values().view(longest, lanes, self._wide)[: request.batch, :, : self._width]
        if self._order is None:
            place = {key: position for position, key in enumerate(keyed.keys())}
            self._order = torch.tensor([place[key] for key in self._keys], device=self._device)
            self._in_order = self._order.tolist() == list(range(lanes))
        return read if self._in_order else read[:, self._order]

    def set_lr(self, lr: float) -> None:
        """For the reads that follow."""
        optimizer = self._module.fused_optimizer
        for group in optimizer.param_groups:
            group["lr"] = lr / self._correction
        optimizer.step()

    def _bags(self, request: Request, longest: int, weighted: bool) -> Any:
        from torchrec import KeyedJaggedTensor

        rows, offsets = request.jagged()
        lengths = offsets.diff().view(len(self._keys), request.batch)
        if self._scattered:
            each = lengths.sum(dim=1)
            multiplier, offset, size = self._affine.repeat_interleave(each, dim=0, output_size=rows.numel()).unbind(1)
            rows = (rows.to(torch.int64) * multiplier + offset) % size
        weights = request.weights
        if weighted and weights is None:  # some other rank's bags have weights
            weights = torch.ones(rows.numel(), device=self._device)
        return KeyedJaggedTensor(
            self._keys,
            rows.to(torch.int64).contiguous(),
            weights=None if weights is None else weights.to(torch.float32).contiguous(),
            lengths=F.pad(lengths, (0, longest - request.batch)).reshape(-1).to(torch.int32),
            stride=longest,
        )


def _sharded_module(
    placements: Mapping[str, Placement],
    keys: Sequence[str],
    names: Sequence[str],
    rule: UpdateRule,
    device: torch.device,
) -> Any:
    check_stack(sharded=True)
    with quiet():
        from torchrec.distributed.types import EnumerableShardingSpec, ParameterSharding, ShardingEnv, ShardMetadata

        features = [[key for key, name in zip(keys, names, strict=True) if name == table] for table in placements]
        where = {
            _table(number): ParameterSharding(
                sharding_type=placement.kind,
                compute_kernel="fused",
                ranks=[shard.rank for shard in placement.shards],
                sharding_spec=EnumerableShardingSpec(
                    [
                        ShardMetadata([s.row, s.column], [s.rows, s.columns], f"rank:{s.rank}/{_device_of(device, s)}")
                        for s in placement.shards
                    ]
                ),
            )
            for number, placement in enumerate(placements.values())
        }
        # The first rate is replaced before the first read.
        sharder = _sharder({"optimizer": optimizer_of(rule), "learning_rate": 1.0, "eps": rule.eps})
        specs = [placement.spec for placement in placements.values()]
        env = ShardingEnv.from_process_group(torch.distributed.group.WORLD)
        return sharder.shard(_collection(specs, features), where, env, device)


def _device_of(device: torch.device, shard: Shard) -> str:
    if device.type == "cpu":
        return "cpu"
    return f"cuda:{shard.rank % int(os.environ.get('LOCAL_WORLD_SIZE', ranks.count()))}"


def _table(number: int) -> str:
    """What TorchRec calls a table: it makes module names of these, and ours may hold any character."""
    return f"table{number}"


def _collection(specs: Sequence[TableSpec], features: Sequence[list[str]]) -> Any:
    """A collection on the meta device: nothing is allocated. ``features`` are those of each table."""
    from torchrec import EmbeddingBagCollection, EmbeddingBagConfig

    return EmbeddingBagCollection(
        tables=[
            EmbeddingBagConfig(
                name=_table(number),
                num_embeddings=spec.rows,
                embedding_dim=padded(spec.width),
                feature_names=names,
            )
            for number, (spec, names) in enumerate(zip(specs, features, strict=True))
        ],
        device=torch.device("meta"),
    )


def _sharder(fused_params: dict[str, Any] | None = None) -> Any:
    """A sharder that offers row-wise on every device: TorchRec's own does not on CPU, where it works as well."""
    from torchrec.distributed.embeddingbag import EmbeddingBagCollectionSharder

    class Sharder(EmbeddingBagCollectionSharder):  # type: ignore[misc]
        def sharding_types(self, compute_device_type: str) -> list[str]:
            return ["table_wise", "row_wise", "column_wise"]

        def compute_kernels(self, sharding_type: str, compute_device_type: str) -> list[str]:
            return ["fused"]

    return Sharder(fused_params=fused_params)


def _pieces(module: Any, placements: Mapping[str, Placement], rule: UpdateRule) -> dict[str, list[_Piece]]:
    """The shards on this rank, as views of the kernels' memory."""
    weights, states = module.state_dict(), module.fused_optimizer.state_dict()["state"]
    found: dict[str, list[_Piece]] = {}
    for number, name in enumerate(placements):
        key = f"embedding_bags.{_table(number)}.weight"
        sharded = weights.get(key)
        local = [] if sharded is None else sharded.local_shards()
        held: list[Tensor | None] = [None] * len(local)
        if rule.name != "sgd" and local:
            momentum = next(value for what, value in states[key].items() if what.endswith("momentum1"))
            held = [shard.tensor.detach() for shard in momentum.local_shards()]
        found[name] = [
            _Piece(
                Shard(ranks.own(), row, rows, column, columns),
                shard.tensor.detach(),
                None if state is None else state.view(rows, -1),
            )
            for shard, state in zip(local, held, strict=True)
            for (row, column), (rows, columns) in [(shard.metadata.shard_offsets, shard.metadata.shard_sizes)]
        ]
    return found


# --- which lanes go where ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Side:
    """Lanes of a group: through the exchange, or whole on every rank (as group ``place`` of the replicas)."""

    exchanged: list[int]
    whole: list[int]
    place: int

    @property
    def back(self) -> list[int]:
        """Where each lane lies once those two are side by side."""
        both = self.exchanged + self.whole
        return [both.index(lane) for lane in range(len(both))]


@dataclass(frozen=True)
class _Whole:
    names: list[str]
    groups: list[Group]


def _sides(groups: Sequence[Group], placements: Mapping[str, Placement]) -> tuple[list[_Side], _Whole]:
    sides, whole = [], _Whole([n for n, p in placements.items() if p.kind == "data_parallel"], [])
    for group in groups:
        kept = [lane for lane, name in enumerate(group.lanes) if name in whole.names]
        sent = [lane for lane in range(len(group.lanes)) if lane not in kept]
        sides.append(_Side(sent, kept, len(whole.groups)))
        if kept:
            whole.groups.append(Group(tuple(group.lanes[lane] for lane in kept), group.width))
    return sides, whole


def _select(request: Request, lanes: list[int], count: int) -> Request:
    """Some of the lanes, as a matrix only if the whole is one: ranks must not differ in that."""
    if len(lanes) == count:
        return request
    bags = Ids(request.rows, count, request.offsets, request.weights).select(lanes)
    if request.offsets is not None:
        bags = bags.jagged()
    return Request(bags.values, request.batch, bags.offsets, bags.weights)


# --- planning ------------------------------------------------------------------------------------------------


PLANNED_BATCH = 512
"""Samples a rank, for the planner's estimates: one number, so that a plan made beforehand is the plan of the run."""


class DoesNotFit(Exception):
    """No placement keeps every rank within its memory."""


def plan_placements(
    specs: Sequence[TableSpec],
    lanes: Sequence[str],
    kinds: Mapping[str, Sequence[Kind]],
    rule: UpdateRule,
    *,
    world_size: int,
    device_type: str,
    device_memory: int | None,
) -> list[Placement]:
    """A placement for every table, of the kinds it may have, by TorchRec's planner; needs no such device, and no ranks.

    Args:
        specs: the tables.
        lanes: the table of every lane: how often a sample reads it.
        kinds: what each table may be; ``data_parallel`` alone, or kinds for the planner to choose from.
        rule: its state is in the bytes.
        world_size: R, any number.
        device_type: ``cpu`` or ``cuda``: what the planner takes reads and exchanges to cost.
        device_memory: bytes a rank may give; ``None`` for no limit.

    Raises:
        DoesNotFit: the planner found none.
    """
    whole = [Placement(spec, "data_parallel") for spec in specs if tuple(kinds[spec.name]) == ("data_parallel",)]
    rest = [spec for spec in specs if tuple(kinds[spec.name]) != ("data_parallel",)]
    if not rest:
        return whole
    left = None if device_memory is None else device_memory - sum(one.bytes_on(0, rule) for one in whole)
    found = {placement.spec.name: placement for placement in whole}
    sharding = _plan(rest, lanes, kinds, rule, world_size, device_type, left)
    for number, spec in enumerate(rest):
        parameter = sharding[_table(number)]
        shards = parameter.sharding_spec.shards
        if parameter.sharding_type == "row_wise":
            found[spec.name] = row_wise(spec, world_size)
        elif parameter.sharding_type == "table_wise":
            found[spec.name] = table_wise(spec, shards[0].placement.rank())
        else:
            found[spec.name] = column_wise(spec, [s.placement.rank() for s in shards], shards[0].shard_sizes[1])
    return [found[spec.name] for spec in specs]


def _plan(
    specs: Sequence[TableSpec],
    lanes: Sequence[str],
    kinds: Mapping[str, Sequence[Kind]],
    rule: UpdateRule,
    world_size: int,
    device_type: str,
    memory: int | None,
) -> Any:
    check_stack(sharded=True)
    with quiet():
        from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
        from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
        from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
        from torchrec.distributed.planner.types import PlannerError
        from torchrec.optim import RowWiseAdagrad

        class Enumerator(EmbeddingEnumerator):  # type: ignore[misc]
            """Options in one order: TorchRec's comes out of sets of strings, and ranks would break ties differently."""

            def enumerate(self, *args: Any, **options: Any) -> list[Any]:
                found = super().enumerate(*args, **options)
                return sorted(found, key=lambda one: (int(one.name[5:]), one.sharding_type, one.num_shards))

        features = [
            [f"table{number}_lane{lane}" for lane in range(max(lanes.count(spec.name), 1))]
            for number, spec in enumerate(specs)
        ]
        module = nn.Module()
        module.tables = _collection(specs, features)
        kind = {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad, "rowwise_adagrad": RowWiseAdagrad}[rule.name]
        for parameter in module.parameters():
            parameter._optimizer_classes = [kind]  # type: ignore[attr-defined]  # what its storage estimator reads
        constraints = {
            _table(number): ParameterConstraints(
                sharding_types=list(kinds[spec.name]),
                compute_kernels=["fused"],
                min_partition=_piece_of_columns(spec, kinds[spec.name], world_size),
                pooling_factors=[1.0] * len(features[number]),
            )
            for number, spec in enumerate(specs)
        }
        limit = 2**50 if memory is None else max(memory, 1)
        caps = {"hbm_cap": limit} if device_type == "cuda" else {"ddr_cap": limit}
        local = int(os.environ.get("LOCAL_WORLD_SIZE", min(world_size, 8)))
        topology = Topology(
            world_size=world_size,
            compute_device=device_type,
            local_world_size=local if world_size % local == 0 else world_size,
            **caps,
        )
        planner = EmbeddingShardingPlanner(
            topology=topology,
            enumerator=Enumerator(topology=topology, batch_size=PLANNED_BATCH, constraints=constraints),
            batch_size=PLANNED_BATCH,
            constraints=constraints,
            storage_reservation=FixedPercentageStorageReservation(0.0),
            stats=[],
            debug=False,
        )
        try:
            return planner.plan(module, [_sharder()]).plan["tables"]
        except PlannerError as error:
            raise DoesNotFit(str(error).partition("\n")[0]) from error


def _piece_of_columns(spec: TableSpec, kinds: Sequence[Kind], world_size: int) -> int | None:
    """Columns of a piece: a pinned table is cut for all ranks, as far as pieces of four columns go."""
    wide = padded(spec.width)
    if tuple(kinds) != ("column_wise",):
        return None
    pieces = next(n for n in range(min(world_size, wide // 4), 0, -1) if wide % n == 0 and wide // n % 4 == 0)
    return wide // pieces


def agree(placements: Sequence[Placement]) -> None:
    """Check that all ranks hold the same plan; a collective call.

    Raises:
        ConfigError: they do not.
    """
    own = torch.tensor([xxhash.xxh3_64_intdigest(repr(list(placements)).encode()) >> 1])
    if ranks.gathered(own.to(ranks.device())).unique().numel() > 1:
        raise ConfigError("the ranks have planned different placements: they were given different configs or libraries")
