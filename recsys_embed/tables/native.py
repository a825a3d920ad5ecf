"""The native back end: our own C++ on CPU, for every stored type and optimizer; see :mod:`recsys_embed.native`.

A read and an update are one operator call each for all lanes of a group. Results are the same to the bit for any number
of threads (those of torch) and any instruction set; rounding noise is that of the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from recsys_embed.embeddings.base import TableSpec
from recsys_embed.errors import DataError
from recsys_embed.native.library import load
from recsys_embed.tables.base import Group, Request, UpdateRule
from recsys_embed.tables.buffers import Buffers
from recsys_embed.tables.fbgemm import refuse_to_move
from recsys_embed.tables.rounding import noise_seed
from recsys_embed.tables.store import Store
from recsys_embed.tables.stored import StoredTables

MOST_ROWS = 2**31 - 1
"""Of a table."""

STREAMED_WIDTH, STREAMED_BYTES = 32, 2**22
"""Outputs of so many bytes are written past the caches where rows are so wide: a third faster at width 64, and slower
at 16."""


@dataclass(frozen=True)
class _Lanes:
    """The constants of a group, as the operators take them."""

    lanes: Tensor
    grids: Tensor
    order: Tensor
    bounds: Tensor

    @classmethod
    def of(cls, group: Group, store: Store, seed: int) -> _Lanes:
        names = list(dict.fromkeys(group.lanes))
        specs = [store.specs[store.owner[name]] for name in group.lanes]
        order = [lane for name in names for lane, one in enumerate(group.lanes) if one == name]
        counts = torch.tensor([0] + [group.lanes.count(name) for name in names])
        return cls(
            torch.tensor(
                [
                    [store.starts[store.owner[name]] for name in group.lanes],
                    [spec.rows for spec in specs],
                    [noise_seed(spec.name, seed) for spec in specs],
                ]
            ),
            torch.tensor([[s.storage.scale for s in specs], [s.storage.midpoint for s in specs]], dtype=torch.float32),
            torch.tensor(order),
            counts.cumsum(0),
        )


class NativeTables(StoredTables):
    """Takes over the stores of ``source``, into their stored form."""

    def __init__(self, source: StoredTables, rule: UpdateRule) -> None:
        super().__init__(list(source.specs.values()), source.groups, source.seed, source.stores)
        self.rule = rule
        for store in self._all():
            store.hold(rule.state_width(store.weights.shape[1]))
        self._lanes = [_Lanes.of(group, self._store(group.lanes[0]), self.seed) for group in self.groups]
        self._outputs = [Buffers() for _ in self.groups]

    def read(self, group: int, request: Request) -> Tensor:
        """One operator call, into memory that is used again once nobody holds it.

        Raises:
            DataError: a row that its table does not have, with the table; or offsets that do not rise.
        """
        width, count = self.groups[group].width, len(self.groups[group].lanes)
        return self.read_into(self._outputs[group].take(request.batch, count, width), group, request)

    def read_into(self, out: Tensor, group: int, request: Request) -> Tensor:
        """:meth:`read` into contiguous float32 memory ``[B, L, W]`` of the caller's; returns it.

        Raises:
            DataError: as :meth:`read`.
            ValueError: ``out`` is other memory than that.
        """
        from recsys_embed.native.ops import FINE, read_rows

        width, here = self.groups[group].width, self._lanes[group]
        shape = (request.batch, len(self.groups[group].lanes), width)
        if out.shape != shape or out.dtype != torch.float32 or not out.is_contiguous():
            raise ValueError(f"rows are read into contiguous float32 {shape}, got {out.dtype} {tuple(out.shape)}")
        bags = self._bags(group, request)
        stream = width >= STREAMED_WIDTH and out.numel() * 4 >= STREAMED_BYTES
        store = self._store(self.groups[group].lanes[0]).weights
        bad = read_rows(out, store, here.lanes, here.grids, request.batch, *bags, stream)
        if bad != FINE:
            raise self._refused(group, request, bad)
        return out

    def update(self, group: int, request: Request, read: Tensor | None, gradient: Tensor) -> None:
        """Duplicates are summed exactly, in the order of occurrence; then each row is updated once.

        Raises:
            DataError: as :meth:`read`; no row has been touched.
        """
        from recsys_embed.native.ops import FINE, update_rows

        assert self.rule is not None
        here, store = self._lanes[group], self._store(self.groups[group].lanes[0])
        shape = (request.batch, len(self.groups[group].lanes), self.groups[group].width)
        assert gradient.shape == shape
        bad = update_rows(
            *(store.weights, store.state, here.lanes, here.grids, here.order, here.bounds, request.batch),
            *self._bags(group, request),
            *(gradient.detach().to(torch.float32).contiguous(), self.rule.name, self._lr, self.rule.eps, self.steps),
        )
        if bad != FINE:
            raise self._refused(group, request, bad)

    def _bags(self, group: int, request: Request) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Rows, offsets and weights of the types that the operators take, and of the right number."""
        rows, offsets, weights = request.rows, request.offsets, request.weights
        lanes = len(self.groups[group].lanes)
        if offsets is None and tuple(rows.shape) != (lanes, request.batch):
            raise DataError(f"rows are [L, B] = {[lanes, request.batch]}, got {list(rows.shape)}")
        if offsets is not None and offsets.numel() != lanes * request.batch + 1:
            raise DataError(f"offsets are [L*B + 1] = [{lanes * request.batch + 1}], got {list(offsets.shape)}")
        if weights is not None and (offsets is None or weights.numel() != rows.numel()):
            raise DataError(f"weights are those of bags, [M] = [{rows.numel()}], got {list(weights.shape)}")
        if rows.dtype not in (torch.int32, torch.int64):
            rows = rows.to(torch.int64)
        if offsets is not None:
            offsets = offsets.to(torch.int64).contiguous()
        if weights is not None:
            weights = weights.detach().to(torch.float32).contiguous()
        return rows.contiguous(), offsets, weights

    def _refused(self, group: int, request: Request, bad: int) -> DataError:
        lanes = self.groups[group].lanes
        if bad < 0:
            bag = -2 - bad
            return DataError(f"offsets do not rise from 0 to {request.rows.numel()}: bag {bag} of the request")
        rows, offsets = request.jagged()
        lane = int(torch.searchsorted(offsets, offsets.new_tensor(bad), right=True) - 1) // request.batch
        name, value = lanes[lane], int(rows[bad])
        return DataError(f"table {name!r} has rows [0, {self.specs[name].rows})", value=value)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> NativeTables:
        refuse_to_move("native", fn, self.device)
        super()._apply(fn, recurse)
        return self


def refusal(device: torch.device, specs: Iterable[TableSpec]) -> str | None:
    """Why the native back end cannot hold these tables on this device, or ``None``."""
    if device.type != "cpu":
        return f"it runs on CPU, and not on {device.type}"
    library = load()
    if isinstance(library, str):
        return library
    for spec in specs:
        if spec.rows > MOST_ROWS:
            return f"table {spec.name!r} has {spec.rows} rows, and it numbers {MOST_ROWS} at most"
    return None
