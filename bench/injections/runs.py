"""Trainings in this process, watched batch by batch."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from bench.injections.artifacts import digest
from recsys_embed.config import Config
from recsys_embed.data import EncodedDataset
from recsys_embed.recommender import Recommender, build_recommender
from recsys_embed.training.interrupt import Interrupted
from recsys_embed.training.trainer import train


@dataclass
class Watched:
    """What a training did: a digest of the rows of every training batch, and one of the logits it gave."""

    model: Recommender
    seen: list[tuple[str, str]] = field(default_factory=list)
    interrupted: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)

    def weights(self) -> str:
        """A digest of all weights."""
        return digest(self.model.state_dict())


def watch(
    config: Config,
    dataset: EncodedDataset,
    checkpoints: Path | None = None,
    *,
    signal_at: tuple[int, int] | None = None,
    before: Callable[[int, Recommender, Any], None] | None = None,
    after: Callable[[int, Tensor], Tensor | None] | None = None,
) -> Watched:
    """Train, or go on; send ourselves a signal ``(number, n)`` while the nth batch of this call is read.

    ``before`` sees each training batch before the model does, ``after`` may replace its logits.
    """
    model = build_recommender(config, dataset.features, len(dataset.dense))
    watched = Watched(model)

    def pre(module: Any, arguments: tuple[Any, ...]) -> None:
        if model.training and before is not None:
            before(len(watched.seen) + 1, model, arguments[0])

    def post(module: Any, arguments: tuple[Any, ...], logits: Tensor) -> Tensor | None:
        if not model.training:
            return None
        batch = arguments[0]
        rows = {"values": batch.ids.values, "dense": batch.dense, "label": batch.label}
        watched.seen.append((digest(rows), digest({"logits": logits})))
        if signal_at is not None and len(watched.seen) == signal_at[1]:
            os.kill(os.getpid(), signal_at[0])
        return None if after is None else after(len(watched.seen), logits)

    model.register_forward_pre_hook(pre)
    model.register_forward_hook(post)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            result = train(model, dataset, config.training, checkpoints=checkpoints, progress=False)
        except Interrupted:
            watched.interrupted = True
        else:
            watched.history = [{k: v for k, v in line.items() if k != "seconds"} for line in result.history]
    return watched
