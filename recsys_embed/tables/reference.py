"""The reference back end: plain PyTorch, every platform, every optimizer; the oracle of the other back ends.

All tables of one width and stored type lie in one store, so that a group is read by one indexing operation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from recsys_embed import ranks
from recsys_embed.embeddings.base import Rows, TableSpec
from recsys_embed.errors import ConfigError
from recsys_embed.tables.base import Group, Request, Tables, UpdateRule, initial_blocks, row_blocks
from recsys_embed.tables.gather import gather
from recsys_embed.tables.store import Store
from recsys_embed.tables.sums import sums_by_row


class ReferenceTables(Tables):
    """Tables as ordinary parameters, or held as they are stored: with an update of their own, or for reading only.

    On the device ``meta`` they are a plan of tables, with neither memory nor weights.
    """

    def __init__(
        self, specs: Sequence[TableSpec], groups: Sequence[Group], seed: int, *, device: str | None = None
    ) -> None:
        super().__init__(specs, groups, seed)
        self._over_ranks = False
        self._lr = math.nan
        alike: dict[str, list[TableSpec]] = {}
        for spec in specs:
            alike.setdefault(f"{spec.width}_{spec.storage.dtype}", []).append(spec)
        self._stores = nn.ModuleDict({key: Store(members, seed, device=device) for key, members in alike.items()})
        self._home = {spec.name: key for key, members in alike.items() for spec in members}
        for place, group in enumerate(self.groups):
            store = self._store(group.lanes[0])
            owners = torch.tensor([store.owner[name] for name in group.lanes])
            starts = torch.tensor([store.starts[owner] for owner in owners]).unsqueeze(1)
            self.register_buffer(f"owners_{place}", owners, persistent=False)
            self.register_buffer(f"starts_{place}", starts, persistent=False)

    @property
    def held(self) -> bool:
        """Whether the tables have left ``parameters()``."""
        return any(store.held for store in self._all())

    def blocks(self, name: str) -> Iterator[tuple[int, Tensor]]:
        """The weights of a table, block by block: the first row of each, and its weights; initial ones on ``meta``."""
        if self._store(name).weights.is_meta:
            yield from initial_blocks(self.specs[name], self.seed)
        else:
            yield from row_blocks(self.get(name).detach())

    def parameter_rows(self) -> list[tuple[nn.Parameter, dict[str, slice]]]:
        """While the tables are ordinary parameters: each of these, and the rows in it of every table."""
        found = []
        for store in self._all():
            assert isinstance(store.weights, nn.Parameter)
            places = zip(store.specs, store.starts, strict=True)
            found.append((store.weights, {spec.name: slice(start, start + spec.rows) for spec, start in places}))
        return found

    def train_by(self, rule: UpdateRule, *, over_ranks: bool = False) -> None:
        """Take the tables out of ``parameters()``, into their stored form; from now on :meth:`update` updates them.

        With ``over_ranks`` the tables are replicas, and every update is one collective call: gradients of all ranks
        are summed by row, and all replicas apply that sum.
        """
        self.rule, self._over_ranks = rule, over_ranks
        for store in self._all():
            store.hold(rule.state_width(store.weights.shape[1]))

    def freeze(self) -> None:
        """Take the tables out of ``parameters()``, into their stored form, for reading only."""
        for store in self._all():
            if not store.held:
                store.hold(0)

    def hold_zeros(self) -> None:
        """Hold zeros in the stored form, to load weights into that are then only read. For tables on ``meta``."""
        for store in self._all():
            store.hold_zeros()

    def read(self, group: int, request: Request) -> Tensor:
        """One gather for a matrix, one ``embedding_bag`` for bags."""
        lanes, width = len(self.groups[group].lanes), self.groups[group].width
        self._check_memory()
        store, rows = self._store(self.groups[group].lanes[0]), self._global_rows(group, request)
        owners: Tensor = getattr(self, f"owners_{group}")
        if request.offsets is None:
            return store.read(rows.t(), owners)
        if not store.plain:
            owners = owners.repeat_interleave(self._lengths(group, request), output_size=rows.numel())
        pooled = store.read_bags(rows, owners, request.offsets, request.weights)
        return pooled.view(lanes, request.batch, width).transpose(0, 1)

    def set_lr(self, lr: float) -> None:
        """Used by the updates."""
        self._lr = lr

    def update(self, group: int, request: Request, read: Tensor | None, gradient: Tensor) -> None:
        """Duplicates are summed exactly, then each row is updated once."""
        assert self.rule is not None
        width = self.groups[group].width
        rows = self._global_rows(group, request)
        if request.offsets is None:
            rows, gradients = rows.t().reshape(-1), gradient.reshape(-1, width)
        else:
            bags = gradient.transpose(0, 1).reshape(-1, width)
            gradients = bags.repeat_interleave(request.offsets.diff(), dim=0)
            if request.weights is not None:
                gradients = gradients * request.weights.to(gradients.dtype).unsqueeze(1)
        store = self._store(self.groups[group].lanes[0])
        count = store.weights.shape[0]
        if self._over_ranks:
            rows, gradients = sums_by_row(rows, gradients, count) if rows.numel() else (rows, gradients)
            rows, gradients = ranks.gathered(rows), ranks.gathered(gradients)
        if rows.numel():
            self._update(store, *sums_by_row(rows, gradients, count))

    def _update(self, store: Store, rows: Tensor, gradient: Tensor) -> None:
        assert self.rule is not None
        if self.rule.name == "sgd":
            store.add(rows, gradient, -self._lr, self.steps)
            return
        squared = gradient.square()
        if self.rule.name == "rowwise_adagrad":
            squared = squared.mean(dim=1, keepdim=True)
        sums = gather(store.state, rows) + squared
        store.state[rows] = sums
        store.add(rows, gradient / (sums.sqrt() + self.rule.eps), -self._lr, self.steps)

    def get(self, name: str) -> Tensor:
        """A view into the store, or a dequantised copy."""
        return self._store(name).get(name)

    def stored(self, name: str) -> Tensor:
        """A view into the store."""
        return self._store(name).stored(name)

    def put(self, name: str, weights: Tensor) -> None:
        """Copied into the store, rounded to nearest."""
        self._check_memory()
        self._store(name).put(name, weights)

    def get_state(self, name: str) -> Tensor:
        """A view: ``[rows, state width]``."""
        return self._store(name).state_of(name)

    def put_state(self, name: str, state: Tensor) -> None:
        """Copied."""
        self.get_state(name).copy_(state)

    def get_rows(self, name: str, rows: Tensor) -> Rows:
        """Indexed out of the store."""
        weights = self._store(name).rows_of(name, rows)
        state = self.get_state(name) if self.rule else weights.new_zeros(self.specs[name].rows, 0)
        return Rows(weights, state[rows])

    def put_rows(self, name: str, rows: Tensor, values: Rows) -> None:
        """Indexed into the store, rounded to nearest: rows of the same table come back as they were."""
        self._store(name).put_rows(name, rows, values.weights)
        if self.rule:
            self.get_state(name)[rows] = values.state

    @property
    def device(self) -> torch.device:
        """Where the store is."""
        return next(iter(self.buffers())).device

    def padded_width(self, width: int) -> int:
        """No padding."""
        return width

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ReferenceTables:
        """Move what there is: tables without memory stay so."""
        super()._apply(lambda tensor: tensor if tensor.is_meta else fn(tensor), recurse)  # type: ignore[no-untyped-call]
        return self

    def _check_memory(self) -> None:
        if any(store.weights.is_meta for store in self._all()):
            raise ConfigError("sharded tables have rows once optimizer() is called: call it first")

    def _all(self) -> list[Store]:
        return [store for store in self._stores.values() if isinstance(store, Store)]

    def _store(self, table: str) -> Store:
        store = self._stores[self._home[table]]
        assert isinstance(store, Store)
        return store

    def _lengths(self, group: int, request: Request) -> Tensor:
        """Rows asked for in each lane ``[L]``."""
        assert request.offsets is not None
        if not request.batch:
            return torch.zeros(len(self.groups[group].lanes), dtype=torch.int64, device=request.rows.device)
        return request.offsets[:: request.batch].diff()

    def _global_rows(self, group: int, request: Request) -> Tensor:
        """Row numbers in the concatenated store, shaped as the request's."""
        starts: Tensor = getattr(self, f"starts_{group}")
        if request.offsets is None:
            return request.rows + starts
        lengths = self._lengths(group, request)
        return request.rows + starts.view(-1).repeat_interleave(lengths, output_size=request.rows.numel())
