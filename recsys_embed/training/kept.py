"""The training state that is kept with a model, in its folder ``training``: what a later training goes on from.

It is the checkpoint of the weights that were kept: tables with their optimizer state, the model with its own, steps and
random numbers. Tables are there as they are trained, which the shipped form may have less of. The folder has a manifest
of its own: a model is loaded and served without looking at it.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

from recsys_embed.errors import CheckpointError
from recsys_embed.files import MANIFEST
from recsys_embed.recommender import Recommender
from recsys_embed.stages import ONE_STAGE
from recsys_embed.training import checkpoints as store
from recsys_embed.training.checkpoints import Checkpoint
from recsys_embed.training.optimizers import Optimizers
from recsys_embed.training.saving import take_up

TRAINING = "training"


def kept_of(checkpoints: Path, model: Recommender) -> Path | None:
    """The checkpoint of a finished run that has the weights which ``model`` was left with; None where it was trained in
    stages: what the last of them began from is not what a training begins with.

    Raises:
        CheckpointError: there is none any more.
    """
    if model.embedding.stages != ONE_STAGE:
        return None
    found = store.newest(checkpoints)
    if found is None:
        raise CheckpointError(f"{checkpoints}: holds no checkpoint of the training", file=str(checkpoints))
    best = found.meta["best_step"]
    return (found if best in (None, found.step) else store.load_step(checkpoints, best)).path


def keep(checkpoint: Path, model: Path) -> None:
    """Put the checkpoint into a model folder that is being written; on one file system it takes no more room."""
    shutil.copytree(checkpoint, model / TRAINING, copy_function=link_or_copy)


def link_or_copy(source: str, target: str) -> str:
    """A second name of a file that is never written again, or where that cannot be, a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


def kept(model: Path, served: Recommender | None = None) -> Checkpoint:
    """The training state of a model folder, every byte of it checked.

    Raises:
        CheckpointError: the folder has none, or it is damaged; or it is not of the model that is ``served``, as far as
            all but its tables tell.
    """
    folder = model / TRAINING
    if not (folder / MANIFEST).is_file():
        raise CheckpointError(
            f"{folder}: the training state of this model is not there, and without it no training can go on. It is "
            "written by `recsys-embed train` beside the model's files: train the model again, or bring back the folder "
            "that was left out when the model was copied",
            file=str(folder),
        )
    found = store.load(folder)
    if served is not None:
        for name, tensor in served.interaction.state_dict().items():
            other = found.one(f"model.interaction.{name}")
            if other is None or not torch.equal(other, tensor):
                raise CheckpointError(
                    f"{folder}: is the training state of another model: {name!r} differs from the one served beside it",
                    file=str(folder),
                )
    return found


def go_on_from(state: Checkpoint, model: Recommender, optimizers: Optimizers) -> None:
    """Put the state into a model whose vocabularies may have grown, and into its optimizers; their settings, learning
    rates among them, stay those of the new training.

    Raises:
        CheckpointError: the state does not fit the model.
    """
    with model.embedding.tables.growing():
        take_up(state, model, optimizers, settings=False)
