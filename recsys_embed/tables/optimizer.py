"""The tables optimizer: a ``torch.optim.Optimizer`` whose parameters are the rows that were just read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor

from recsys_embed import ranks
from recsys_embed.eager import unmarked
from recsys_embed.errors import ConfigError, DivergedError
from recsys_embed.tables.base import Request, Tables


@dataclass
class Read:
    """A read of one group: what was asked, what the back end gave to update by, and the leaf that everybody else sees:
    the vectors."""

    group: int
    request: Request
    rows: Tensor | None
    leaf: Tensor
    lr: float

    @property
    def gradient(self) -> Tensor:
        """``[B, V, W]``; a pending read has one."""
        return torch.zeros_like(self.leaf) if self.leaf.grad is None else self.leaf.grad


class TablesOptimizer(torch.optim.Optimizer):
    """Updates the tables of a layer, once per :meth:`step`, over all reads whose gradient has arrived.

    The pending leaves are ``param_groups[0]["params"]``, so that ``GradScaler``, ``clip_grad_norm_`` and schedulers
    work as ever. Norms are over read-outs: an id that occurs twice counts twice, and rows that a read combines to one
    vector count as that vector.
    """

    def __init__(
        self,
        tables: Tables,
        lr: float,
        feature_of: Callable[[int, int], str],
        observe: Callable[[list[Read]], None] | None,
        on_discard: Callable[[], None],
        *,
        share: float = 1.0,
    ) -> None:
        if lr <= 0:
            raise ConfigError(f"a learning rate is positive, got {lr}")
        placeholder = torch.zeros(0, requires_grad=True)
        super().__init__([placeholder], {"lr": lr})
        self._tables, self._feature_of, self._observe, self._on_discard = tables, feature_of, observe, on_discard
        self._share = share
        self._pending: list[Read] = []
        self._expose()

    add_param_group = unmarked(torch.optim.Optimizer.add_param_group)

    def read(self, group: int, request: Request) -> Tensor:
        """A leaf over the vectors; the read becomes pending when the leaf's gradient arrives, and not before."""
        lr = float(self.param_groups[0]["lr"])
        self._tables.set_lr(lr)
        rows, vectors = self._tables.read_to_train(group, request)
        leaf = vectors.detach().requires_grad_()
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

        On several ranks all of them step, or none.

        Raises:
            DivergedError: the gradient of a vector is not finite, on this rank or another; no row has been touched.
            ConfigError: ranks have not made the same reads.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._check_finite()
        if self._observe is not None and self._pending:
            self._observe(self._pending)
        lr = float(self.param_groups[0]["lr"])
        self._tables.set_lr(lr)
        self._tables.steps += 1
        for group in sorted({read.group for read in self._pending}):  # one order on all ranks
            reads = [read for read in self._pending if read.group == group]
            if len(reads) == 1:
                read = reads[0]
                same = read.rows if read.lr == lr else None  # a fused read holds the rate it was made with
                self._tables.update_by_vectors(group, read.request, same, read.rows, self._scaled(read.gradient))
            else:
                lanes = len(self._tables.groups[group].lanes)
                request = Request.concat([read.request for read in reads], lanes)
                held = [read.rows for read in reads if read.rows is not None]
                with torch.no_grad():
                    gradient = self._scaled(torch.cat([read.gradient for read in reads]))
                    rows = torch.cat(held) if self._tables.groups[group].combination == "product" else None
                self._tables.update_by_vectors(group, request, None, rows, gradient)
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
            "state": {name: {self._kept: self._tables.saved(name, "state").clone()} for name in names},
            "param_groups": [{key: value for key, value in self.param_groups[0].items() if key != "params"}],
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Restore what :meth:`state_dict` gave, on any back end."""
        assert self._tables.rule is not None
        if state_dict["rule"] != self._tables.rule.name:
            raise ConfigError(f"state of {state_dict['rule']!r} cannot be loaded into {self._tables.rule.name!r}")
        for name, state in state_dict["state"].items():
            self._tables.restore(name, "state", state[self._kept])
        self._tables.steps = int(state_dict["steps"])
        self.param_groups[0].update(state_dict["param_groups"][0])

    @property
    def _kept(self) -> str:
        """What the state of a row is."""
        assert self._tables.rule is not None
        return "moments" if self._tables.rule.name == "lazy_adam" else "sum"

    def _scaled(self, gradient: Tensor) -> Tensor:
        return gradient if self._share == 1 else gradient * self._share

    def _check_finite(self) -> None:
        """Whether every rank's gradients are finite, and as many reads pending: else none may begin its update."""
        bad = next((place for read in self._pending if (place := _not_finite(read)) is not None), (-1, -1))
        rank = ranks.own()
        if ranks.count() > 1:
            pending = [sum(read.group == group for read in self._pending) for group in range(len(self._tables.groups))]
            device = self._tables.device
            facts = ranks.gathered(torch.tensor([[*bad, *pending]], device=device)).tolist()
            rank, bad = next(((r, (f[0], f[1])) for r, f in enumerate(facts) if f[0] >= 0), (rank, (-1, -1)))
            if bad == (-1, -1) and any(fact[2:] != facts[0][2:] for fact in facts):
                reads = ", ".join(str(fact[2:]) for fact in facts)
                raise ConfigError(f"ranks have not made the same reads: of each group, {reads}; no row was changed")
        if bad != (-1, -1):
            name = self._feature_of(*bad)
            where = f" on rank {rank}" if ranks.count() > 1 else ""
            message = f"the gradient of feature {name!r} is not finite{where}; no row was changed"
            raise DivergedError(message, feature=name)

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


def _not_finite(read: Read) -> tuple[int, int] | None:
    """Group and vector of the first gradient that is not finite."""
    if finite(read.gradient):
        return None
    bad = ~torch.isfinite(read.gradient).all(dim=2).all(dim=0)
    return read.group, int(bad.nonzero()[0])


def finite(gradient: Tensor) -> bool:
    """Whether all of it is. A sum is finite unless a term is not, or it overflows: only then look closer."""
    return bool(torch.isfinite(gradient.sum())) or bool(torch.isfinite(gradient).all())
