"""Samples a second that each strategy trains, beside full tables, and the bytes that it takes in training and serving.

    python bench/training_throughput.py [--quick] [--json FILE]

The trainer's own steps of a DCN-v2 with vectors of width 16, row-wise Adagrad and Adam, on encoded rows in the shape of
Criteo's: 13 numbers and 26 ids by Zipf's law. Every strategy keeps a tenth of the bytes of full tables. ``stage`` is
what is timed of a strategy that trains in stages: each of them, from initial weights and with nothing learnt before. A
step of DNIS's search is one by a training batch and one by a validation batch, and the samples of both count.

All are measured in one process. In each turn the same number of steps is taken of full tables and, right after, of
each of the others; ``of full`` is the median of the ratios of such neighbours. The same steps are taken before,
untimed: full tables, which are measured most often, would else find more of their rows in the processor's caches than
the others do. Medians and ranges over turns. Bytes are those of the ledger: ``training`` rows and optimizer state,
``serving`` what is shipped.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.harness.command import command
from bench.harness.setting import facts, heading

BATCHES = 10
"""Different ones; and steps of a turn, as often as CAFE brings its sketch up to date."""

FULL = "full"


def main() -> None:
    command(__doc__, "30,000 rows instead of a million, small batches, three turns", lambda q: run(quick=q), table)


def run(*, quick: bool) -> dict[str, Any]:
    from bench.harness.strategies import KEPT, MODEL, OPTIMIZER
    from bench.peers import rows
    from bench.peers.contenders.common import CATEGORICAL, Rows
    from recsys_embed.data.batches import Batch
    from recsys_embed.features import Feature
    from recsys_embed.ids import Ids

    size, batch, turns = ("S", 256, 3) if quick else ("M", 4096, 5)
    with tempfile.TemporaryDirectory() as home:
        made = rows.make(Path(home), rows.SIZES[size], BATCHES * batch, batch)
        found = Rows(made.train)
    batches = [Batch(Ids(ids, len(ids)), dense, label) for ids, dense, label in found.batches(batch)]
    features = [Feature(name, count) for name, count in zip(CATEGORICAL, made.cardinalities, strict=True)]
    return {
        **facts("numpy", "fbgemm-gpu-cpu"),
        "setting": {
            "rows": sum(made.cardinalities),
            "batch": batch,
            "turns": turns,
            "steps": BATCHES,
            "kept": KEPT,
            "model": MODEL,
            "optimizer": OPTIMIZER,
        },
        "cells": compare(features, batches, turns),
    }


def compare(features: Sequence[Any], batches: Sequence[Any], turns: int) -> list[dict[str, Any]]:
    """A line for every strategy and stage of its training, full tables first."""
    from bench.harness.strategies import strategies

    trainings = [one for name, embedding in strategies().items() for one in _stages(name, embedding, features, batches)]
    full = next(one for one in trainings if one.name == FULL)
    seen: list[list[tuple[float, float]]] = [[] for _ in trainings]
    for one in trainings:
        one.rate()  # memory is new, and threads begin
    for _ in range(turns):
        for place, one in enumerate(trainings):
            base = full.rate()
            seen[place].append((base, base if one is full else one.rate()))
    return [{**one.about, **summary(rates)} for one, rates in zip(trainings, seen, strict=True)]


class Training:
    """A strategy's training that stands at the beginning of a stage."""

    def __init__(
        self, name: str, embedding: Mapping[str, Any], place: int, features: Sequence[Any], batches: Sequence[Any]
    ) -> None:
        from bench.harness.strategies import config_of, model_of
        from recsys_embed.training.optimizers import Optimizers

        config = config_of(embedding, len(batches[0].label))
        self.name, self._model = name, model_of(config, features, batches[0].dense.shape[1], place)
        self._optimizers = Optimizers(self._model, config.training)
        layer = self._model.embedding
        self.stages, self._steps, self._batches = layer.stages, layer.stages[place].steps, batches
        ledger = layer.ledger()
        self.about = {
            "strategy": name,
            "stage": layer.stages[place].name if len(layer.stages) > 1 else "",
            "tables": type(layer.tables).__name__,
            "train_bytes": int(ledger["train_bytes"].sum()),
            "serve_bytes": int(ledger["serve_bytes"].sum()),
        }

    def rate(self) -> float:
        """Samples a second of one pass over the batches, after another one; a turn of several steps reads a batch in
        each."""
        self._pass()
        samples, began = sum(len(batch.label) for batch in self._batches), time.perf_counter()
        self._pass()
        return samples / (time.perf_counter() - began)

    def _pass(self) -> None:
        from recsys_embed.training.step import step

        self._model.train()
        for batch, what in zip(self._batches, islice(cycle(self._steps), len(self._batches)), strict=True):
            step(self._model, batch, self._optimizers, what)


def _stages(name: str, embedding: Mapping[str, Any], features: Sequence[Any], batches: Sequence[Any]) -> list[Training]:
    first = Training(name, embedding, 0, features, batches)
    return [first, *(Training(name, embedding, place, features, batches) for place in range(1, len(first.stages)))]


def summary(rates: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Medians and ranges of pairs of rates: of full tables, and of what is measured."""
    own, ratios = [rate for _, rate in rates], [rate / base for base, rate in rates]
    return {
        "samples_per_second": round(statistics.median(own)),
        "range": [round(min(own)), round(max(own))],
        "of_full": round(statistics.median(ratios), 3),
        "of_full_range": [round(min(ratios), 3), round(max(ratios), 3)],
    }


def table(result: Mapping[str, Any]) -> str:
    lines = [*heading(result), ""]
    lines.append(
        f"{'strategy':<17}{'stage':<9}{'samples/s':>11}{'range':>18}{'of full':>9}{'range':>13}"
        f"{'training B':>14}{'serving B':>13}"
    )
    for one in result["cells"]:
        rates, ratios = (
            f"{low:,}–{high:,}" if high >= 100 else f"{low:.2f}–{high:.2f}"
            for low, high in (one["range"], one["of_full_range"])
        )
        lines.append(
            f"{one['strategy']:<17}{one['stage']:<9}{one['samples_per_second']:>11,}{rates:>18}{one['of_full']:>9.2f}"
            f"{ratios:>13}{one['train_bytes']:>14,}{one['serve_bytes']:>13,}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
