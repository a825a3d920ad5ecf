"""F6: a run that was stopped after any batch goes on as if it had not been.

The rows of every batch, in their order, and the logits of every step are those of a run that never stopped, to the last
bit; so are the history and the final weights. Each run is stopped twice.
"""

from __future__ import annotations

import random
import signal
from pathlib import Path

from bench.injections.artifacts import configured, fresh, schema, table
from bench.injections.runs import watch
from bench.injections.tally import Scale, Tally
from recsys_embed.config import STRATEGIES
from recsys_embed.data import prepare


def inject(scale: Scale, folder: Path) -> Tally:
    """Stops at random batches and at the ends of epochs, for a strategy at a time."""
    tally, draw = Tally(), random.Random(0)
    dataset = prepare(table(1500), schema(), folder / "data")
    names = list(STRATEGIES)
    for turn in range(scale.of(len(names), max(10, 2 * len(names)))):
        name = names[turn % len(names)]
        config = configured(
            turn,
            embedding={"strategy": name, "budget": None if name == "full" else 0.5},
            model={"dropout": 0.1},
            training={"batch_size": 64, "patience": 3, "checkpoint_steps": 7},
        )
        whole = watch(config, dataset)
        per_epoch = len(whole.seen) // 3
        first = per_epoch if turn % 3 == 0 else draw.randrange(1, len(whole.seen) - 2)
        second = draw.randrange(1, len(whole.seen) - first)
        checkpoints, seen = fresh(folder / "checkpoints"), []
        for number, after in ((signal.SIGTERM, first), (signal.SIGINT, second)):
            part = watch(config, dataset, checkpoints, signal_at=(number, after))
            tally.injected += part.interrupted
            tally.detected += part.interrupted
            seen += part.seen
        last = watch(config, dataset, checkpoints)
        seen += last.seen
        place = f"{name}, stopped after batches {first} and {first + second} of {len(whole.seen)}"
        rows = [one for one, _ in seen]
        lost = len(whole.seen) - len(set(rows) & {one for one, _ in whole.seen})
        if lost or len(seen) < len(whole.seen):
            tally.lost += 1
            tally.breach(f"{place}: {lost} batches were never read")
        elif seen != whole.seen or last.history != whole.history or last.weights() != whole.weights():
            tally.silent += 1
            same = next((n for n, (a, b) in enumerate(zip(seen, whole.seen, strict=False)) if a != b), "none")
            tally.breach(f"{place}: another run ({len(seen)} batches; the first that differs: {same})")
        else:
            tally.recovered += 2
    tally.gaps.append("on two ranks: no run on several ranks is stopped here yet")
    tally.notes.append("batches are read in the process that trains: there are no loader workers to lose")
    return tally
