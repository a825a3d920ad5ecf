"""The reference back end: plain PyTorch, every platform, every optimizer; the oracle of the other back ends.

All tables of one width lie in one concatenated store, so that a group is read by one indexing operation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from recsys_embed.embeddings.base import Rows, TableSpec
from recsys_embed.tables.base import Group, Request, Tables, UpdateRule, draw
from recsys_embed.tables.sums import add_rows, sums_by_row


class ReferenceTables(Tables):
    """Tables as ordinary parameters (``rule`` is None), or as buffers with an update of their own."""

    def __init__(self, specs: Sequence[TableSpec], groups: Sequence[Group], seed: int) -> None:
        super().__init__(specs, groups)
        rows: dict[int, int] = {}
        self._lr = math.nan
        self._starts: dict[str, int] = {}
        for spec in specs:
            self._starts[spec.name] = rows.get(spec.width, 0)
            rows[spec.width] = self._starts[spec.name] + spec.rows
        for width, count in rows.items():
            store = torch.empty(count, width)
            for spec in specs:
                if spec.width == width:
                    draw(store[self._starts[spec.name] :][: spec.rows], spec.name, spec.init, seed)
            self.register_parameter(f"store_{width}", nn.Parameter(store))
        for place, group in enumerate(self.groups):
            starts = torch.tensor([self._starts[name] for name in group.lanes]).unsqueeze(1)
            self.register_buffer(f"starts_{place}", starts, persistent=False)

    def train_by(self, rule: UpdateRule) -> None:
        """Take the tables out of ``parameters()``; from now on :meth:`update` updates them."""
        self.rule = rule
        for width in {spec.width for spec in self.specs.values()}:
            store = self._store(width).detach()
            delattr(self, f"store_{width}")
            self.register_buffer(f"store_{width}", store, persistent=False)
            state = torch.zeros(store.shape[0], rule.state_width(width), device=store.device)
            self.register_buffer(f"state_{width}", state, persistent=False)

    def read(self, group: int, request: Request) -> Tensor:
        """One gather for a matrix, one ``embedding_bag`` for bags."""
        lanes, width = len(self.groups[group].lanes), self.groups[group].width
        store = self._store(width)
        if request.offsets is None:
            return F.embedding(self._global_rows(group, request).t(), store)
        flat, offsets = self._global_rows(group, request), request.offsets
        weights = None if request.weights is None else request.weights.to(store.dtype)
        pooled = F.embedding_bag(flat, store, offsets[:-1].to(flat.dtype), mode="sum", per_sample_weights=weights)
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
        if rows.numel() == 0:
            return
        self._update(width, *sums_by_row(rows, gradients, self._store(width).shape[0]))

    def _update(self, width: int, rows: Tensor, gradient: Tensor) -> None:
        assert self.rule is not None
        store = self._store(width)
        if self.rule.name == "sgd":
            add_rows(store, rows, gradient, -self._lr)
            return
        state = self._state(width)
        squared = gradient.square()
        if self.rule.name == "rowwise_adagrad":
            squared = squared.mean(dim=1, keepdim=True)
        sums = state[rows] + squared
        state[rows] = sums
        add_rows(store, rows, gradient / (sums.sqrt() + self.rule.eps), -self._lr)

    def get(self, name: str) -> Tensor:
        """A view into the store."""
        return self._slice(self._store(self.specs[name].width), name)

    def put(self, name: str, weights: Tensor) -> None:
        """Copied into the store."""
        self.get(name).detach().copy_(weights)

    def get_state(self, name: str) -> Tensor:
        """A view: ``[rows, state width]``."""
        return self._slice(self._state(self.specs[name].width), name)

    def put_state(self, name: str, state: Tensor) -> None:
        """Copied."""
        self.get_state(name).copy_(state)

    def get_rows(self, name: str, rows: Tensor) -> Rows:
        """Indexed out of the store."""
        weights = self.get(name).detach()
        state = self.get_state(name) if self.rule else weights.new_zeros(weights.shape[0], 0)
        return Rows(weights[rows], state[rows])

    def put_rows(self, name: str, rows: Tensor, values: Rows) -> None:
        """Indexed into the store."""
        self.get(name).detach()[rows] = values.weights
        if self.rule:
            self.get_state(name)[rows] = values.state

    def padded_width(self, width: int) -> int:
        """No padding."""
        return width

    def _slice(self, store: Tensor, name: str) -> Tensor:
        return store[self._starts[name] :][: self.specs[name].rows]

    def _store(self, width: int) -> Tensor:
        store: Tensor = getattr(self, f"store_{width}")
        return store

    def _state(self, width: int) -> Tensor:
        state: Tensor = getattr(self, f"state_{width}")
        return state

    def _global_rows(self, group: int, request: Request) -> Tensor:
        """Row numbers in the concatenated store, shaped as the request's."""
        starts: Tensor = getattr(self, f"starts_{group}")
        if request.offsets is None:
            return request.rows + starts
        lanes = len(self.groups[group].lanes)
        lengths = request.offsets[:: request.batch].diff() if request.batch else torch.zeros(lanes, dtype=torch.int64)
        return request.rows + starts.view(-1).repeat_interleave(lengths, output_size=request.rows.numel())
