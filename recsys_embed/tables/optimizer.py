"""The tables optimizer: a ``torch.optim.Optimizer`` whose parameters are the rows that were just read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor

from recsys_embed.errors import ConfigError, DivergedError
from recsys_embed.tables.base import Request, Tables


@dataclass
class Read:
    """A read of one group: what was asked, what the back end gave, and the leaf that everybody else sees."""

    group: int
    request: Request
    rows: Tensor
    leaf: Tensor
    lr: float

    @property
    def gradient(self) -> Tensor:
        """``[B, L, W]``; a pending read has one."""
        return torch.zeros_like(self.leaf) if self.leaf.grad is None else self.leaf.grad


class TablesOptimizer(torch.optim.Optimizer):
    """Updates the tables of a layer, once per :meth:`step`, over all reads whose gradient has arrived.

    The pending leaves are ``param_groups[0]["params"]``, so that ``GradScaler``, ``clip_grad_norm_`` and schedulers
    work as ever. Norms are over read-outs: an id that occurs twice counts twice.
    """

    def __init__(
        self,
        tables: Tables,
        lr: float,
        feature_of: Callable[[int, int], str],
        observe: Callable[[list[Read]], None] | None,
        on_discard: Callable[[], None],
    ) -> None:
        if lr <= 0:
            raise ConfigError(f"a learning rate is positive, got {lr}")
        placeholder = torch.zeros(0, requires_grad=True)
        super().__init__([placeholder], {"lr": lr})
        self._tables, self._feature_of, self._observe, self._on_discard = tables, feature_of, observe, on_discard
        self._pending: list[Read] = []
        self._expose()

    def read(self, group: int, request: Request) -> Tensor:
        """A leaf over the rows; the read becomes pending when the leaf's gradient arrives, and not before."""
        lr = float(self.param_groups[0]["lr"])
        self._tables.set_lr(lr)
        rows = self._tables.read(group, request)
        leaf = rows.detach().requires_grad_()
        waiting = [True]

        def arrived(leaf: Tensor) -> None:
            if waiting:  # a second backward through the same leaf only adds to its gradient
                waiting.clear()
                self._pending.append(Read(group, request, rows, leaf, lr))
                self._expose()

        leaf.register_post_accumulate_grad_hook(arrived)
        return leaf

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Apply all pending reads as one update per group, and clear them.

        Raises:
            DivergedError: a gradient is not finite; no row has been touched.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for read in self._pending:
            self._check_finite(read)
        if self._observe is not None and self._pending:
            self._observe(self._pending)
        lr = float(self.param_groups[0]["lr"])
        self._tables.set_lr(lr)
        self._tables.steps += 1
        for group in dict.fromkeys(read.group for read in self._pending):
            reads = [read for read in self._pending if read.group == group]
            if len(reads) == 1:
                read = reads[0]
                rows = read.rows if read.lr == lr else None  # a fused read holds the rate it was made with
                self._tables.update(group, read.request, rows, read.gradient)
            else:
                lanes = len(self._tables.groups[group].lanes)
                request = Request.concat([read.request for read in reads], lanes)
                with torch.no_grad():
                    gradient = torch.cat([read.gradient for read in reads])
                self._tables.update(group, request, None, gradient)
        self._clear()
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Discard what is pending: those reads will never be applied."""
        self._clear()

    def state_dict(self) -> dict[str, Any]:
        """``state`` by table name (logical rows), the steps made, and the parameter group without its leaves."""
        assert self._tables.rule is not None
        names = [] if self._tables.rule.name == "sgd" else list(self._tables.specs)
        return {
            "rule": self._tables.rule.name,
            "steps": self._tables.steps,
            "state": {name: {"sum": self._tables.get_state(name).clone()} for name in names},
            "param_groups": [{key: value for key, value in self.param_groups[0].items() if key != "params"}],
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave, on any back end."""
        assert self._tables.rule is not None
        if state_dict["rule"] != self._tables.rule.name:
            raise ConfigError(f"state of {state_dict['rule']!r} cannot be loaded into {self._tables.rule.name!r}")
        for name, state in state_dict["state"].items():
            self._tables.put_state(name, state["sum"])
        self._tables.steps = int(state_dict["steps"])
        self.param_groups[0].update(state_dict["param_groups"][0])

    def _check_finite(self, read: Read) -> None:
        gradient = read.gradient
        # A sum is finite unless a term is not, or it overflows: only then look closer.
        if torch.isfinite(gradient.sum()):
            return
        bad = ~torch.isfinite(gradient).all(dim=2).all(dim=0)
        if bad.any():
            name = self._feature_of(read.group, int(bad.nonzero()[0]))
            raise DivergedError(f"the gradient of feature {name!r} is not finite; no row was changed", feature=name)

    def _clear(self) -> None:
        for read in self._pending:
            read.leaf.grad = None
        self._pending = []
        self._expose()
        self._on_discard()

    def _expose(self) -> None:
        self.param_groups[0]["params"] = [read.leaf for read in self._pending]

    def __getstate__(self) -> Any:
        raise TypeError("a tables optimizer belongs to one layer and cannot be copied; use its state_dict")
