"""The optimizers of a run: one for the tables, one for everything else, and those of small parameters."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim import Optimizer

from recsys_embed import ranks
from recsys_embed.config import TrainingConfig
from recsys_embed.eager import eager
from recsys_embed.embeddings.base import Strategy
from recsys_embed.errors import DivergedError
from recsys_embed.recommender import Recommender
from recsys_embed.stages import EVERYTHING, MODEL, TABLES, SmallOptimizer
from recsys_embed.tables.optimizer import TablesOptimizer, finite
from recsys_embed.tables.reference import ReferenceTables

_ROWS, _MOMENTS = "rows", ("exp_avg", "exp_avg_sq")
"""How the state of plain tables is saved: by table, as tables may grow; and what of Adam's state has rows."""

_DENSE: dict[str, type[Optimizer]] = {
    "adam": eager(torch.optim.Adam),
    "adagrad": eager(torch.optim.Adagrad),
    "sgd": eager(torch.optim.SGD),
}


class Optimizers:
    """Clips, steps, clears and warms up whatever a step names; the rest stays bit for bit, optimizer state included.

    ``tables = "adam"`` leaves the tables ordinary parameters: one Adam trains them (at ``tables_lr``) and, where
    ``dense`` is Adam too, everything else in a parameter group beside them. Otherwise the embedding layer's own
    optimizer updates the rows that were read. Small parameters with an optimizer of their own are neither clipped nor
    warmed up.
    """

    def __init__(self, model: Recommender, config: TrainingConfig) -> None:
        settings = config.optimizer
        self._clip_norm, self._warmup_steps = config.clip_norm, config.warmup_steps
        self._by_name: dict[str, Optimizer] = {}
        self._tables: TablesOptimizer | None = None
        self._plain_rows: list[tuple[nn.Parameter, dict[str, slice]]] = []
        self._all_tables = model.embedding.tables
        if settings.tables == "adam":
            model.embedding.check_plain_training()
            assert isinstance(self._all_tables, ReferenceTables)
            self._plain_rows = self._all_tables.parameter_rows()
        else:
            self._tables = model.embedding.optimizer(settings.tables, lr=settings.tables_lr, reduce="sum")
            self._by_name["tables"] = self._tables
        self._plain_tables = [parameter for parameter, _ in self._plain_rows]
        self._small = [_Small.of(*one) for one in model.embedding.small_optimizers()]
        apart = {id(parameter) for parameter in [*self._plain_tables, *(small.parameter for small in self._small)]}
        self._dense = [parameter for parameter in model.parameters() if id(parameter) not in apart]
        groups = [_group(self._dense, settings.dense_lr, settings.dense_decay)]
        if self._plain_tables and settings.dense == "adam":
            groups.append(_group(self._plain_tables, settings.tables_lr, 0.0))
        elif self._plain_tables:
            self._by_name["tables"] = _make("adam", [_group(self._plain_tables, settings.tables_lr, 0.0)])
        self._by_name["dense"] = _make(settings.dense, groups)
        self._rates = {name: [g["lr"] for g in one.param_groups] for name, one in self._by_name.items()}
        self._steps = 0
        self._warm_up()

    def step(self, trains: frozenset[str] = EVERYTHING) -> None:
        """Apply the gradients that have arrived to what ``trains`` names, then discard them all.

        Raises:
            DivergedError: a gradient of a table or small parameter is not finite, or, where gradients are clipped,
                any; nothing has changed.
        """
        self._drop_all_but(trains)
        self._sum_over_ranks()
        if self._clip_norm is not None:
            self._clip(self._clip_norm)
        small = [one for one in self._small if one.name in trains]
        watched = {"a table": self._plain_tables} | {f"{one.name!r}": [one.parameter] for one in small}
        for what, parameters in watched.items():
            for parameter in parameters:
                if parameter.grad is not None and not finite(parameter.grad):
                    raise DivergedError(f"the gradient of {what} is not finite")
        for optimizer in self._by_name.values():  # the tables' first: it is the one that may refuse
            if optimizer is self._tables or any(
                p.grad is not None for g in optimizer.param_groups for p in g["params"]
            ):
                optimizer.step()
        for one in small:
            one.step()
        self.zero_grad()
        self._steps += 1
        if self._steps <= self._warmup_steps:
            self._warm_up()

    def zero_grad(self) -> None:
        """Discard the gradients that have arrived."""
        self._drop_all_but(frozenset())

    def state(self) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
        """Everything a resumed run needs: tensors that all ranks have alike, tensors with a row for each row of a table
        (its tables' :meth:`~recsys_embed.tables.base.Tables.saved` ones), and plain values."""
        tensors: dict[str, Tensor] = {}
        by_row: dict[str, Tensor] = {}
        plain: dict[str, Any] = {"steps": self._steps, "optimizers": {}}
        for name, optimizer in self._all().items():
            tree = optimizer.state_dict()
            entries = [(key, what, value) for key, state in tree["state"].items() for what, value in state.items()]
            plain_rows = self._rows_in(optimizer)
            for key, what, value in entries:
                if what in _MOMENTS and key in plain_rows:
                    tensors |= {f"{_ROWS}.{table}.{what}": value[rows] for table, rows in plain_rows[key].items()}
                elif isinstance(value, Tensor):
                    (by_row if optimizer is self._tables else tensors)[f"{name}.{key}.{what}"] = value
            plain["optimizers"][name] = {
                **tree,
                "state": [[key, what, None if isinstance(value, Tensor) else value] for key, what, value in entries],
            }
        return tensors, by_row, plain

    def restore(self, tensors: Mapping[str, Tensor], plain: Mapping[str, Any], *, settings: bool = True) -> None:
        """Take up what :meth:`state` gave, its tensors in one; without ``settings``, only what training has led to."""
        for name, optimizer in self._all().items():
            tree = dict(plain["optimizers"][name])
            if not settings:
                tree["param_groups"] = optimizer.state_dict()["param_groups"]
            state: dict[Any, dict[str, Any]] = {}
            plain_rows = self._rows_in(optimizer)
            for key, what, value in tree["state"]:
                if what in _MOMENTS and key in plain_rows:
                    found = self._moments(tensors, what, plain_rows[key])
                else:
                    found = tensors.get(f"{name}.{key}.{what}", value)
                state.setdefault(key, {})[what] = found
            optimizer.load_state_dict({**tree, "state": state})
        self._steps = plain["steps"]
        if not settings:
            self._warm_up()

    def reset_rows(self, table: str, rows: Tensor) -> None:
        """Take distinct rows ``[n]`` of a table out of the state of an optimizer of plain tables; a tables optimizer's
        goes with :meth:`~recsys_embed.tables.base.Tables.reset`."""
        for parameter, places in self._plain_rows:
            for optimizer in self._by_name.values():
                state = optimizer.state.get(parameter, {})
                for what in _MOMENTS:
                    if table in places and what in state:
                        state[what][rows.to(parameter.device) + places[table].start] = 0

    def _rows_in(self, optimizer: Optimizer) -> dict[int, dict[str, slice]]:
        """Of the parameters of an optimizer, by their number, those that are plain tables: the rows of each table."""
        if optimizer is self._tables:
            return {}
        numbers = {id(one): n for n, one in enumerate(p for group in optimizer.param_groups for p in group["params"])}
        return {numbers[id(one)]: rows for one, rows in self._plain_rows if id(one) in numbers}

    def _moments(self, tensors: Mapping[str, Tensor], what: str, places: Mapping[str, slice]) -> Tensor:
        """A moment of all tables in a parameter; while they grow, new rows have none."""
        parts = []
        for table, rows in places.items():
            part, size = tensors[f"{_ROWS}.{table}.{what}"], rows.stop - rows.start
            if len(part) != size and not (self._all_tables.grows and len(part) < size):
                raise ValueError(f"{what} of table {table!r} has {len(part)} rows, and the table has {size}")
            parts += [part, part.new_zeros(size - len(part), part.shape[1])]
        return torch.cat(parts)

    def _all(self) -> dict[str, Optimizer]:
        return self._by_name | {f"small.{place}": one.optimizer for place, one in enumerate(self._small)}

    def _drop_all_but(self, trains: frozenset[str]) -> None:
        """Discard the gradients of whatever is not named: an optimizer leaves a parameter without one alone."""
        if TABLES not in trains:
            _clear(self._plain_tables)
            if self._tables is not None:
                self._tables.zero_grad()
        if MODEL not in trains:
            _clear(self._dense)
        _clear([one.parameter for one in self._small if one.name not in trains])

    def _sum_over_ranks(self) -> None:
        """Add up the ranks' gradients of everything but the tables, in one exchange.

        DIFF from DDP, which averages, so that ranks with fewer samples would count for more; which exchanges before
        the finite check; and which fails on a parameter that a step leaves out.
        """
        if ranks.count() == 1:
            return
        parameters = [*self._dense, *self._plain_tables, *(small.parameter for small in self._small)]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if gradients:
            whole = ranks.summed(torch.cat([gradient.reshape(-1) for gradient in gradients]))
            for gradient, part in zip(gradients, whole.split([one.numel() for one in gradients]), strict=True):
                gradient.copy_(part.view_as(gradient))

    def _warm_up(self) -> None:
        """Linear: the first step runs at 1/warmup_steps of the rate, the last of them at all of it."""
        factor = min(1.0, (self._steps + 1) / max(self._warmup_steps, 1))
        for name, optimizer in self._by_name.items():
            for group, rate in zip(optimizer.param_groups, self._rates[name], strict=True):
                group["lr"] = rate * factor

    def _clip(self, limit: float) -> None:
        """Scale all gradients together; those of the tables count once for each row, or vector, that was read."""
        leaves: list[Tensor] = [] if self._tables is None else self._tables.param_groups[0]["params"]
        every = [*self._dense, *self._plain_tables, *leaves]
        norm = get_total_norm([one.grad for one in every if one.grad is not None])
        if ranks.count() > 1:  # every rank has all of the dense gradients, and its own leaves
            own = get_total_norm([leaf.grad for leaf in leaves if leaf.grad is not None])
            dense = get_total_norm([p.grad for p in [*self._dense, *self._plain_tables] if p.grad is not None])
            norm = (dense.square() + ranks.summed(own.square().to(dense))).sqrt()
        if math.isfinite(norm.item()):
            clip_grads_with_norm_(every, limit, norm)
            return
        alone = ranks.count() == 1
        bad = not all(finite(leaf.grad) for leaf in leaves if leaf.grad is not None)
        if self._tables is not None and (bad or (not alone and math.isfinite(dense.item()))):
            self._tables.step()  # names the feature
        raise DivergedError("the norm of the gradients is not finite")


