"""Reads by the native kernels: of tables that they train, and of tables that are only read.

A read is one operator call for all lanes of a group, which combines the rows of an id's slots where the group does.
Bags are summed without fused multiply-adds, in the order of their rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from recsys_embed.embeddings.base import TableSpec
from recsys_embed.errors import DataError
from recsys_embed.native.choice import natively
from recsys_embed.native.library import ALONE
from recsys_embed.tables.base import Group, Request
from recsys_embed.tables.buffers import Buffers
from recsys_embed.tables.rounding import noise_seed
from recsys_embed.tables.store import Store

STREAMED_WIDTH, STREAMED_BYTES = 32, 2**22
"""Outputs of so many bytes are written past the caches where rows are so wide: a third faster at width 64, and slower
at 16."""


_INTEGERS = (torch.int32, torch.int64)
_OUTPUTS = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class Lanes:
    """The constants of a group, as the operators take them."""

    lanes: Tensor
    grids: Tensor
    order: Tensor
    bounds: Tensor
    slots: tuple[int, int, int]

    @classmethod
    def of(cls, group: Group, store: Store, seed: int) -> Lanes:
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
            (group.slots, group.vectors if group.apart else 1, int(group.combination == "product")),
        )


class NativeReads:
    """Reads the groups of some tables, each out of its store in ``stores``."""

    def __init__(
        self, specs: Mapping[str, TableSpec], groups: Sequence[Group], stores: Sequence[Store], seed: int
    ) -> None:
        self.lanes = [Lanes.of(group, store, seed) for group, store in zip(groups, stores, strict=True)]
        self._specs, self._groups, self._stores = specs, groups, stores
        self._outputs = [Buffers() for _ in groups]

    @property
    def possible(self) -> bool:
        """Whether the stores are on CPU and of their own types, where modules can be moved and converted, and the
        program is one that runs."""
        weights = [store.weights for store in self._stores]
        alike = all(one.dtype == store.dtype for one, store in zip(weights, self._stores, strict=True))
        return alike and natively(*weights)

    def read(self, group: int, request: Request) -> Tensor:
        """Pooled rows ``[B, L, W]``, in memory that is used again once nobody holds it.

        Raises:
            DataError: a row that its table does not have, with the table; or offsets that do not rise.
        """
        return self._read(self._taken(group, request, len(self._groups[group].lanes)), None, ALONE, group, request)

    def read_vectors(self, group: int, request: Request) -> Tensor:
        """Their vectors ``[B, V, W]``, made in the same pass.

        Raises:
            DataError: as :meth:`read`.
        """
        return self.read_into(self._taken(group, request, self._groups[group].vectors), group, request)

    def read_to_train(self, group: int, request: Request) -> tuple[Tensor | None, Tensor]:
        """The rows, where vectors are products of them; and the vectors.

        Raises:
            DataError: as :meth:`read`.
        """
        if self._groups[group].combination != "product":
            return None, self.read_vectors(group, request)
        kept = self._taken(group, request, len(self._groups[group].lanes))
        out = self._taken(group, request, self._groups[group].vectors)
        return kept, self._read(out, kept, self.lanes[group].slots, group, request)

    def read_into(self, out: Tensor, group: int, request: Request) -> Tensor:
        """:meth:`read_vectors` into float32 or bfloat16 memory of the caller's, ``[B, V, W]``, where a sample's vectors
        lie side by side, and samples perhaps apart; returns it.

        Raises:
            DataError: as :meth:`read`.
            ValueError: ``out`` is other memory than that.
        """
        width = self._groups[group].width
        shape = (request.batch, self._groups[group].vectors, width)
        apart = out.dim() == 3 and out.stride()[1:] == (width, 1) and out.stride(0) >= shape[1] * width
        if out.shape != shape or out.dtype not in _OUTPUTS or not (apart or out.is_contiguous()):
            raise ValueError(
                f"vectors are read into float32 or bfloat16 {shape}, contiguous within a sample; "
                f"got {out.dtype} {tuple(out.shape)}"
            )
        return self._read(out, None, self.lanes[group].slots, group, request)

    def _taken(self, group: int, request: Request, count: int) -> Tensor:
        return self._outputs[group].take(request.batch, count, self._groups[group].width)

    def _read(
        self, out: Tensor, kept: Tensor | None, slots: tuple[int, int, int], group: int, request: Request
    ) -> Tensor:
        from recsys_embed.native.ops import FINE, NUMBERINGS, read_rows

        width, here = self._groups[group].width, self.lanes[group]
        stream = width >= STREAMED_WIDTH and out.numel() * 4 >= STREAMED_BYTES
        sources = [] if request.made else request.sources
        room = torch.empty(request.shape, dtype=torch.int32) if sources else request.rows
        rows, *bags = self.bags(group, request, room)
        bad = read_rows(
            *(out, kept, slots, self._stores[group].weights, here.lanes, here.grids, request.batch, rows, *bags),
            *([_ids(one.ids) for one in sources], [one.features for one in sources]),
            *([NUMBERINGS[one.numbering] for one in sources], [one.constants for one in sources], stream),
        )
        if bad != FINE:
            raise self.refused(group, request, bad)
        if sources:
            request.keep(rows)
        return out

    def bags(self, group: int, request: Request, rows: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Rows, the request's or memory for them, offsets and weights of the types that the operators take, and of the
        right number."""
        offsets, weights = request.offsets, request.weights
        lanes = len(self._groups[group].lanes)
        if offsets is None and tuple(rows.shape) != (lanes, request.batch):
            raise DataError(f"rows are [L, B] = {[lanes, request.batch]}, got {list(rows.shape)}")
        if offsets is not None and offsets.numel() != lanes * request.batch + 1:
            raise DataError(f"offsets are [L*B + 1] = [{lanes * request.batch + 1}], got {list(offsets.shape)}")
        if weights is not None and (offsets is None or weights.numel() != rows.numel()):
            raise DataError(f"weights are those of bags, [M] = [{rows.numel()}], got {list(weights.shape)}")
        if rows.dtype not in _INTEGERS:
            rows = rows.to(torch.int64)
        if offsets is not None:
            offsets = offsets.to(torch.int64).contiguous()
        if weights is not None:
            weights = weights.detach().to(torch.float32).contiguous()
        return rows.contiguous(), offsets, weights

    def refused(self, group: int, request: Request, bad: int) -> DataError:
        """What is wrong with a request, by what the operators returned."""
        lanes = self._groups[group].lanes
        if bad < 0:
            bag = -2 - bad
            return DataError(f"offsets do not rise from 0 to {request.rows.numel()}: bag {bag} of the request")
        rows, offsets = request.jagged()
        lane = int(torch.searchsorted(offsets, offsets.new_tensor(bad), right=True) - 1) // request.batch
        name, value = lanes[lane], int(rows[bad])
        return DataError(f"table {name!r} has rows [0, {self._specs[name].rows})", value=value)


def _ids(ids: Tensor) -> Tensor:
    """Of a type that the operators take, side by side within a feature."""
    ids = ids if ids.dtype in _INTEGERS else ids.to(torch.int64)
    return ids if ids.stride(-1) == 1 else ids.contiguous()
