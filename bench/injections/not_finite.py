"""F8: a NaN in the loss, in a gradient, in a dense cell or in an embedding row stops the run at that very step.

The error names the step and, where the fault has one, the feature or the column; every checkpoint is finite.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.injections.artifacts import configured, fresh, schema, table
from bench.injections.runs import watch
from bench.injections.tally import Scale, Tally
from recsys_embed.data import prepare
from recsys_embed.errors import DivergedError
from recsys_embed.recommender import Recommender
from recsys_embed.training import checkpoints

FAULTS = {"loss": None, "gradient": None, "dense cell": "dense column", "embedding row": "'user'"}
"""Each fault, and what its message has to name besides step and batch."""


def inject(scale: Scale, folder: Path) -> Tally:
    """Each kind at random steps, with NaN and infinities in turn."""
    tally, draw = Tally(), random.Random(0)
    dataset = prepare(table(1200), schema(), folder / "data")
    for kind, named in FAULTS.items():
        for turn in range(scale.of(3, 10)):
            config = configured(
                turn,
                embedding={"strategy": "full", "budget": None},
                training={"batch_size": 64, "checkpoint_steps": 2, "patience": 3},
            )
            at, bad = draw.randrange(3, 30), (float("nan"), float("inf"), float("-inf"))[turn % 3]
            home, place = fresh(folder / "checkpoints"), f"{kind} = {bad} at step {at}"
            fired: list[int] = []
            hooks = _hooks(kind, at, bad if kind != "loss" or turn % 3 == 0 else float("nan"), fired)
            try:
                watch(config, dataset, home, **hooks)
            except DivergedError as error:
                tally.detected += 1
                text = str(error)
                if error.step != at or "batch" not in text:
                    tally.breach(f"{place}: the error tells step {error.step}: {text}")
                if named is not None and named not in text:
                    tally.breach(f"{place}: the error does not name {named}: {text}")
            except Exception as error:
                tally.breach(f"{place}: {type(error).__name__} is not ours: {error}")
            else:
                tally.silent += bool(fired)
                tally.breach(f"{place}: the training went on")
            tally.injected += bool(fired)
            _check(home, place, tally)
    return tally


def _check(home: Path, place: str, tally: Tally) -> None:
    found = checkpoints.newest(home)
    finite = found is not None and all(
        bool(torch.isfinite(tensor).all()) for tensor in found.tensors.values() if tensor.is_floating_point()
    )
    tally.recovered += finite
    tally.lost += found is None
    if found is not None and not finite:
        tally.silent += 1
        tally.breach(f"{place}: what is not finite is on the disk")


def _hooks(kind: str, at: int, bad: float, fired: list[int]) -> dict[str, Any]:
    def before(step: int, model: Recommender, batch: Any) -> None:
        if step != at:
            return
        if kind == "dense cell":
            batch.dense[0, 0] = bad
            fired.append(step)
        if kind == "embedding row":
            tables = model.embedding.tables
            name = next(name for name in tables.specs if "user" in name)
            weights = tables.get(name).detach().clone()
            values = batch.ids.values
            row = int(values[0] if values.dim() == 1 else values[0, 0])  # user is the first feature
            weights[row, 0] = bad
            tables.put(name, weights)
            fired.append(step)

    def after(step: int, logits: Tensor) -> Tensor | None:
        if step != at or kind not in ("loss", "gradient"):
            return None
        fired.append(step)
        if kind == "loss":
            return logits * bad
        logits.register_hook(lambda gradient: gradient * bad)
        return None

    return {"before": before, "after": after}