@dataclass(frozen=True)
class _Small:
    """A small parameter with an optimizer of its own."""

    name: str
    strategy: Strategy
    parameter: nn.Parameter
    settings: SmallOptimizer
    optimizer: Optimizer

    @classmethod
    def of(cls, name: str, strategy: Strategy, settings: SmallOptimizer) -> _Small:
        parameter = strategy.get_parameter(name)
        make: Any = _DENSE[settings.name]
        return cls(name, strategy, parameter, settings, make([parameter], lr=settings.lr, weight_decay=settings.decay))

    def step(self) -> None:
        """Update by the gradient as the strategy wants it seen, then clamp."""
        if self.parameter.grad is None:
            return
        self.parameter.grad = self.strategy.normalise(self.name, self.parameter.grad)
        self.optimizer.step()
        if self.settings.bounds is not None:
            with torch.no_grad():
                self.parameter.clamp_(*self.settings.bounds)


def _clear(parameters: list[nn.Parameter]) -> None:
    for parameter in parameters:
        parameter.grad = None


def _group(parameters: list[nn.Parameter], lr: float, decay: float) -> dict[str, Any]:
    return {"params": parameters, "lr": lr, "weight_decay": decay}


def _make(name: str, groups: list[dict[str, Any]]) -> Optimizer:
    """Fused, one kernel for a whole group, where the device has it: three times as fast on CPU at small batches."""
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    make: Any = _DENSE[name]
    optimizer: Optimizer = make(groups, fused=True) if devices <= {"cpu", "cuda"} else make(groups)
    return optimizer
