"""The one trainer: early stopping on validation, the best weights kept, one checkpoint per epoch.

Shapes: B samples of a batch, F features, D width of a vector.

The life of a step is that of the embedding layer: forward, finite check, backward, the optimizers, ``after_step``.
The test split is not read here.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from recsys_embed.config import TrainingConfig
from recsys_embed.errors import CheckpointError, DataError, DivergedError
from recsys_embed.recommender import Inputs, Recommender
from recsys_embed.training import checkpoints as store
from recsys_embed.training.interrupt import interruptible
from recsys_embed.training.metrics import auc, evaluate, logloss
from recsys_embed.training.optimizers import Optimizers
from recsys_embed.training.progress import Bar, bar

_EVALUATION_BATCH = 8192


class Labelled(Inputs, Protocol):
    """A batch with its labels."""

    @property
    def label(self) -> Tensor:
        """``[B]`` float32, 0 or 1."""


class Dataset(Protocol):
    """What the trainer reads of an encoded data set; a split is "train", "val" or "test"."""

    @property
    def fingerprint(self) -> str:
        """Identifies the contents."""

    def rows(self, split: str) -> int:
        """How many rows a split has."""

    def labels(self, split: str) -> NDArray[np.float32]:
        """``[rows]``, 0 or 1."""

    def buckets(self, split: str) -> NDArray[np.int8]:
        """``[rows]``: 0 head, 1 torso, 2 tail, 3 unseen."""

    def batches(self, split: str, batch_size: int, *, shuffle_seed: int | None = None) -> Iterator[Labelled]:
        """All rows once, in file order or shuffled."""


@dataclass(frozen=True)
class TrainResult:
    """What a training did. ``val`` are the metrics of the best weights; ``history`` has a dict for each epoch."""

    best_epoch: int
    epochs: int
    history: list[dict[str, Any]]
    val: dict[str, float]
    samples_seen: int
    train_seconds: float

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
) -> TrainResult:
    """Train until validation stops improving; on return the model holds the weights of the best epoch.

    Args:
        model: trained in place. With a tables optimizer it can be trained once: the layer hands that out once.
        dataset: only its "train" and "val" splits are read.
        config: the protocol; together with the model's seeds it decides every bit of the result on CPU.
        checkpoints: folder for one checkpoint per epoch. One that is there is taken up after its last epoch, and
            the final weights equal those of a run that never stopped.
        progress: draw a bar, where stderr is a terminal.
        on_epoch: called after every epoch with its line of the history.

    Raises:
        DivergedError: a loss, a gradient or a prediction is not finite; no table was changed by it.
        CheckpointError: the folder holds a run of another configuration, or cannot be written.
        DataError: a split without rows, or validation rows of one class.
        Interrupted: Ctrl-C or SIGTERM; says where the state is.
    """
    _check(dataset)
    with _settings(config):
        run = _Run(model, dataset, config, checkpoints)
        run.resume()
        total = config.epochs * dataset.rows("train")
        with interruptible(run.how_to_resume), bar(total, shown=progress) as drawn:
            while not run.finished:
                line = run.run_epoch(drawn)
                if on_epoch is not None:
                    on_epoch(dict(line))
        return run.result()


def predict(model: Recommender, dataset: Dataset, split: str, batch_size: int) -> NDArray[np.float64]:
    """Probabilities ``[rows]`` of a split, in the order of its rows."""
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            logits = [model(batch) for batch in dataset.batches(split, batch_size)]
    finally:
        model.train(training)
    if not logits:
        return np.zeros(0)
    scores: NDArray[np.float64] = torch.sigmoid(torch.cat(logits).double()).numpy()
    return scores


@dataclass
class _Progress:
    """What a run knows besides weights: plain values, saved as they are."""

    epoch: int = 0
    best_epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    samples_seen: int = 0
    train_seconds: float = 0.0


class _Run:
    """A training under way: the model, its optimizers and what has happened so far."""

    def __init__(self, model: Recommender, dataset: Dataset, config: TrainingConfig, checkpoints: Path | None) -> None:
        self._model, self._dataset, self._config, self._folder = model, dataset, config, checkpoints
        self._optimizers = Optimizers(model, config)
        self._so_far = _Progress()
        self._best: dict[str, Tensor] = {}
        self._saved = 0  # the last epoch on disk
        self._labels = dataset.labels("val")
        self._identity = {
            "training": config.model_dump(mode="json"),
            **model.settings,
            "data": {"fingerprint": dataset.fingerprint},
        }

    @property
    def finished(self) -> bool:
        """Out of epochs, or of patience."""
        so_far = self._so_far
        return so_far.epoch >= self._config.epochs or so_far.epoch - so_far.best_epoch >= self._config.patience

    def run_epoch(self, drawn: Bar) -> dict[str, Any]:
        """Train on every row once, validate, keep the best, save."""
        so_far, began = self._so_far, time.perf_counter()
        epoch = so_far.epoch + 1
        drawn.begin(f"epoch {epoch}/{self._config.epochs}", so_far.samples_seen)
        loss = self._train_once(epoch, drawn)
        so_far.train_seconds += time.perf_counter() - began
        so_far.samples_seen += self._dataset.rows("train")
        val_auc, val_logloss = self._validate(epoch)
        drawn.validated(val_auc)
        line = {"epoch": epoch, "train_loss": loss, "val_auc": val_auc, "val_logloss": val_logloss}
        so_far.epoch = epoch
        so_far.history.append({**line, "seconds": time.perf_counter() - began})
        if self._improved():
            so_far.best_epoch = epoch
            self._best = {name: tensor.clone() for name, tensor in self._model.state_dict().items()}
        self._save()
        return so_far.history[-1]

    def _train_once(self, epoch: int, drawn: Bar) -> float:
        """One pass over the shuffled training rows; the mean logloss on the way."""
        self._model.train()
        total = torch.zeros((), dtype=torch.float64)
        seed = shuffle_seed(self._config.seed, epoch)
        batches = self._dataset.batches("train", self._config.batch_size, shuffle_seed=seed)
        for number, batch in enumerate(batches, start=1):
            samples = batch.label.shape[0]
            try:
                loss, objective = step(self._model, batch, self._optimizers)
            except DivergedError as error:
                raise _located(error, self._model, batch, epoch, number, self._step_of(epoch, number)) from error
            total.add_(loss, alpha=samples)
            drawn.advance(samples, objective)
        return total.item() / self._dataset.rows("train")

    def _step_of(self, epoch: int, number: int) -> int:
        return (epoch - 1) * math.ceil(self._dataset.rows("train") / self._config.batch_size) + number

    def _validate(self, epoch: int) -> tuple[float, float]:
        scores = predict(self._model, self._dataset, "val", max(self._config.batch_size, _EVALUATION_BATCH))
        try:
            return auc(self._labels, scores), logloss(self._labels, scores)
        except DivergedError as error:
            raise DivergedError(f"validation after epoch {epoch}: {error}") from error

    def _improved(self) -> bool:
        *earlier, last = self._so_far.history
        if self._config.monitor == "auc":
            return all(last["val_auc"] > line["val_auc"] for line in earlier)
        return all(last["val_logloss"] < line["val_logloss"] for line in earlier)

    def result(self) -> TrainResult:
        """Put the best weights back and measure them once more, by bucket."""
        self._model.load_state_dict(self._best)
        self._model.eval()
        scores = predict(self._model, self._dataset, "val", max(self._config.batch_size, _EVALUATION_BATCH))
        so_far = self._so_far
        return TrainResult(
            best_epoch=so_far.best_epoch,
            epochs=so_far.epoch,
            history=so_far.history,
            val=evaluate(self._labels, scores, self._dataset.buckets("val")),
            samples_seen=so_far.samples_seen,
            train_seconds=so_far.train_seconds,
        )

    # --- saving and resuming ---------------------------------------------------------------------------------

    def _save(self) -> None:
        if self._folder is None:
            return
        tensors, optimizers = self._optimizers.state()
        named = {f"model.{name}": tensor for name, tensor in self._model.state_dict().items()}
        named |= {f"optimizer.{name}": tensor for name, tensor in tensors.items()}
        meta = {
            **vars(self._so_far),
            "optimizers": optimizers,
            "rng": torch.get_rng_state().tolist(),
            "config": self._identity,
        }
        store.save(self._folder, self._so_far.epoch, named, meta)
        self._saved = self._so_far.epoch

    def resume(self) -> None:
        """Take up the newest valid checkpoint, where there is one."""
        found = None if self._folder is None else store.newest(self._folder)
        if found is None:
            return
        assert self._folder is not None
        differences = _differences(found.meta["config"], self._identity)
        if differences:
            raise CheckpointError(
                f"{found.path}: belongs to another configuration ({'; '.join(differences)}): take another output "
                "folder, or remove this one",
                file=str(found.path),
            )
        best = found
        if found.meta["best_epoch"] != found.epoch:
            best = store.load_epoch(self._folder, found.meta["best_epoch"])
        self._best = _under("model.", best.tensors)
        try:
            self._model.load_state_dict(_under("model.", found.tensors))
            self._optimizers.restore(_under("optimizer.", found.tensors), found.meta["optimizers"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise CheckpointError(f"{found.path}: does not fit this model: {error}", file=str(found.path)) from error
        torch.set_rng_state(torch.tensor(found.meta["rng"], dtype=torch.uint8))
        self._so_far = _Progress(**{name: found.meta[name] for name in vars(self._so_far)})
        self._saved = found.epoch

    def how_to_resume(self) -> str:
        """What to tell whoever interrupted."""
        if self._folder is None:
            return "interrupted; no checkpoints were asked for, so the same command starts over"
        if not self._saved:
            return "interrupted before the first epoch was finished; the same command starts over"
        return (
            f"interrupted; epoch {self._saved} of {self._config.epochs} is saved in {self._folder}: "
            "the same command goes on from there"
        )


def step(model: Recommender, batch: Labelled, optimizers: Optimizers) -> tuple[Tensor, float]:
    """One update. Returns the mean logloss, a scalar tensor, and what was minimised: that and the penalty.

    Raises:
        DivergedError: what would be minimised is not finite, or a gradient is not; no table has changed.
    """
    loss = functional.binary_cross_entropy_with_logits(model(batch), batch.label)
    objective = loss + model.embedding.penalty()
    value = objective.item()
    if not math.isfinite(value):
        optimizers.zero_grad()
        raise DivergedError(f"the loss is {value}")
    torch.autograd.backward(objective)
    optimizers.step()
    model.embedding.after_step()
    return loss.detach(), value


def shuffle_seed(seed: int, epoch: int) -> int:
    """The seed of an epoch's shuffle: a run that resumes at any epoch sees the order of one that never stopped."""
    return int(np.random.SeedSequence([seed % 2**64, epoch]).generate_state(1, np.uint64)[0] >> 1)


