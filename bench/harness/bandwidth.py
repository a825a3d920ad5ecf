"""Bytes that a lookup and an update must move at least, and how fast they move on a device against a plain copy.

Shapes: F features, S slots, B samples, D width of a vector, W width of a table.

Counted are, for each id and slot, its row number and offset, the row, and for each sample and feature the vector. In
``forward`` every id reads its row, in ``forward_cold`` every distinct row is read once (caches can beat the former, and
not the latter). An update reads the gradients of the vectors, the row numbers, and reads and writes every distinct row
and its optimizer state once, since duplicates are summed; where vectors are products, each factor's gradient needs the
others' rows again.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bench.harness.draws import scattered, uniform, zipf_ranks
from recsys_embed import ConfigError, EmbeddingLayer, Feature
from recsys_embed.embeddings.base import Strategy
from recsys_embed.ids import Ids
from recsys_embed.tables.base import UpdateRule

NUMBER = 8
"""Bytes of a row number, and of an offset."""

FLOAT = 4
RULE = "rowwise_adagrad"
BATCHES, WARM_UP = 4, 3

STRATEGIES: dict[str, dict[str, Any]] = {
    "full": {"strategy": "full"},
    "hash": {"strategy": "hash", "budget": 0.1},
    "unified": {"strategy": "unified", "budget": 0.1},
    "compositional": {"strategy": "compositional", "budget": 0.1},
    "full, int8": {"strategy": {"name": "full", "storage": "int8"}},
}
BACKENDS = ("fused", "reference")
DRAWS: dict[str, Callable[[int, int, int, torch.Generator], Tensor]] = {
    "zipf": lambda features, rows, batch, generator: scattered(zipf_ranks(features, rows, batch, generator), rows),
    "uniform": uniform,
}


@dataclass(frozen=True)
class Bytes:
    """What must be moved for one batch."""

    forward: int
    forward_cold: int
    update: int


def bytes_of(strategy: Strategy, ids: Ids, rule: UpdateRule) -> Bytes:
    """For single-valued ids ``[F, B]`` of a strategy's features."""
    asked: dict[str, list[Tensor]] = {}
    rows = strategy.address(ids).rows
    for read, homes in strategy.reads().items():
        for feature, slots in enumerate(homes):
            for slot, table in enumerate(slots):
                asked.setdefault(table, []).append(rows[read][feature, slot])
    vectors = ids.features * ids.batch * strategy.dim * FLOAT
    numbers = stream = cold = written = 0
    for spec in strategy.stored_tables():
        wanted = torch.cat(asked[spec.name])
        row, state = spec.width * spec.storage.bytes, FLOAT * rule.state_width(spec.width)
        distinct = wanted.unique().numel()
        numbers += wanted.numel() * 2 * NUMBER
        stream += wanted.numel() * row
        cold += distinct * row
        written += distinct * 2 * (row + state)
    again = 0 if strategy.linear else stream
    return Bytes(numbers + stream + vectors, numbers + cold + vectors, vectors + numbers + again + written)


@dataclass(frozen=True)
class Size:
    """``table_bytes`` of the full tables in fp32 and ``vector_bytes`` of a batch's vectors, whatever the dimension: the
    first more than any cache holds, the second so many that Python between the kernels does not count."""

    features: int
    table_bytes: int
    vector_bytes: int
    repeats: int

    def rows(self, dim: int) -> int:
        """Of each feature."""
        return max(2, self.table_bytes // (self.features * dim * FLOAT))

    def batch(self, dim: int) -> int:
        """Samples of a batch."""
        return max(1, self.vector_bytes // (self.features * dim * FLOAT))


def measure(device: torch.device, dims: tuple[int, ...], size: Size) -> dict[str, Any]:
    """The copy bandwidth, and a cell for each dimension, strategy, back end and distribution of ids."""
    copied = copy_bandwidth(device, max(size.table_bytes // 8, 1), size.repeats)
    cells: list[dict[str, Any]] = []
    for dim in dims:
        for name, options in STRATEGIES.items():
            for backend in BACKENDS:
                about = {"strategy": name, "backend": backend, "dim": dim}
                try:
                    lookups = Lookups(options, backend, device, dim, size)
                except ConfigError as error:
                    cells.append({**about, "refused": str(error)})
                    continue
                cells += [{**about, "ids": draw, **lookups.measure(draw, copied)} for draw in DRAWS]
                del lookups  # before the next tables are made
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return {"device": name, "copy_gb_per_second": round(copied / 1e9, 1), "setting": vars(size), "cells": cells}


class Lookups:
    """A layer of one strategy on a device, with its tables optimizer."""

    def __init__(self, options: dict[str, Any], backend: str, device: torch.device, dim: int, size: Size) -> None:
        """
        Raises:
            ConfigError: the back end cannot hold the strategy's tables on this device.
        """
        self._size, self._device, self._rows, self._batch = size, device, size.rows(dim), size.batch(dim)
        features = [Feature(f"f{n}", self._rows) for n in range(size.features)]
        self._layer = EmbeddingLayer(features, dim, **options, exact=(), backend=backend).to(device)
        self._optimizer = self._layer.optimizer(RULE, lr=0.01)
        generator = torch.Generator(device).manual_seed(0)
        shape = (self._batch, size.features, dim)
        self._gradient = torch.randn(shape, generator=generator, device=device) * 0.01

    def measure(self, draw: str, copied: float) -> dict[str, Any]:
        """Medians of the forward pass and of the backward pass with its update, in GB/s and in units of a copy."""
        generator = torch.Generator(self._device).manual_seed(0)
        features, (strategy,) = self._size.features, self._layer.strategies
        batches = [Ids(DRAWS[draw](features, self._rows, self._batch, generator), features) for _ in range(BATCHES)]
        counted = [bytes_of(strategy, batch, UpdateRule(RULE)) for batch in batches]
        forward, cold, update = [], [], []
        for turn in range(-WARM_UP, self._size.repeats):
            batch, moved = batches[turn % BATCHES], counted[turn % BATCHES]
            vectors, reading = timed(self._device, lambda batch=batch: self._layer(batch))
            _, writing = timed(self._device, lambda vectors=vectors: self._learn(vectors))
            if turn >= 0:
                forward.append(moved.forward / reading)
                cold.append(moved.forward_cold / reading)
                update.append(moved.update / writing)
        speeds = {name: statistics.median(one) for name, one in (("forward", forward), ("update", update))}
        return {
            **{f"{name}_gb_per_second": round(speed / 1e9, 3) for name, speed in speeds.items()},
            **{f"{name}_of_copy": round(speed / copied, 3) for name, speed in speeds.items()},
            "forward_cold_of_copy": round(statistics.median(cold) / copied, 3),
        }

    def _learn(self, vectors: Tensor) -> None:
        torch.autograd.backward(vectors, self._gradient)
        self._optimizer.step()


def copy_bandwidth(device: torch.device, size: int, repeats: int) -> float:
    """Bytes a second, read and written, of a copy of ``size`` bytes within the device's memory."""
    source = torch.ones(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = [timed(device, lambda: target.copy_(source))[1] for _ in range(repeats + WARM_UP)][WARM_UP:]
    return 2 * size / statistics.median(seconds)


def timed(device: torch.device, work: Callable[[], Any]) -> tuple[Any, float]:
    """What the work returns, and its seconds on the device; nothing else is under way there."""
    if device.type != "cuda":
        began = time.perf_counter()
        return work(), time.perf_counter() - began
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    began.record()
    found = work()
    ended.record()
    torch.cuda.synchronize(device)
    return found, began.elapsed_time(ended) / 1e3
