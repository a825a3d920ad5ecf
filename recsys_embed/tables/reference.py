"""The reference back end: plain PyTorch, every platform, every optimizer; the oracle of the other back ends.

Tables that are only read can be read by the native kernels instead (:meth:`ReferenceTables.read_natively`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from recsys_embed import ranks
from recsys_embed.embeddings.base import TableSpec
from recsys_embed.tables.base import Group, Request, UpdateRule
from recsys_embed.tables.gather import gather
from recsys_embed.tables.native import refusal
from recsys_embed.tables.native_reads import NativeReads
from recsys_embed.tables.store import Store
from recsys_embed.tables.stored import StoredTables, stores_of
from recsys_embed.tables.sums import sums_by_row


class ReferenceTables(StoredTables):
    """Tables as ordinary parameters, or held as they are stored: with an update of their own, or for reading only.

    On the device ``meta`` they are a plan of tables, with neither memory nor weights.
    """

    def __init__(
        self, specs: Sequence[TableSpec], groups: Sequence[Group], seed: int, *, device: str | None = None
    ) -> None:
        super().__init__(specs, groups, seed, stores_of(specs, seed, device=device))
        self._over_ranks = False
        self._reads: NativeReads | None = None
        for place, group in enumerate(self.groups):
            store = self._group_store(place)
            owners = torch.tensor([store.owner[name] for name in group.lanes])
            starts = torch.tensor([store.starts[owner] for owner in owners]).unsqueeze(1)
            self.register_buffer(f"owners_{place}", owners, persistent=False)
            self.register_buffer(f"starts_{place}", starts, persistent=False)

    def train_by(self, rule: UpdateRule, *, over_ranks: bool = False) -> None:
        """Take the tables out of ``parameters()``, into their stored form; from now on :meth:`update` updates them.

        With ``over_ranks`` the tables are replicas, and every update is one collective call: gradients of all ranks
        are summed by row, and all replicas apply that sum.
        """
        self.rule, self._over_ranks = rule, over_ranks
        for store in self._all():
            store.hold(rule.state_width(store.weights.shape[1]))

    def read_natively(self) -> None:
        """From now on read these tables, which are only read, by the native kernels where they can: on CPU, in the
        types they are stored in, in a program that runs. Nothing changes where there are no kernels."""
        assert self.rule is None
        if refusal(torch.device("cpu"), self.specs.values()) is None:
            self._reads = NativeReads(self.specs, self.groups, self._group_stores(), self.seed)

    @property
    def takes_absent(self) -> bool:
        """Whether the native kernels read them."""
        return self._reads is not None and self._reads.possible

    def read(self, group: int, request: Request) -> Tensor:
        """One gather for a matrix, one ``embedding_bag`` for bags; or one call of the native kernels.

        Raises:
            DataError: by the native kernels, of a row that its table does not have, with the table.
        """
        kernels = self._kernels_for(request)
        if kernels is not None:
            return kernels.read(group, request)
        if self.takes_absent:
            request = request.without_absent()
        lanes, width = len(self.groups[group].lanes), self.groups[group].width
        self._check_memory()
        store, rows = self._group_store(group), self._global_rows(group, request)
        owners: Tensor = getattr(self, f"owners_{group}")
        if request.offsets is None:
            return store.read(rows.t(), owners)
        if not store.plain:
            owners = owners.repeat_interleave(self._lengths(group, request), output_size=rows.numel())
        pooled = store.read_bags(rows, owners, request.offsets, request.weights)
        return pooled.view(lanes, request.batch, width).transpose(0, 1)

    def read_vectors(self, group: int, request: Request) -> Tensor:
        """By one call of the native kernels, where they read these tables.

        Raises:
            DataError: as :meth:`read`.
        """
        kernels = self._kernels_for(request)
        return super().read_vectors(group, request) if kernels is None else kernels.read_vectors(group, request)

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
        store = self._group_store(group)
        count = store.weights.shape[0]
        if self._over_ranks:
            rows, gradients = sums_by_row(rows, gradients, count) if rows.numel() else (rows, gradients)
            rows, gradients = ranks.gathered(rows), ranks.gathered(gradients)
        if rows.numel():
            self._update(store, *sums_by_row(rows, gradients, count))

    def _update(self, store: Store, rows: Tensor, gradient: Tensor) -> None:
        assert self.rule is not None
        direction = gradient
        if self.rule.name == "lazy_adam":
            first, second = gather(store.state, rows).chunk(2, dim=1)
            news = [1 - beta for beta in self.rule.betas]
            first = first + (gradient - first) * news[0]
            second = second + (gradient.square() - second) * news[1]
            store.state[rows] = torch.cat([first, second], dim=1)
            direction = first / (second.sqrt() + self.rule.eps)
        elif self.rule.name != "sgd":
            squared = gradient.square()
            if self.rule.name == "rowwise_adagrad":
                squared = squared.mean(dim=1, keepdim=True)
            sums = gather(store.state, rows) + squared
            store.state[rows] = sums
            direction = gradient / (sums.sqrt() + self.rule.eps)
        store.add(rows, direction, -self.rule.rate(self._lr, self.steps), self.steps)

    def _kernels_for(self, request: Request) -> NativeReads | None:
        """The native kernels, where they read this; only plain PyTorch has a gradient for the weights of bags."""
        differentiated = request.weights is not None and request.weights.requires_grad
        return self._reads if self.takes_absent and not differentiated else None

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
