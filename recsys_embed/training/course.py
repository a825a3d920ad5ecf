"""Where a run stands in its stages, and when a stage or the run is over: plain values, no weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from recsys_embed.config import TrainingConfig
from recsys_embed.stages import Stage, Step


@dataclass
class Place:
    """What a run knows besides weights, saved as it is. All counts are from the start of the run, if not of the epoch.

    ``batch`` and ``turn`` say where in the epoch it is: training batches used, and whose turn it is of the stage's
    steps. ``loss`` is the weighted sum of the logloss over the epoch's training rows so far, which count
    ``loss_weight`` together. ``best_step`` is the step after which the stage's best epoch ended.
    """

    step: int = 0
    stage: int = 0
    epoch: int = 0  # finished
    stage_epoch: int = 0  # finished ones of the stage
    batch: int = 0
    turn: int = 0
    val_batches: int = 0
    loss: float = 0.0
    loss_weight: float = 0.0
    epoch_seconds: float = 0.0
    best_epoch: int = 0
    best_step: int | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    samples_seen: int = 0
    train_seconds: float = 0.0


class Course:
    """The stages of a run under the training config: whose turn it is, and what is over."""

    def __init__(self, stages: Sequence[Stage], config: TrainingConfig) -> None:
        self.stages, self._config = tuple(stages), config

    def epochs(self, stage: Stage) -> int:
        """The most epochs of a stage."""
        return self._config.epochs if stage.epochs is None else stage.epochs

    @property
    def all_epochs(self) -> int:
        """The most epochs of the run."""
        return sum(self.epochs(stage) for stage in self.stages)

    def stage(self, place: Place) -> Stage | None:
        """The stage under way; None when all are over."""
        return self.stages[place.stage] if place.stage < len(self.stages) else None

    def turn(self, place: Place, batches: int) -> Step | None:
        """The next step of an epoch of ``batches`` training batches; None where the epoch's steps are done."""
        what = self.stages[place.stage].steps[place.turn]
        used_up = place.batch >= batches
        return None if used_up and (place.turn == 0 or what.split == "train") else what

    def stepped(self, place: Place, samples: int, loss: float, weight: float) -> None:
        """Count the step whose turn it was; ``loss`` is the mean logloss of its samples, which count ``weight``
        together."""
        steps = self.stages[place.stage].steps
        if steps[place.turn].split == "train":
            place.batch += 1
            place.loss += loss * weight
            place.loss_weight += weight
        else:
            place.val_batches += 1
        place.turn = (place.turn + 1) % len(steps)
        place.step += 1
        place.samples_seen += samples

    def epoch_done(self, place: Place, val_auc: float, val_logloss: float) -> bool:
        """Write the epoch's line into the history; whether its weights are the stage's best so far."""
        place.epoch += 1
        place.stage_epoch += 1
        line: dict[str, Any] = {"epoch": place.epoch}
        if len(self.stages) > 1:
            line["stage"] = self.stages[place.stage].name
        line |= {"train_loss": place.loss / place.loss_weight, "val_auc": val_auc, "val_logloss": val_logloss}
        place.history.append({**line, "samples_seen": place.samples_seen, "seconds": place.epoch_seconds})
        place.batch = place.turn = 0
        place.loss = place.loss_weight = place.epoch_seconds = 0.0
        stage = self.stages[place.stage]
        if stage.epochs is not None:
            place.best_epoch = place.epoch
        elif self._improved(place.history[-place.stage_epoch :]):
            place.best_epoch, place.best_step = place.epoch, place.step
            return True
        return False

    def stage_over(self, place: Place) -> bool:
        """Out of epochs, or of patience."""
        stage = self.stages[place.stage]
        if place.stage_epoch >= self.epochs(stage):
            return True
        return stage.epochs is None and place.epoch - max(place.best_epoch, self._begin(place)) >= self._config.patience

    def stage_done(self, place: Place) -> None:
        """Go on to the next stage."""
        place.stage += 1
        place.stage_epoch, place.best_step = 0, None

    def _begin(self, place: Place) -> int:
        return place.epoch - place.stage_epoch

    def _improved(self, history: Sequence[dict[str, Any]]) -> bool:
        *earlier, last = history
        if self._config.monitor == "auc":
            return all(last["val_auc"] > line["val_auc"] for line in earlier)
        return all(last["val_logloss"] < line["val_logloss"] for line in earlier)
