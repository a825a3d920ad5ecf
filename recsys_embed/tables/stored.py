"""Tables held in stores of our own: as ordinary parameters, or as they are stored once a rule trains them.

All tables of one width and stored type lie in one store, so that a group is read by one operation. How rows are read
and updated is left to the back ends: plain PyTorch (:mod:`recsys_embed.tables.reference`), or C++
(:mod:`recsys_embed.tables.native`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from recsys_embed.embeddings.base import Rows, TableSpec
from recsys_embed.errors import ConfigError
from recsys_embed.tables.base import Group, Tables, initial_blocks, row_blocks
from recsys_embed.tables.store import Store


class StoredTables(Tables):
    """The tables of ``stores``, which have the keys of :func:`stores_of`.

    On the device ``meta`` they are a plan of tables, with neither memory nor weights.
    """

    def __init__(self, specs: Sequence[TableSpec], groups: Sequence[Group], seed: int, stores: nn.ModuleDict) -> None:
        super().__init__(specs, groups, seed)
        self.stores = stores
        self._lr = math.nan
        self._home = {spec.name: _key(spec) for spec in specs}

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

    def freeze(self) -> None:
        """Take the tables out of ``parameters()``, into their stored form, for reading only."""
        for store in self._all():
            if not store.held:
                store.hold(0)

    def hold_zeros(self) -> None:
        """Hold zeros in the stored form, to load weights into that are then only read. For tables on ``meta``."""
        for store in self._all():
            store.hold_zeros()

    def set_lr(self, lr: float) -> None:
        """Used by the updates."""
        self._lr = lr

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

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> StoredTables:
        """Move what there is: tables without memory stay so."""
        super()._apply(lambda tensor: tensor if tensor.is_meta else fn(tensor), recurse)  # type: ignore[no-untyped-call]
        return self

    def _check_memory(self) -> None:
        if any(store.weights.is_meta for store in self._all()):
            raise ConfigError("sharded tables have rows once optimizer() is called: call it first")

    def _all(self) -> list[Store]:
        return [store for store in self.stores.values() if isinstance(store, Store)]

    def _group_stores(self) -> list[Store]:
        return [self._group_store(group) for group in range(len(self.groups))]

    def _group_store(self, group: int) -> Store:
        return self._store(self.groups[group].lanes[0])

    def _store(self, table: str) -> Store:
        store = self.stores[self._home[table]]
        assert isinstance(store, Store)
        return store


def stores_of(specs: Sequence[TableSpec], seed: int, *, device: str | None = None) -> nn.ModuleDict:
    """A store for each width and stored type, with initial weights."""
    alike: dict[str, list[TableSpec]] = {}
    for spec in specs:
        alike.setdefault(_key(spec), []).append(spec)
    return nn.ModuleDict({key: Store(members, seed, device=device) for key, members in alike.items()})


def _key(spec: TableSpec) -> str:
    return f"{spec.width}_{spec.storage.dtype}"
