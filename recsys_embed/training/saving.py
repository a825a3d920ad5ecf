"""The state of a run between two steps, to the last bit, and its checkpoints."""

from __future__ import annotations

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

        On several ranks all of them call, and the first writes: logical rows, so that any number of ranks can go on.
        """
        tensors, plain = optimizers.state()
        named = {_MODEL + name: tensor for name, tensor in model.state_dict().items()}
        named |= {_OPTIMIZER + name: tensor for name, tensor in tensors.items()}
        named |= {_RNG + name: tensor for name, tensor in _random_state(model.embedding.device).items()}
        values = {
            "place": dataclasses.asdict(place),
            "best_step": place.best_step,
            "layer_steps": model.embedding.steps,
            "optimizers": plain,
            "meta": dict(meta),
            "config": self._identity,
        }
        refused: CheckpointError | None = None
        if ranks.own() == 0:
            try:
                store.save(self.folder, place.step, named, values, keep=self._keep)
            except CheckpointError as error:
                refused = error
        if int(ranks.largest(torch.tensor([refused is not None], device=ranks.device()).int())):
            raise refused or CheckpointError(f"{self.folder}: the first rank could not write it", file=str(self.folder))

    def newest(self) -> Checkpoint | None:
        """The newest valid checkpoint, where there is one.

        Raises:
            CheckpointError: it is of another run; says what differs.
        """
        ranks.wait()
        found = store.newest(self.folder)
        step = torch.tensor([-1 if found is None else found.step], device=ranks.device())
        if ranks.gathered(step).unique().numel() > 1:
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
        try:
            place = Place(**found.meta["place"])
            model.load_state_dict(_under(_MODEL, found.tensors))
            optimizers.restore(_under(_OPTIMIZER, found.tensors), found.meta["optimizers"])
            model.embedding.steps = int(found.meta["layer_steps"])
            _restore_random_state(_under(_RNG, found.tensors), model.embedding.device)
            return place, dict(found.meta["meta"])
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{found.path}: does not fit this model: {error}", file=str(found.path)) from error

    def best_weights(self, found: Checkpoint) -> dict[str, Tensor]:
        """The model's state after the best epoch of the stage of ``found``; empty where there is none yet."""
        best = found.meta["best_step"]
        if best is None:
            return {}
        holder = found if best == found.step else store.load_step(self.folder, best)
        return _under(_MODEL, holder.tensors)


def _random_state(device: torch.device) -> dict[str, Tensor]:
    """Every rank's, by its number; a single process's without one."""
    own = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        own["cuda"] = torch.cuda.get_rng_state(device)
    if ranks.count() == 1:
        return own
    every = {kind: ranks.gathered(state[None].to(ranks.device())).cpu() for kind, state in own.items()}
    return {f"{kind}.{rank}": state for kind, states in every.items() for rank, state in enumerate(states)}


def _restore_random_state(states: Mapping[str, Tensor], device: torch.device) -> None:
    """Where as many ranks go on as there were; another number begins anew from its seeds."""
    alone, count = ranks.count() == 1, sum(name.startswith("cpu") for name in states)
    if count != ranks.count() or ("cpu" in states) != alone:
        return
    suffix = "" if alone else f".{ranks.own()}"
    torch.set_rng_state(states["cpu" + suffix])
    if device.type == "cuda" and "cuda" + suffix in states:
        torch.cuda.set_rng_state(states["cuda" + suffix], device)


def _differences(there: Any, here: Any, path: str = "") -> list[str]:
    if isinstance(there, dict) and isinstance(here, dict):
        found = []
        for key in sorted(there.keys() | here.keys()):
            found += _differences(there.get(key), here.get(key), f"{path}.{key}" if path else str(key))
        return found
    return [] if there == here else [f"{path} is {there!r} there and {here!r} here"]


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
