"""What contenders have in common: what they are asked, the rows, the clock, and how they answer.

A contender is a script that runs in an environment of its own, with torch, NumPy, PyArrow and its peer's packages: this
file imports nothing else, and nothing of this project. It is asked by one JSON object, its only argument, and answers
by one line of JSON, its last on stdout; validation scores go to the file that it is told.

Shapes: F = 26 features, B samples, N rows, D width of a vector, 13 numeric columns.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from importlib import metadata
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

LABEL = "label"
NUMERIC = tuple(f"I{i}" for i in range(1, 14))
CATEGORICAL = tuple(f"C{i}" for i in range(1, 27))

BOUND = 0.05
"""Tables begin uniform within this, where a contender does not insist on a law of its own."""

Vectors = Callable[[Tensor], Tensor]
"""Ids ``[F, B]`` int32 to vectors ``[B, F, D]``."""


def asked() -> SimpleNamespace:
    """What to do: ``train`` and ``val`` (Parquet files), ``cardinalities``, ``model``, ``dim``, ``batch``, ``threads``,
    ``precision``, ``tables_lr``, ``dense_lr``, ``scores`` (the file for them), ``began`` (when the process was
    started), and what the contender alone knows."""
    one = SimpleNamespace(**json.loads(sys.argv[1]))
    torch.set_num_threads(one.threads)
    torch.manual_seed(0)
    return one


class Rows:
    """The rows of a file, in its order: ``ids [F, N]`` int32, ``dense [N, 13]`` float32, ``label [N]`` float32."""

    def __init__(self, path: str) -> None:
        table = pq.read_table(path)
        self.ids = torch.from_numpy(np.stack([table[name].to_numpy() for name in CATEGORICAL]))
        self.dense = torch.from_numpy(np.stack([table[name].to_numpy() for name in NUMERIC], axis=1))
        self.label = torch.from_numpy(table[LABEL].to_numpy().copy())

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Ids ``[F, B]``, dense ``[B, 13]`` and labels ``[B]``, all rows once."""
        for start in range(0, len(self.label), size):
            part = slice(start, start + size)
            yield self.ids[:, part].contiguous(), self.dense[part], self.label[part]


class Clock:
    """When each step ended."""

    def __init__(self) -> None:
        self.ended: list[float] = []

    def tick(self, *_: Any) -> None:
        """A step is over; also a hook of an optimizer."""
        self.ended.append(time.time())


def train_by_hand(one: SimpleNamespace, clock: Clock, vectors: Vectors, update: Callable[[], None]) -> Vectors:
    """One pass over the training rows as one would write it: Adam for the dense half, in one kernel.

    Args:
        vectors: reads the tables, so that a backward pass reaches them.
        update: after a backward pass; updates the tables where that has not, and clears their gradients.

    Returns:
        The dense half.
    """
    import models

    rows = Rows(one.train)
    torch.set_float32_matmul_precision("medium" if one.precision == "medium" else "highest")
    half = models.build(one.model, one.dim, one.precision)
    adam = torch.optim.Adam(half.parameters(), lr=one.dense_lr, fused=True)
    for ids, dense, label in rows.batches(one.batch):
        logits = half(vectors(ids), dense)
        torch.nn.functional.binary_cross_entropy_with_logits(logits, label).backward()
        adam.step()
        adam.zero_grad()
        update()
        clock.tick()
    return half


def score(one: SimpleNamespace, logits: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Write the scores of the validation rows: logits of ids and numbers, batch by batch."""
    rows = Rows(one.val)
    with torch.no_grad():
        found = [logits(ids, dense).double() for ids, dense, _ in rows.batches(one.batch)]
    write_scores(one, torch.cat(found).numpy(), rows.label.numpy())


def write_scores(one: SimpleNamespace, scores: np.ndarray, labels: np.ndarray) -> None:
    """Scores and labels ``[N]`` of the validation rows, in any order."""
    np.savez(one.scores, scores=np.asarray(scores, np.float64).reshape(-1), labels=labels.reshape(-1))


def answer(clock: Clock, optimizer: str, *packages: str, **more: Any) -> None:
    """What is told: the ends of all steps, the tables' optimizer, and the versions of torch and these packages."""
    versions = {"torch": torch.__version__} | {name: metadata.version(name) for name in packages}
    print(json.dumps({"ended": clock.ended, "optimizer": optimizer, "versions": versions, **more}), flush=True)


def leave_out(why: str) -> NoReturn:
    """Tell that there is nothing to measure, and stop."""
    print(json.dumps({"left_out": why}), flush=True)
    raise SystemExit
