"""One embedding step by several hands, without a layer: our tables, FBGEMM as shipped and on two threads, plain torch.

The step reads single-valued features ``[F, B]``, one table each, into ``[B, F, D]``, and updates the rows from a
gradient by row-wise Adagrad.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor

from bench.harness.draws import scattered, zipf_ranks
from bench.harness.limits import shortest_step
from recsys_embed.embeddings.base import TableSpec
from recsys_embed.tables.base import Group, Request, Tables, UpdateRule
from recsys_embed.tables.native import NativeTables
from recsys_embed.tables.reference import ReferenceTables

RULE, LR = "rowwise_adagrad", 0.01
BATCHES, WARM_UP = 4, 3

Step = Callable[[Tensor], tuple[float, float]]
"""Seconds of the forward pass and of the update, for row numbers ``[F, B]``."""


def measure(features: int, rows: int, dim: int, batch: int, repeats: int) -> dict[str, Any]:
    """Medians in milliseconds, all of them in turn within one process, and how many times as long each takes as ours:
    the median of the ratios turn by turn, with the lowest and the highest."""
    generator = torch.Generator().manual_seed(0)
    batches = [scattered(zipf_ranks(features, rows, batch, generator), rows).to(torch.int32) for _ in range(BATCHES)]
    gradient = torch.randn(batch, features, dim, generator=generator) * 0.01
    ours = NativeTables(_plain(features, rows, dim), UpdateRule(RULE))
    torch_tables = _plain(features, rows, dim)
    torch_tables.train_by(UpdateRule(RULE))
    half = features // 2
    steps: dict[str, Step] = {
        "native": _tables(ours, gradient),
        "fbgemm": _by_fbgemm([features], rows, gradient),
        "fbgemm_two_threads": _by_fbgemm([half, features - half], rows, gradient),
        "torch": _tables(torch_tables, gradient),
    }
    for turn in range(WARM_UP):
        for step in steps.values():
            step(batches[turn % BATCHES])
    turns = [{name: step(batches[turn % BATCHES]) for name, step in steps.items()} for turn in range(repeats)]
    distinct = statistics.mean(sum(row.unique().numel() for row in one) for one in batches)
    (store,) = ours.stores.values()
    found: dict[str, Any] = {"dim": dim, "batch": batch, "rows": rows}
    for name in steps:
        parts = [statistics.median(turn[name][part] for turn in turns) for part in (0, 1)]
        ratios = [sum(turn[name]) / sum(turn["native"]) for turn in turns]
        found[name] = {
            "forward_ms": round(1e3 * parts[0], 3),
            "update_ms": round(1e3 * parts[1], 3),
            "ratio": round(statistics.median(ratios), 2),
            "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
        }
    limit = shortest_step(store.weights, store.state, distinct, batch * features * dim)
    native = found["native"]["forward_ms"] + found["native"]["update_ms"]
    found["limit"] = {**limit, "native_ratio": round(native / (limit["forward_ms"] + limit["update_ms"]), 2)}
    return found


def _plain(features: int, rows: int, dim: int) -> ReferenceTables:
    specs = [TableSpec(f"f{n}", rows, dim) for n in range(features)]
    return ReferenceTables(specs, [Group(tuple(spec.name for spec in specs), dim)], 0)


def _tables(tables: Tables, gradient: Tensor) -> Step:
    tables.set_lr(LR)

    def step(rows: Tensor) -> tuple[float, float]:
        request = Request(rows, rows.shape[1])
        began = time.perf_counter()
        tables.read(0, request)
        middle = time.perf_counter()
        tables.update(0, request, None, gradient)
        return middle - began, time.perf_counter() - middle

    return step


def _by_fbgemm(parts: list[int], rows: int, gradient: Tensor) -> Step:
    """A module for each part of the features, each on a Python thread of its own."""
    from bench.harness.fbgemm import operator

    batch, _, dim = gradient.shape
    operators = [operator([(rows, dim)] * part, list(range(part))) for part in parts]
    given = [part.reshape(batch, -1).contiguous() for part in gradient.split(parts, dim=1)]
    offsets = [torch.arange(part * batch + 1, dtype=torch.int32) for part in parts]
    pool = ThreadPoolExecutor(len(parts))

    def step(numbers: Tensor) -> tuple[float, float]:
        began = time.perf_counter()
        flat = [one.reshape(-1) for one in numbers.split(parts)]
        read = list(pool.map(lambda one: one[0](one[1], one[2]), zip(operators, flat, offsets, strict=True)))
        middle = time.perf_counter()
        list(pool.map(lambda one: one[0].backward(one[1]), zip(read, given, strict=True)))
        return middle - began, time.perf_counter() - middle

    return step
