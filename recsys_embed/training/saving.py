"""The state of a run between two steps, to the last bit, and its checkpoints."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from recsys_embed import ranks
from recsys_embed.errors import CheckpointError
from recsys_embed.recommender import Recommender
from recsys_embed.training import checkpoints as store
from recsys_embed.training.checkpoints import Checkpoint
from recsys_embed.training.course import Place
from recsys_embed.training.optimizers import Optimizers

_MODEL, _OPTIMIZER, _RNG = "model.", "optimizer.", "rng."
TABLES_OF_MODEL, STATES_OF_TABLE = "model.embedding.tables.{}", ("optimizer.tables.{}", "optimizer.rows.{}")
"""What a checkpoint calls the rows of a table; and what stands before the last dot of the names of their optimizer
state, where a tables optimizer trains them and where they are plain parameters."""

_EXTRA_STATE = "._extra_state"  # as torch names what a module's get_extra_state gives


class Checkpoints:
    """The checkpoints of one run.

    A checkpoint holds the model (tables, dense and small parameters, buffers of the strategies), the state of all
    optimizers, the steps that the layer has counted, torch's random numbers, the :class:`Place`, and a ``meta`` dict
    that belongs to the caller.

    Args:
        identity: what the run is, in plain values; those of another are refused.
        keep: how many of the newest stay.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], keep: int) -> None:
        self.folder, self._identity, self._keep = folder, identity, keep

    def save(self, model: Recommender, optimizers: Optimizers, place: Place, meta: Mapping[str, Any]) -> None:
        """Publish the state as it is; see :func:`recsys_embed.training.checkpoints.save`.

        On several ranks all of them call. Each writes its share of the rows, and what is its own: its random numbers,
        and the extra state of strategies.
        """
        with model.embedding.tables.dealt():
            state = {_MODEL + name: tensor for name, tensor in model.state_dict().items()}
            tensors, by_row, plain = optimizers.state()
        tables = {f"{_MODEL}embedding.tables.{name}" for name in model.embedding.tables.specs}
        dealt = {name: tensor for name, tensor in state.items() if name in tables or name.endswith(_EXTRA_STATE)}
        common = {name: tensor for name, tensor in state.items() if name not in dealt}
        common |= {_OPTIMIZER + name: tensor for name, tensor in tensors.items()}
        dealt |= {_OPTIMIZER + name: tensor for name, tensor in by_row.items()}
        dealt |= {_RNG + name: seen[None] for name, seen in _random_state(model.embedding.device).items()}
        values = {
            "place": dataclasses.asdict(place),
            "best_step": place.best_step,
            "layer_steps": model.embedding.steps,
            "optimizers": plain,
            "meta": dict(meta),
            "config": self._identity,
        }
        store.save(self.folder, place.step, common, values, dealt=dealt, keep=self._keep)

    def newest(self) -> Checkpoint | None:
        """The newest valid checkpoint, where there is one; the first rank checks it.

        Raises:
            CheckpointError: it is of another run; says what differs. Or ranks do not see the same folder.
        """
        found = store.newest(self.folder) if ranks.own() == 0 else None
        step = ranks.told("" if found is None else str(found.step))
        if step and ranks.own():
            with contextlib.suppress(CheckpointError):
                found = store.load_step(self.folder, int(step))
        if not ranks.everywhere((found is not None) == bool(step)):
            raise CheckpointError(f"{self.folder}: is not the same folder for all ranks", file=str(self.folder))
        differences = [] if found is None else _differences(found.meta.get("config"), self._identity)
        if found is not None and differences:
            raise CheckpointError(
                f"{found.path}: belongs to another configuration ({'; '.join(differences)}): take another output "
                "folder, or remove this one",
                file=str(found.path),
            )
        return found

    def restore(self, found: Checkpoint, model: Recommender, optimizers: Optimizers) -> tuple[Place, dict[str, Any]]:
        """Put the state back; return the place and the caller's ``meta``.

        Raises:
            CheckpointError: it does not fit the model.
        """
        with model.embedding.tables.dealt():
            take_up(found, model, optimizers)
        return Place(**found.meta["place"]), dict(found.meta["meta"])

    def best_weights(self, found: Checkpoint) -> dict[str, Tensor]:
        """The model's state after the best epoch of the stage of ``found``, its tables dealt; empty where there is no
        such epoch yet."""
        best = found.meta["best_step"]
        if best is None:
            return {}
        holder = found if best == found.step else store.load_step(self.folder, best)
        return _under(_MODEL, holder.share(ranks.share()))


def take_up(found: Checkpoint, model: Recommender, optimizers: Optimizers, *, settings: bool = True) -> None:
    """Put the state of a checkpoint, or this rank's share of it, into a model and its optimizers; with ``settings``
    those of the optimizers too.

    Raises:
        CheckpointError: it does not fit the model.
    """
    try:
        tensors = found.share(ranks.share())
        model.load_state_dict(_under(_MODEL, tensors))
        optimizers.restore(_under(_OPTIMIZER, tensors), found.meta["optimizers"], settings=settings)
        model.embedding.steps = int(found.meta["layer_steps"])
        if found.count == ranks.count():  # another number of ranks begins anew from its seeds
            _restore_random_state(_under(_RNG, tensors), model.embedding.device)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{found.path}: does not fit this model: {error}", file=str(found.path)) from error


def _random_state(device: torch.device) -> dict[str, Tensor]:
    own = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        own["cuda"] = torch.cuda.get_rng_state(device)
    return own


def _restore_random_state(states: Mapping[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(states["cpu"][0])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"][0], device)


def _differences(there: Any, here: Any, path: str = "") -> list[str]:
    if isinstance(there, dict) and isinstance(here, dict):
        found = []
        for key in sorted(there.keys() | here.keys()):
            found += _differences(there.get(key), here.get(key), f"{path}.{key}" if path else str(key))
        return found
    return [] if there == here else [f"{path} is {there!r} there and {here!r} here"]


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
