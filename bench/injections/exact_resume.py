"""F6: a run that was stopped after any batch goes on as if it had not been, on one rank and on two.

The rows of every batch, in their order, and the logits of every step are those of a run that never stopped, to the last
bit; so are the history and the final weights. Each run is stopped twice; of two ranks one gets the signal.
"""

from __future__ import annotations

import importlib.util
import random
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.injections.artifacts import configured, fresh, schema, table
from bench.injections.forks import on_ranks
from bench.injections.runs import watch
from bench.injections.tally import Scale, Tally
from recsys_embed import ranks
from recsys_embed.config import STRATEGIES, Config
from recsys_embed.data import EncodedDataset, prepare


@dataclass(frozen=True)
class Part:
    """What a call of a training did on a rank: digests of its batches and logits, the history, a digest of weights."""

    seen: list[tuple[str, str]]
    interrupted: bool
    history: list[dict[str, Any]]
    weights: str


def inject(scale: Scale, folder: Path) -> Tally:
    """Stops at random batches and at the ends of epochs, for a strategy at a time."""
    tally, draw = Tally(), random.Random(0)
    prepare(table(1500), schema(), folder / "data")
    names = list(STRATEGIES)
    for turn in range(scale.of(len(names), max(10, 2 * len(names)))):
        _stopped_twice(folder, names[turn % len(names)], turn, 1, draw, tally)
    if importlib.util.find_spec("torchrec") is None:
        tally.gaps.append("on two ranks: TorchRec, which their tables need, is not installed")
    else:
        for turn, name in enumerate(names if scale.name == "full" else ["cafe"]):
            _stopped_twice(folder, name, turn, 2, draw, tally)
    tally.notes.append("batches are read in the process that trains: there are no loader workers to lose")
    return tally


def _stopped_twice(folder: Path, name: str, turn: int, count: int, draw: random.Random, tally: Tally) -> None:
    kind = "auto" if name == "robe" else ("row_wise", "table_wise")[turn // 2 % 2]  # one float wide: not to be spread
    config = configured(
        turn,
        embedding={"strategy": name, "budget": None if name == "full" else 0.5},
        model={"dropout": 0.1, "dim": (8, 6)[turn % 2]},
        training={"batch_size": 64, "patience": 3, "checkpoint_steps": 7},
        sharding={"placement": {"*": kind}, "replicate_below": 0},
    )
    place = f"{name} on {count} rank{'s' * (count > 1)}"

    def run(checkpoints: Path | None, number: int = 0, after: int = 0) -> list[Part]:
        at = (number, after, draw.randrange(count)) if number else None
        if count == 1:
            return [_part(config, folder / "data", checkpoints, at)]
        outcomes = on_ranks(count, _part, config, folder / "data", checkpoints, at)
        if told := [one.text for one in outcomes if one.value is None]:
            raise RuntimeError(f"{place}: {told[0]}")
        return [one.value for one in outcomes]

    whole = run(None)
    batches = len(whole[0].seen)
    first = batches // 3 if turn % 3 == 0 else draw.randrange(1, batches - 2)  # of three epochs
    second = draw.randrange(1, batches - first)
    checkpoints = fresh(folder / "checkpoints")
    parts = [run(checkpoints, signal.SIGTERM, first), run(checkpoints, signal.SIGINT, second), run(checkpoints)]
    fired = sum(part[0].interrupted for part in parts)
    tally.injected += fired
    tally.detected += fired
    place += f", stopped after batches {first} and {first + second} of {batches}"
    for rank, expected in enumerate(whole):
        seen = [one for part in parts for one in part[rank].seen]
        last = parts[-1][rank]
        lost = len(expected.seen) - len({rows for rows, _ in seen} & {rows for rows, _ in expected.seen})
        if lost or len(seen) < batches:
            tally.lost += 1
            tally.breach(f"{place}: {lost} batches were never read")
            return
        if (seen, last.history, last.weights) != (expected.seen, expected.history, expected.weights):
            tally.silent += 1
            same = next((n for n, (a, b) in enumerate(zip(seen, expected.seen, strict=False)) if a != b), "none")
            tally.breach(f"{place}: another run ({len(seen)} batches; the first that differs: {same})")
            return
    tally.recovered += fired


def _part(config: Config, data: Path, checkpoints: Path | None, at: tuple[int, int, int] | None) -> Part:
    """Train, or go on, on this rank; ``at``: the signal, after how many batches, and which rank gets it."""
    signal_at = at[:2] if at is not None and at[2] == ranks.own() else None
    watched = watch(config, EncodedDataset.open(data), checkpoints, signal_at=signal_at)
    return Part(watched.seen, watched.interrupted, watched.history, watched.weights())
