"""The fused back end: FBGEMM's table-batched embeddings, one operator per width, update fused into its backward.

What padding asks for is in :mod:`recsys_embed.tables.fbgemm`. On CPU FBGEMM ignores weight decay, max norm and
stochastic rounding silently and has no Adam: none of them can be asked for here, and tables in fewer bits than fp32 are
refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from recsys_embed.doctor import check_stack
from recsys_embed.embeddings.base import Rows, TableSpec
from recsys_embed.ids import Ids
from recsys_embed.storage import FP32
from recsys_embed.tables.base import Group, Request, Tables, UpdateRule
from recsys_embed.tables.fbgemm import MULTIPLE, OPTIMIZERS, correction, optimizer_of, padded, refuse_to_move, too_wide

PADDING = 2
"""Where padding would multiply the weights by more than this, ``auto`` leaves them to the reference back end."""


class FusedTables(Tables):
    """Takes over the weights of ``source``. Operators are kept out of ``parameters()``: only :meth:`update` trains."""

    def __init__(self, source: Tables, rule: UpdateRule, device: torch.device) -> None:
        super().__init__(list(source.specs.values()), source.groups, source.seed)
        self.rule = rule
        self._homes: dict[str, tuple[int, int]] = {}
        self._orders: list[tuple[list[int], Tensor] | None] = []
        self._operators = [self._operator(place, group, device) for place, group in enumerate(self.groups)]
        self._weights = [operator.split_embedding_weights() for operator in self._operators]
        self._bags_of_one = torch.zeros(0)
        self._lr = math.nan
        for name in self.specs:
            self.put(name, source.get(name))

    def _operator(self, place: int, group: Group, device: torch.device) -> Any:
        check_stack()
        from fbgemm_gpu.split_table_batched_embeddings_ops_common import (
            BoundsCheckMode,
            EmbeddingLocation,
            PoolingMode,
        )
        from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
            ComputeDevice,
            SplitTableBatchedEmbeddingBagsCodegen,
        )

        assert self.rule is not None
        names = list(dict.fromkeys(group.lanes))
        # FBGEMM's CPU backward takes lanes of one table to be neighbours: any other order fails or corrupts rows.
        order = sorted(range(len(group.lanes)), key=lambda lane: names.index(group.lanes[lane]))
        sorted_already = order == list(range(len(order)))
        self._orders.append(None if sorted_already else (order, torch.tensor(order, device=device).argsort()))
        for table, name in enumerate(names):
            if name in self._homes:
                raise AssertionError(f"table {name!r} is read by two groups")
            self._homes[name] = (place, table)
        cpu = device.type == "cpu"
        location = EmbeddingLocation.HOST if cpu else EmbeddingLocation.DEVICE
        compute = ComputeDevice.CPU if cpu else ComputeDevice.CUDA
        width = self.padded_width(group.width)
        return SplitTableBatchedEmbeddingBagsCodegen(
            [(self.specs[name].rows, width, location, compute) for name in names],
            feature_table_map=[names.index(group.lanes[lane]) for lane in order],
            optimizer=optimizer_of(self.rule),
            eps=self.rule.eps,
            pooling_mode=PoolingMode.SUM,
            # Ids are checked, and their feature named, before they come here.
            bounds_check_mode=BoundsCheckMode.NONE if cpu else BoundsCheckMode.FATAL,
            device=device,
        )

    def read(self, group: int, request: Request) -> Tensor:
        """One operator call for all lanes of the group; a view where a table's lanes are neighbours."""
        lanes, width, order = len(self.groups[group].lanes), self.groups[group].width, self._orders[group]
        bags = Ids(request.rows, lanes, request.offsets, request.weights)
        if order is not None:
            bags = bags.select(order[0])
        rows, offsets = bags.values.reshape(-1), bags.offsets
        if offsets is None:
            if self._bags_of_one.numel() != rows.numel() + 1 or self._bags_of_one.dtype != rows.dtype:
                self._bags_of_one = torch.arange(rows.numel() + 1, dtype=rows.dtype, device=rows.device)
            offsets = self._bags_of_one
        flat: Tensor = self._operators[group](rows, offsets, bags.weights)
        read = flat.view(request.batch, lanes, self.padded_width(width))
        if read.shape[2] != width:
            read = read[:, :, :width]
        return read if order is None else read[:, order[1]]

    def set_lr(self, lr: float) -> None:
        """An operator takes the rate when it reads, and keeps it for that read's backward."""
        assert self.rule is not None
        if lr != self._lr:
            for operator, group in zip(self._operators, self.groups, strict=True):
                operator.set_learning_rate(lr / correction(self.rule, group.width))
            self._lr = lr

    def update(self, group: int, request: Request, read: Tensor | None, gradient: Tensor) -> None:
        """The operator's backward; duplicates are summed exactly."""
        if read is None:
            with torch.enable_grad():
                read = self.read(group, request)
        assert self.rule is not None
        factor = correction(self.rule, self.groups[group].width)
        read.backward(gradient if factor == 1 else gradient * factor)

    def get(self, name: str) -> Tensor:
        """A view, without the padding."""
        place, table = self._homes[name]
        stored: Tensor = self._weights[place][table]
        return stored.detach()[:, : self.specs[name].width]

    def put(self, name: str, weights: Tensor) -> None:
        """Copied; the padding stays zero."""
        place, table = self._homes[name]
        stored: Tensor = self._weights[place][table].detach()
        stored.zero_()
        stored[:, : self.specs[name].width].copy_(weights)

    def get_state(self, name: str) -> Tensor:
        """A view of the operator's memory, without the padding."""
        assert self.rule is not None
        width = self.specs[name].width
        if self.rule.name == "sgd":
            return torch.zeros(self.specs[name].rows, 0, device=self.device)
        state = self._momentum(name)
        if self.rule.name == "adagrad":
            return state[:, :width]
        return state.view(-1, 1)

    def put_state(self, name: str, state: Tensor) -> None:
        """Copied."""
        self.get_state(name).copy_(state)

    def get_rows(self, name: str, rows: Tensor) -> Rows:
        """Indexed out of the operator's memory."""
        return Rows(self.get(name)[rows], self.get_state(name)[rows])

    def put_rows(self, name: str, rows: Tensor, values: Rows) -> None:
        """Indexed into the operator's memory."""
        self.get(name)[rows] = values.weights
        self.get_state(name)[rows] = values.state

    @property
    def device(self) -> torch.device:
        """Where the operators are."""
        there: torch.device = self._weights[0][0].device
        return there

    def padded_width(self, width: int) -> int:
        """The next multiple of four."""
        return padded(width)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FusedTables:
        refuse_to_move("fused", fn, self.device)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self

    def _momentum(self, name: str) -> Tensor:
        place, table = self._homes[name]
        momentum: Tensor = self._operators[place].split_optimizer_states()[table][0]
        return momentum.detach()


