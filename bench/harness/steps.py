"""The trainer's own step, taken apart by a clock that its modules and optimizers strike."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from torch import Tensor

from recsys_embed.config import TrainingConfig
from recsys_embed.recommender import Recommender
from recsys_embed.stages import EVERYTHING
from recsys_embed.training.feed import Labelled
from recsys_embed.training.optimizers import Optimizers
from recsys_embed.training.step import step

PARTS = ("lookup", "dense", "update", "all_reduce", "dense_step", "other")
"""Ids to vectors, exchange included; forward and backward of everything else; gradients to rows, exchange included; the
sum of dense gradients over ranks; the dense optimizer; the loss, what ranks agree on, and Python. A rank that waits for
another does so in the part whose exchange they meet in."""


class Clock:
    """Seconds since the last strike go to the part that is named."""

    def __init__(self) -> None:
        self.parts: dict[str, float] = {}
        self._last = 0.0

    def start(self) -> None:
        """A new step."""
        self.parts = dict.fromkeys(PARTS, 0.0)
        self._last = time.perf_counter()

    def strike(self, part: str) -> None:
        """That part is over."""
        now = time.perf_counter()
        self.parts[part] += now - self._last
        self._last = now


class TimedStep:
    """Steps of a model, by the optimizers of a training's config."""

    def __init__(self, model: Recommender, config: TrainingConfig) -> None:
        self._model, self._clock = model, Clock()
        strike = self._clock.strike
        self._optimizers = _Struck(model, config, strike)
        model.embedding.register_forward_pre_hook(lambda *_: strike("other"))
        model.embedding.register_forward_hook(lambda *_: strike("lookup"))
        model.interaction.register_forward_hook(self._computed)

    def __call__(self, batch: Labelled) -> dict[str, float]:
        """Seconds of each part of one step."""
        self._clock.start()
        step(self._model, batch, self._optimizers)
        self._clock.strike("other")
        return self._clock.parts

    def _computed(self, module: Any, arguments: Any, logits: Tensor) -> None:
        self._clock.strike("dense")
        logits.register_hook(lambda gradient: self._clock.strike("other"))  # the loss; the backward pass begins


class _Struck(Optimizers):
    """The trainer's optimizers: they step once the backward pass is over, tables first."""

    def __init__(self, model: Recommender, config: TrainingConfig, strike: Callable[[str], None]) -> None:
        super().__init__(model, config)
        self._strike = strike
        assert self._tables is not None
        self._tables.register_step_post_hook(lambda *_: strike("update"))

    def step(self, trains: frozenset[str] = EVERYTHING) -> None:
        self._strike("dense")
        super().step(trains)
        self._strike("dense_step")

    def _sum_over_ranks(self) -> None:
        super()._sum_over_ranks()
        self._strike("all_reduce")
