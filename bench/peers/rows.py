"""Encoded rows in the shape of Criteo's, whose labels can be learnt: what every contender trains on.

13 numbers, normal. 26 ids, ranked: id 0 is the most frequent, by Zipf's law with exponent 1.05 over the cardinalities
of the Kaggle file, capped so that they add up to a size. The logit is a bias, an effect of every id, products of two
factors for neighbouring features, and slopes; rare ids, which few rows could teach, have smaller effects. Training and
validation rows are of one law, in no order.

Shapes: n rows of a table, N samples.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bench.harness.criteo import CARDINALITIES, CATEGORICAL, EXPONENT, NUMERIC, zipf

VERSION = 1
SIZES = {"S": 30_000, "M": 1_000_000, "L": 10_000_000}
"""Rows of all tables."""

BIAS, MAIN, PAIR, SLOPE = -1.0, 0.25, 0.2, 0.15
RANK = 2
LEARNABLE = 2e-4
"""An id drawn more rarely than this has a smaller effect."""


@dataclass(frozen=True)
class Rows:
    """Where they lie; the cardinalities; the AUC that the true probabilities reach on the validation rows."""

    train: str
    val: str
    cardinalities: list[int]
    best_auc: float


def capped(total: int) -> list[int]:
    """Criteo's cardinalities, none above a cap, so that they add up to ``total`` or little less."""
    low, high = 1, max(CARDINALITIES)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if sum(min(one, middle) for one in CARDINALITIES) <= total else (low, middle - 1)
    return [min(one, low) for one in CARDINALITIES]


def make(folder: Path, total: int, train: int, val: int) -> Rows:
    """Rows over tables of ``total`` rows; found again where they have been made."""
    from recsys_embed.training.metrics import auc

    home = folder / f"rows-v{VERSION}-{total}-{train}-{val}"
    known = home / "rows.json"
    if known.exists():
        return Rows(**json.loads(known.read_text(encoding="utf-8")))
    home.mkdir(parents=True, exist_ok=True)
    draw, count, sizes = np.random.default_rng([11, total]), train + val, capped(total)
    numbers = draw.standard_normal((len(NUMERIC), count), dtype=np.float32)
    logit = BIAS + SLOPE * (draw.choice([-1.0, 1.0], len(NUMERIC)) @ numbers)
    columns: dict[str, np.ndarray] = dict(zip(NUMERIC, numbers, strict=True))
    before = np.zeros((RANK, count), np.float32)
    for place, (name, size) in enumerate(zip(CATEGORICAL, sizes, strict=True)):
        ids = zipf(draw, size, count)
        columns[name] = ids.astype(np.int32)
        effects = standard(draw, size, 1 + RANK)
        logit += MAIN * effects[0, ids]
        if place % 2:
            logit += PAIR / np.sqrt(RANK) * (before * effects[1:, ids]).sum(0)
        before = effects[1:, ids]
    chance = 1 / (1 + np.exp(-logit))
    columns["label"] = (draw.random(count) < chance).astype(np.float32)
    for name, part in (("train", slice(train)), ("val", slice(train, None))):
        table = pa.table({key: column[part] for key, column in columns.items()})
        pq.write_table(table, home / f"{name}.parquet", row_group_size=65_536)
    best = auc(columns["label"][train:], chance[train:])
    made = Rows(str(home / "train.parquet"), str(home / "val.parquet"), sizes, best)
    partial = known.with_suffix(".partial")
    partial.write_text(json.dumps(asdict(made)), encoding="utf-8")
    partial.replace(known)
    return made


def standard(draw: np.random.Generator, size: int, count: int) -> np.ndarray:
    """Effects ``[count, n]`` float32 of the ids of a table: mean 0 and variance 1 under the law they are drawn by."""
    edges = np.minimum(np.arange(1, size + 2), size).astype(np.float64) ** (1 - EXPONENT)
    chance = np.diff(edges) / (edges[-1] - edges[0])
    drawn = draw.standard_normal((count, size), dtype=np.float32)
    drawn *= np.sqrt(chance / (chance + LEARNABLE)).astype(np.float32)
    drawn -= (drawn @ chance)[:, None].astype(np.float32)
    spread = np.sqrt(np.square(drawn) @ chance)
    return drawn / np.maximum(spread, 1e-9)[:, None].astype(np.float32)
