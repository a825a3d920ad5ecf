"""A toy strategy that uses all of the stages' contract, and what the tests of stages and resuming share."""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recsys_embed.config import Config, TrainingConfig
from recsys_embed.embeddings import Full
from recsys_embed.embeddings.base import Lookup, Rows, TableAccess
from recsys_embed.features import Feature
from recsys_embed.recommender import Recommender
from recsys_embed.stages import TABLES, SmallOptimizer, Stage, Step
from recsys_embed.training import trainer
from recsys_embed.training.interrupt import Interrupted
from recsys_embed.training.step import Done
from tests.training import runs
from tests.training.runs import build


class Staged(Full):
    """Full tables with a factor for each dimension, found on the validation split, then fixed and cut."""

    kept: Tensor

    def __init__(self, features: Sequence[Feature], dim: int) -> None:
        super().__init__(features, dim)
        self.alpha = nn.Parameter(torch.ones(dim))
        self.shift = nn.Parameter(torch.zeros(dim))  # small, without an optimizer of its own
        self.register_buffer("kept", torch.ones(dim))

    def combine(self, rows: Mapping[str, Tensor], lookup: Lookup) -> Tensor:
        return super().combine(rows, lookup) * self.alpha * self.kept + self.shift

    def stages(self) -> tuple[Stage, ...]:
        alternating = (Step("train", frozenset({TABLES})), Step("val", frozenset({"alpha"})))
        return (Stage("warm_up", epochs=1), Stage("search", alternating, epochs=2), Stage("retrain"))

    def small_optimizers(self) -> dict[str, SmallOptimizer]:
        return {"alpha": SmallOptimizer(0.05, "adam", bounds=(0.0, 1.0))}

    def normalise(self, name: str, gradient: Tensor) -> Tensor:
        return gradient / (gradient.abs().mean() + 1e-8)

    def finish(self, stage: str, tables: TableAccess) -> None:
        if stage == "search":
            self.kept.copy_(self.alpha.detach() > self.alpha.detach().median())
            rows = torch.arange(3)
            found = tables.get_rows("user", rows)
            tables.put_rows("user", rows, Rows(found.weights * 0.5 + torch.rand(1), found.state))


class Maintained(Staged):
    """The same, counting its maintenance, which only a tables optimizer allows."""

    maintain_every = 4

    def __init__(self, features: Sequence[Feature], dim: int) -> None:
        super().__init__(features, dim)
        self.register_buffer("maintained", torch.zeros(1, dtype=torch.int64))

    def maintain(self, tables: TableAccess) -> None:
        self.maintained += 1


def settings(tables: str = "rowwise_adagrad", **training: Any) -> Config:
    """A run with everything that a step can do: dropout, decay, warm-up and clipping."""
    backend = training.pop("backend", "reference")
    given = {
        "model": {"name": "dcn_v2", "dim": 4, "cross_layers": 1, "hidden": [8], "dropout": 0.2},
        "embedding": {"strategy": "full", "seed": 3, "decay": 1e-4, "backend": backend},
        "batch_size": 20,
        "epochs": 3,
        "patience": 3,
        "warmup_steps": 9,
        "clip_norm": 0.5,
    }
    return runs.settings(tables, **{**given, **training})


@dataclass
class Record:
    """What the steps of a run did, in their order."""

    losses: list[float] = field(default_factory=list)
    samples: list[tuple[str, float]] = field(default_factory=list)  # split and the row's dense number: its identity


def record(monkeypatch: Any) -> Record:
    """Let every step of the trainer tell the record its loss and samples."""
    kept, plain = Record(), trainer.step

    def told(model: Recommender, batch: Any, optimizers: Any, what: Step) -> Done:
        done = plain(model, batch, optimizers, what)
        kept.losses += [done.loss.item(), done.objective]
        kept.samples += [(what.split, number) for number in batch.dense[:, 0].tolist()]
        return done

    monkeypatch.setattr(trainer, "step", told)
    return kept


def fit(config: Config, data: Any, **options: Any) -> tuple[Recommender, trainer.TrainResult]:
    model = build(config, data)
    return model, trainer.train(model, data, config.training, progress=False, **options)


def stop_after(config: Config, data: Any, steps: int, folder: Path, number: int = signal.SIGTERM) -> Interrupted | None:
    """:func:`stop_after_step` of a model that is built here."""
    return stop_after_step(build(config, data), data, config.training, steps, folder, number)


def stop_after_step(
    model: Recommender, data: Any, config: TrainingConfig, steps: int, folder: Path, number: int = signal.SIGTERM
) -> Interrupted | None:
    """Run until the signal that is sent in the middle of a step of this process; None where the run ended before."""
    done = [0]

    def count(*args: Any) -> None:
        done[0] += model.training
        if done[0] == steps and model.training:
            os.kill(os.getpid(), number)

    model.interaction.register_forward_hook(count)
    try:
        trainer.train(model, data, config, progress=False, checkpoints=folder)
    except Interrupted as stopped:
        return stopped
    return None


def same_state(one: nn.Module, other: nn.Module) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def without_times(result: trainer.TrainResult) -> list[dict[str, Any]]:
    return [{key: value for key, value in line.items() if key != "seconds"} for line in result.history]


def damage(path: Path) -> None:
    """Flip a bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def unique_rows(data: Any) -> Any:
    """Every row's dense number differs from all others: it can be told apart."""
    for split, columns in data.split.items():
        numbers = columns.dense[0]
        numbers[:] = np.linspace(-1, 1, len(numbers), dtype=np.float32)
        assert len(set(numbers.tolist())) == len(numbers), split
    return data
