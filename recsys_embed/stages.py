"""Training in stages, as data: which split feeds a step, what it moves, and when a stage ends.

A strategy lists its stages; the one trainer runs them and can resume inside any. Most strategies have the one stage
that trains everything until validation stops improving.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from recsys_embed.errors import ConfigError

TABLES, MODEL = "tables", "model"
"""What a step may move: the rows of all tables; the parameters of the model that is handed the vectors, and every small
parameter of a strategy that has no optimizer of its own."""

EVERYTHING = frozenset({TABLES, MODEL})


@dataclass(frozen=True)
class Step:
    """One update: its batch comes from ``split``; ``trains`` names :data:`TABLES`, :data:`MODEL` or small parameters of
    the strategy that have an optimizer of their own. Whatever is not named stays bit for bit as it is."""

    split: Literal["train", "val"] = "train"
    trains: frozenset[str] = EVERYTHING


@dataclass(frozen=True)
class Stage:
    """Steps that alternate, batch by batch, for a number of epochs of the training split.

    The steps run in turn, again and again. An epoch ends when every training row was used once and a step would need
    another, or the turn is over. Batches of the validation split are drawn without end, in an order of their own.

    ``epochs`` None: until validation stops improving, as the training config says, and the best weights are kept. A
    stage of fixed length keeps its last weights.
    """

    name: str
    steps: tuple[Step, ...] = (Step(),)
    epochs: int | None = None


ONE_STAGE = (Stage("train"),)
"""The stages of a strategy that has none of its own."""


@dataclass(frozen=True)
class SmallOptimizer:
    """The optimizer of one small parameter. ``bounds``: clamped to after each update. ``decay``: times the parameter it
    is added to the gradient."""

    lr: float
    name: Literal["sgd", "adam"] = "sgd"
    bounds: tuple[float, float] | None = None
    decay: float = 0.0


def agreed(stages: Mapping[str, tuple[Stage, ...]]) -> tuple[Stage, ...]:
    """The stages of a layer, from those of its strategies by name: whoever has none of its own goes along.

    Raises:
        ConfigError: two strategies have different stages of their own, or stages that cannot be run.
    """
    own = {name: one for name, one in stages.items() if one != ONE_STAGE}
    for name, one in own.items():
        _check(name, one)
    if len(set(own.values())) > 1:
        told = "; ".join(f"{name}: {', '.join(map(_told, one))}" for name, one in own.items())
        raise ConfigError(
            f"strategies of one layer train in the same stages, but these differ ({told}): give them to layers of "
            "their own, or make their options equal",
            path="embedding.strategy",
        )
    return next(iter(own.values()), ONE_STAGE)


def check_names(stages: Iterable[Stage], small: Iterable[str]) -> None:
    """Every step names what there is: :data:`TABLES`, :data:`MODEL`, or a small parameter with an optimizer.

    Raises:
        ConfigError: it does not; names stage and parameter.
    """
    known = {TABLES, MODEL, *small}
    for stage in stages:
        for name in sorted(frozenset().union(*(step.trains for step in stage.steps)) - known):
            raise ConfigError(f"stage {stage.name!r} trains {name!r}, which has no optimizer (of {sorted(known)})")


def _check(strategy: str, stages: tuple[Stage, ...]) -> None:
    names = [stage.name for stage in stages]
    if not stages or len(set(names)) < len(names):
        raise ConfigError(f"strategy {strategy} needs stages of different names, it has {names}")
    for stage in stages:
        if all(step.split != "train" for step in stage.steps):
            raise ConfigError(
                f"stage {stage.name!r} of strategy {strategy} never reads the training split: no epoch ends"
            )
        if stage.epochs is not None and stage.epochs < 1:
            raise ConfigError(
                f"stage {stage.name!r} of strategy {strategy} has {stage.epochs} epochs, at least 1 is needed"
            )


def _told(stage: Stage) -> str:
    return stage.name if stage.epochs is None else f"{stage.name} ({stage.epochs} epochs)"
