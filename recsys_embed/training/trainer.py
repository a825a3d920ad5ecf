"""The one trainer: it runs the stages of the embedding layer, and goes on exactly where it was stopped.

Each part that a distributed run would do differently is in one place: which rows a step reads in
:mod:`~recsys_embed.training.feed`, the step in :mod:`~recsys_embed.training.step`, scores of the validation split in
:mod:`~recsys_embed.training.evaluation`, and what is saved in :mod:`~recsys_embed.training.saving`. The test split is
not read here.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recsys_embed import ranks
from recsys_embed.config import TrainingConfig
from recsys_embed.errors import ConfigError, DivergedError
from recsys_embed.files import only_writer
from recsys_embed.recommender import Recommender
from recsys_embed.stages import Step
from recsys_embed.training.compiling import Compiled, compiled
from recsys_embed.training.course import Course, Place
from recsys_embed.training.device import device_of
from recsys_embed.training.divergence import located
from recsys_embed.training.evaluation import Validation, predict
from recsys_embed.training.feed import Dataset, Feed, Labelled, shuffle_seed
from recsys_embed.training.interrupt import StopRequest, interruptible
from recsys_embed.training.optimizers import Optimizers
from recsys_embed.training.progress import Bar, bar
from recsys_embed.training.saving import Checkpoints
from recsys_embed.training.step import step

__all__ = ["Dataset", "Labelled", "TrainResult", "predict", "shuffle_seed", "step", "train"]


@dataclass(frozen=True)
class TrainResult:
    """What a training did. ``val`` are the metrics of the kept weights; ``history`` has a dict for each epoch.

    ``best_epoch`` is that of the kept weights: the last one where the last stage is of fixed length.
    ``compile_seconds`` are those of this process, and no part of ``train_seconds``.
    """

    best_epoch: int
    epochs: int
    history: list[dict[str, Any]]
    val: dict[str, float]
    samples_seen: int
    train_seconds: float
    compile_seconds: float = 0.0

    @property
    def train_samples_per_second(self) -> float:
        """Speed of the training steps, validation left out."""
        return self.samples_seen / self.train_seconds if self.train_seconds else math.nan


def train(
    model: Recommender,
    dataset: Dataset,
    config: TrainingConfig,
    *,
    checkpoints: Path | None = None,
    progress: bool = True,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    meta: dict[str, Any] | None = None,
    begin: Callable[[Recommender, Optimizers], None] | None = None,
) -> TrainResult:
    """Train through the layer's stages; on return the model holds the kept weights: the best where a stage stops early.

    Args:
        model: trained in place, on ``config.device``. With a tables optimizer it can be trained once: the layer hands
            that out once.
        dataset: only its "train" and "val" splits are read.
        config: the protocol; together with the model's seeds it decides every bit of the result on CPU.
        checkpoints: folder for checkpoints: after every epoch, every ``config.checkpoint_steps`` steps, and where the
            run is stopped. The newest valid one that is there is taken up, on whatever device it was written, and on
            CPU the final weights equal those of a run that never stopped. One run at a time writes there.
        progress: draw a bar, where stderr is a terminal.
        on_epoch: called after every epoch, once it is saved, with its line of the history.
        meta: the caller's own values (JSON), saved with every checkpoint as they are then; those of the checkpoint
            that is taken up are put in before the first step.
        begin: called with the model and its optimizers before the first step of all, the tables where they are
            trained; where a checkpoint is taken up it is not.

    Raises:
        ConfigError: the device is not there; or the model cannot be compiled.
        DivergedError: a loss, a gradient or a prediction is not finite; no table was changed by it.
        CheckpointError: the folder holds a run of another configuration, is being written, or cannot be written.
        DataError: a split without rows, or validation rows of one class.
        Interrupted: Ctrl-C or SIGTERM; says where the state is.
    """
    device = device_of(config.device)
    _check_ranks(model)
    model.precision = config.precision
    feed = Feed(dataset, config.batch_size, config.seed, device, config.shuffle_bytes)
    validation = Validation(dataset, config.batch_size, model.negative_rate)
    model.to(device)
    with contextlib.ExitStack() as stack:
        if checkpoints is not None and ranks.own() == 0:
            stack.enter_context(only_writer(checkpoints))
        stack.enter_context(settings_of(config, device))
        identity = {
            "training": {name: value for name, value in config.protocol().items() if name != "device"},
            **model.settings,
            "data": {"fingerprint": dataset.fingerprint},
        }
        saved = None if checkpoints is None else Checkpoints(checkpoints, identity, config.keep_checkpoints)
        first, last = ranks.share().of(config.batch_size)
        made = stack.enter_context(compiled(model, last - first)) if config.compile else None
        run = _Run(model, feed, validation, config, saved, {} if meta is None else meta, made)
        if not run.resume() and begin is not None:
            begin(model, run.optimizers)
        with interruptible(run.how_to_resume) as stop, bar(run.samples, shown=progress and ranks.own() == 0) as drawn:
            run.go(drawn, stop, on_epoch or (lambda line: None))
        return run.result()


class _Run:
    """A training under way: the model, its optimizers and where it stands."""

    def __init__(
        self,
        model: Recommender,
        feed: Feed,
        validation: Validation,
        config: TrainingConfig,
        checkpoints: Checkpoints | None,
        meta: dict[str, Any],
        compiled: Compiled | None,
    ) -> None:
        self._model, self._feed, self._validation, self._config = model, feed, validation, config
        self._compiled = compiled
        self._checkpoints, self._meta = checkpoints, meta
        self.optimizers = Optimizers(model, config)
        self._course = Course(model.embedding.stages, config)
        self._place = Place()
        self._best: dict[str, Tensor] = {}
        self._saved = (0, 0)  # step and epoch of the last checkpoint

    @property
    def samples(self) -> int:
        """About how many samples all steps of the run read."""
        steps = sum(self._course.epochs(stage) * len(stage.steps) for stage in self._course.stages)
        return steps * self._feed.batches_per_epoch * self._config.batch_size

    def go(self, drawn: Bar, stop: StopRequest, on_epoch: Callable[[dict[str, Any]], None]) -> None:
        """Run what is left of all stages, or until a stop is asked for."""
        while (stage := self._course.stage(self._place)) is not None:
            self._model.embedding.begin_stage(stage.name)
            while not self._course.stage_over(self._place):
                line = self._epoch(drawn, stop)
                if line is not None:
                    on_epoch(dict(line))
                if stop.agreed():
                    self._save_where_stopped()
                    return
            if stage.epochs is None:
                with self._model.embedding.tables.dealt():
                    self._model.load_state_dict(self._best)
                self._best = {}
            self._model.embedding.end_stage()
            self._course.stage_done(self._place)

    def result(self) -> TrainResult:
        """Measure the kept weights once more, by bucket."""
        self._model.eval()
        place = self._place
        return TrainResult(
            best_epoch=place.best_epoch,
            epochs=place.epoch,
            history=place.history,
            val=self._validation.report(self._model),
            samples_seen=place.samples_seen,
            train_seconds=place.train_seconds,
            compile_seconds=self._compile_seconds,
        )

    @property
    def _compile_seconds(self) -> float:
        return 0.0 if self._compiled is None else self._compiled.seconds

    # --- an epoch --------------------------------------------------------------------------------------------

    def _epoch(self, drawn: Bar, stop: StopRequest) -> dict[str, Any] | None:
        """What is left of the epoch: steps, validation, a checkpoint. Its line of the history; None where stopped."""
        place, stage = self._place, self._course.stages[self._place.stage]
        named = f"{stage.name}: " if len(self._course.stages) > 1 else ""
        drawn.begin(f"{named}epoch {place.stage_epoch + 1}/{self._course.epochs(stage)}", place.samples_seen)
        self._model.train()
        for what, batch in self._left_of_epoch():
            self._step(what, batch, drawn)
            if stop.agreed():
                return None
            every = self._config.checkpoint_steps
            if every is not None and place.step % every == 0:
                self._save()
        began = time.perf_counter()
        try:
            judged = self._validation.judge(self._model, stop.agreed)
        except DivergedError as error:
            raise DivergedError(f"validation after epoch {place.epoch + 1}: {error}") from error
        if judged is None:
            return None
        drawn.validated(judged[0])
        place.epoch_seconds += time.perf_counter() - began
        if self._course.epoch_done(place, *judged):
            with self._model.embedding.tables.dealt():
                self._best = {name: tensor.clone() for name, tensor in self._model.state_dict().items()}
        self._save()
        return place.history[-1]

    def _left_of_epoch(self) -> Iterator[tuple[Step, Labelled]]:
        """The epoch's steps from where it stands, each with its batch. The place moves when a step is done."""
        place, feed = self._place, self._feed
        batches: dict[str, Iterator[Labelled]] = {
            "train": feed.train(place.epoch + 1, place.batch),
            "val": feed.val(place.val_batches),
        }
        while (what := self._course.turn(place, feed.batches_per_epoch)) is not None:
            began = time.perf_counter()
            batch = next(batches[what.split])
            self._took(time.perf_counter() - began)
            yield what, batch

    def _step(self, what: Step, batch: Labelled, drawn: Bar) -> None:
        place, began, compiling = self._place, time.perf_counter(), self._compile_seconds
        try:
            done = step(self._model, batch, self.optimizers, what)
        except DivergedError as error:
            raise located(error, self._model, batch, place.step + 1, self._told(what)) from error
        self._course.stepped(place, done.samples, done.loss.item(), done.weight)
        self._took(time.perf_counter() - began - (self._compile_seconds - compiling))
        drawn.advance(done.samples, done.objective)

    def _took(self, seconds: float) -> None:
        self._place.train_seconds += seconds
        self._place.epoch_seconds += seconds

    def _told(self, what: Step) -> str:
        place, stages = self._place, self._course.stages
        stage = f", stage {stages[place.stage].name}" if len(stages) > 1 else ""
        if what.split == "val":
            return (
                f"validation batch {place.val_batches + 1} after batch {place.batch} of epoch {place.epoch + 1}{stage}"
            )
        return f"batch {place.batch + 1} of epoch {place.epoch + 1}{stage}"

    # --- saving and resuming ---------------------------------------------------------------------------------

    def _save(self) -> None:
        if self._checkpoints is not None:
            self._checkpoints.save(self._model, self.optimizers, self._place, self._meta)
            self._saved = (self._place.step, self._place.epoch)

    def _save_where_stopped(self) -> None:
        if self._saved != (self._place.step, self._place.epoch):
            self._save()

    def resume(self) -> bool:
        """Take up the newest valid checkpoint; whether there was one."""
        found = None if self._checkpoints is None else self._checkpoints.newest()
        if found is None:
            return False
        assert self._checkpoints is not None
        self._best = self._checkpoints.best_weights(found)
        self._place, meta = self._checkpoints.restore(found, self._model, self.optimizers)
        self._meta.update(meta)
        self._saved = (self._place.step, self._place.epoch)
        return True

    def how_to_resume(self) -> str:
        """What to tell whoever interrupted."""
        if self._checkpoints is None:
            return "interrupted; no checkpoints were asked for, so the same command starts over"
        step, epoch = self._saved
        if not step:
            return "interrupted before the first step was saved; the same command starts over"
        return (
            f"interrupted; step {step} is saved, with {epoch} of at most {self._course.all_epochs} epochs finished, in "
            f"{self._checkpoints.folder}: the same command goes on from there"
        )


def _check_ranks(model: Recommender) -> None:
    """Refuse what would be trained differently on several ranks."""
    for name, module in model.named_modules():
        alone = isinstance(module, torch.nn.modules.batchnorm._BatchNorm | torch.nn.BatchNorm1d)
        if ranks.count() > 1 and alone and not isinstance(module, torch.nn.SyncBatchNorm):
            raise ConfigError(
                f"{name!r} normalises over the samples of one rank: convert it with "
                "torch.nn.SyncBatchNorm.convert_sync_batchnorm (CUDA only), or train in one process"
            )


@contextlib.contextmanager
def settings_of(config: TrainingConfig, device: torch.device) -> Iterator[None]:
    """Threads, determinism and torch's generators for a run; the caller's are put back."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(config.seed + ranks.own())  # ranks draw different dropout
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        if config.deterministic:
            torch.use_deterministic_algorithms(True)  # loads torch's compiler, which takes seconds
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            if config.deterministic:
                torch.use_deterministic_algorithms(deterministic)