def refusal(rule: UpdateRule, device: torch.device, groups: Sequence[Group], specs: Iterable[TableSpec]) -> str | None:
    """Why the fused back end cannot hold these tables on this device, or ``None``."""
    if device.type not in ("cpu", "cuda"):
        return f"FBGEMM has no kernels for {device.type}"
    try:
        check_stack()
    except ImportError as error:
        return str(error)
    if rule.name not in OPTIMIZERS:
        return "it has no lazy Adam"
    for spec in specs:
        if spec.storage != FP32:
            return f"table {spec.name!r} is stored as {spec.storage.dtype}, and it trains fp32 alone"
    return too_wide(max(group.width for group in groups)) if groups else "there are none"


def extravagance(specs: Iterable[TableSpec]) -> str | None:
    """Why ``auto`` leaves these tables alone although FBGEMM can hold them, or ``None``.

    Only width 1 can be refused: a flat array takes four times its bytes, for a step that is no faster until the array
    is several times as long as a batch has occurrences.
    """
    specs = list(specs)
    weights = sum(spec.rows * spec.width for spec in specs)
    stored = sum(spec.rows * padded(spec.width) for spec in specs)
    if stored > PADDING * weights:
        return f"FBGEMM pads rows to {MULTIPLE} floats, and would store {stored} weights instead of {weights}"
    return None
