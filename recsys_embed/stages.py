"""Training in stages, as data: which split feeds a step, what it moves, and when a stage ends.

A strategy lists its stages; the one trainer runs them and can resume inside any. Most strategies have the one stage
that trains everything until validation stops improving.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TABLES, MODEL = "tables", "model"
"""What a step may move: the rows of all tables; the parameters of the model that is handed the vectors, and every small
parameter of a strategy that has no optimizer of its own."""


@dataclass(frozen=True)
class Step:
    """One update: its batch comes from ``split``; ``trains`` names :data:`TABLES`, :data:`MODEL` or small parameters of
    the strategy that have an optimizer of their own. Whatever is not named stays bit for bit as it is."""

    split: Literal["train", "val"] = "train"
    trains: frozenset[str] = frozenset({TABLES, MODEL})


@dataclass(frozen=True)
class Stage:
    """Steps that alternate, batch by batch, for a number of epochs of the training split.

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
    """The optimizer of one small parameter. ``bounds``: clamped to after each update."""

    lr: float
    name: Literal["sgd", "adam"] = "sgd"
    bounds: tuple[float, float] | None = None
