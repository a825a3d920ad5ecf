"""The optimizers of a run: one for the tables, one for everything else, stepped together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from recsys_embed.config import TrainingConfig
from recsys_embed.errors import DivergedError
from recsys_embed.recommender import Recommender
from recsys_embed.tables.optimizer import TablesOptimizer

_DENSE: dict[str, type[Optimizer]] = {
    "adam": torch.optim.Adam,
    "adagrad": torch.optim.Adagrad,
    "sgd": torch.optim.SGD,
}


class Optimizers:
    """Clips, steps, clears and warms up.

    ``tables = "adam"`` leaves the tables ordinary parameters: one Adam trains them (at ``tables_lr``) and, where
    ``dense`` is Adam too, everything else in a parameter group beside them. Otherwise the embedding layer's own
    optimizer updates the rows that were read.
    """

    def __init__(self, model: Recommender, config: TrainingConfig) -> None:
        settings = config.optimizer
        self._clip_norm, self._warmup_steps = config.clip_norm, config.warmup_steps
        self._by_name: dict[str, Optimizer] = {}
        self._tables: TablesOptimizer | None = None
        self._plain_tables: list[nn.Parameter] = []
        if settings.tables == "adam":
            self._plain_tables = list(model.embedding.tables.parameters())
        else:
            self._tables = model.embedding.optimizer(settings.tables, lr=settings.tables_lr)
            self._by_name["tables"] = self._tables
        among_tables = {id(parameter) for parameter in self._plain_tables}
        dense = [parameter for parameter in model.parameters() if id(parameter) not in among_tables]
        groups = [_group(dense, settings.dense_lr, settings.dense_decay)]
        if self._plain_tables and settings.dense == "adam":
            groups.append(_group(self._plain_tables, settings.tables_lr, 0.0))
        elif self._plain_tables:
            self._by_name["tables"] = _make("adam", [_group(self._plain_tables, settings.tables_lr, 0.0)])
        self._by_name["dense"] = _make(settings.dense, groups)
        self._parameters = dense + self._plain_tables
        self._schedulers = {name: LambdaLR(one, self._factor) for name, one in self._by_name.items()}
        self._steps = 0

    def _factor(self, step: int) -> float:
        """Linear warm-up: the first step runs at 1/warmup_steps of the rate, the last of them at all of it."""
        return min(1.0, (step + 1) / max(self._warmup_steps, 1))

    def step(self) -> None:
        """Apply the gradients that have arrived, then discard them.

        Raises:
            DivergedError: a gradient of a table is not finite, or, where gradients are clipped, any; no table and
                no other weight has changed.
        """
        if self._clip_norm is not None:
            self._clip(self._clip_norm)
        for parameter in self._plain_tables:
            # A sum is finite unless a term is not, or it overflows: only then look closer.
            gradient = parameter.grad
            if gradient is not None and not math.isfinite(gradient.sum().item()) and not _finite(gradient):
                raise DivergedError("the gradient of a table is not finite")
        for optimizer in self._by_name.values():  # the tables' first: it is the one that may refuse
            optimizer.step()
        self.zero_grad()
        if self._steps < self._warmup_steps:
            for scheduler in self._schedulers.values():
                scheduler.step()
        self._steps += 1

    def zero_grad(self) -> None:
        """Discard the gradients that have arrived."""
        for parameter in self._parameters:
            parameter.grad = None
        if self._tables is not None:
            self._tables.zero_grad()

    def _clip(self, limit: float) -> None:
        """Scale all gradients together; those of the tables count once for each row that was read."""
        leaves: list[Tensor] = [] if self._tables is None else self._tables.param_groups[0]["params"]
        every = [*self._parameters, *leaves]
        norm = get_total_norm([one.grad for one in every if one.grad is not None])
        if math.isfinite(norm.item()):
            clip_grads_with_norm_(every, limit, norm)
            return
        if self._tables is not None and not all(_finite(leaf.grad) for leaf in leaves if leaf.grad is not None):
            self._tables.step()  # names the feature
        raise DivergedError("the norm of the gradients is not finite")

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything a resumed run needs, as named tensors and as plain values."""
        tensors: dict[str, Tensor] = {}
        plain: dict[str, Any] = {"steps": self._steps, "optimizers": {}, "schedulers": {}}
        for name, optimizer in self._by_name.items():
            tree = optimizer.state_dict()
            entries = [(key, what, value) for key, state in tree["state"].items() for what, value in state.items()]
            for key, what, value in entries:
                if isinstance(value, Tensor):
                    tensors[f"{name}.{key}.{what}"] = value
            plain["optimizers"][name] = {
                **tree,
                "state": [[key, what, None if isinstance(value, Tensor) else value] for key, what, value in entries],
            }
            plain["schedulers"][name] = self._schedulers[name].state_dict()
        return tensors, plain

    def restore(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]) -> None:
        """Take up what :meth:`state` gave."""
        for name, optimizer in self._by_name.items():
            tree = dict(plain["optimizers"][name])
            state: dict[Any, dict[str, Any]] = {}
            for key, what, value in tree["state"]:
                state.setdefault(key, {})[what] = tensors.get(f"{name}.{key}.{what}", value)
            optimizer.load_state_dict({**tree, "state": state})
            self._schedulers[name].load_state_dict(dict(plain["schedulers"][name]))
        self._steps = plain["steps"]


def _group(parameters: list[nn.Parameter], lr: float, decay: float) -> dict[str, Any]:
    return {"params": parameters, "lr": lr, "weight_decay": decay}


def _make(name: str, groups: list[dict[str, Any]]) -> Optimizer:
    """Fused, one kernel for a whole group, where the device has it: three times as fast on CPU at small batches."""
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    make: Any = _DENSE[name]
    optimizer: Optimizer = make(groups, fused=True) if devices <= {"cpu", "cuda"} else make(groups)
    return optimizer


def _finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(tensor).all())