# --- what went wrong -----------------------------------------------------------------------------------------


def _located(
    error: DivergedError, model: Recommender, batch: Labelled, epoch: int, number: int, step: int
) -> DivergedError:
    """The error with its step, its batch and, where that can be told, the first feature that is not finite."""
    message, feature = f"step {step} (batch {number} of epoch {epoch}): {error}", error.feature
    if feature is None:
        feature, where = _first_bad_input(model, batch)
        message = f"{message}{where}; no row was changed"
    return DivergedError(message, step=step, feature=feature)


def _first_bad_input(model: Recommender, batch: Labelled) -> tuple[str | None, str]:
    """The feature and samples whose vectors, or else whose vectors' gradients, are not finite."""
    if not bool(torch.isfinite(batch.dense).all()):
        sample, column = torch.isfinite(batch.dense).logical_not().nonzero()[0].tolist()
        return None, f"; dense column {column} of sample {sample} is {batch.dense[sample, column].item()}"
    vectors = model.embedding(batch.ids)
    loss = functional.binary_cross_entropy_with_logits(model.interaction(vectors, batch.dense), batch.label)
    gradient = torch.autograd.grad(loss, vectors)[0] if vectors.requires_grad else vectors
    for what, tensor in (("vectors", vectors), ("gradients", gradient)):
        bad = torch.isfinite(tensor).all(dim=2).logical_not()  # [B, F]
        if bool(bad.any()):
            feature = int(bad.any(dim=0).nonzero()[0])
            name = model.embedding.features[feature].name
            samples = bad[:, feature].nonzero().flatten().tolist()
            shown = ", ".join(map(str, samples[:5])) + (", …" if len(samples) > 5 else "")
            return name, f"; the {what} of feature {name!r} are not finite in samples {shown}"
    return None, "; the vectors of all features are finite"


def _differences(there: Any, here: Any, path: str = "") -> list[str]:
    if isinstance(there, dict) and isinstance(here, dict):
        found = []
        for key in sorted(there.keys() | here.keys()):
            found += _differences(there.get(key), here.get(key), f"{path}.{key}" if path else str(key))
        return found
    return [] if there == here else [f"{path} is {there!r} there and {here!r} here"]


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _check(dataset: Dataset) -> None:
    for split in ("train", "val"):
        if not dataset.rows(split):
            raise DataError(f"the {split} split has no rows")
    labels = dataset.labels("val")
    if labels.min() == labels.max():
        raise DataError(f"every label of the val split is {labels[0]:g}: nothing can be ranked")


@contextlib.contextmanager
def _settings(config: TrainingConfig) -> Iterator[None]:
    """Threads, determinism and torch's generator for a run; the caller's are put back."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        if config.deterministic:
            torch.use_deterministic_algorithms(True)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.use_deterministic_algorithms(deterministic)
