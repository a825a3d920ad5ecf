"""The embedding step alone: our tables against FBGEMM, torch and the machine; our layer against FBGEMM by hand.

    python bench/lookup.py [--quick] [--json FILE]

First the tables without a layer, one for each feature: ours (``native``) in turn with FBGEMM as shipped, whose CPU
build runs on one thread, with two of its modules on two Python threads, and with plain torch; beside them the shortest
step that the machine allows (see ``bench/harness/limits.py``; needs g++).

Then the layer. The step is forward (ids to vectors) and update (gradient to rows), over single-valued features whose
ids are drawn from a Zipf distribution over scattered rows. For each strategy the raw baseline is one
``SplitTableBatchedEmbeddingBagsCodegen`` with the layer's own tables, the row numbers computed beforehand, the same
optimizer and the same allocator settings, its rows combined in plain torch (a view, or a product of two slots); ours
adds checking ids, addressing (hashing, digits), the autograd leaf and the finite check. Gradients come as in a
training: nobody else holds them.
Addressing is also timed by itself: for strategies that hash, FBGEMM's call does no such work. Of the native back end,
which makes row numbers in its read, the raw call is timed as well: a read of the layer's own tables by ids, and an
update. All run in one process, turn and turn about; figures are medians, and ratios the medians of the ratios turn by
turn.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.harness.command import command
from bench.harness.fbgemm import operator
from bench.harness.setting import facts


def main() -> None:
    def measured(quick: bool) -> dict[str, Any]:
        return run(features=26, rows=100_000 if quick else 1_000_000, repeats=15 if quick else 60)

    command(__doc__, "smaller tables and fewer repeats", measured, table)


def run(*, features: int, rows: int, repeats: int) -> dict[str, Any]:
    from bench.harness import peers

    # As many weights for every width: the tables of four are in memory at once.
    steps = [
        peers.measure(features, rows * 16 // dim, dim, batch, repeats) for dim in (16, 64) for batch in (4096, 8192)
    ]
    cells = [
        measure(strategy, backend, features, rows, dim, 4096, repeats)
        for dim in (16, 64)
        for strategy in ("full", "hash", "unified", "compositional")
        for backend in ("native", "fused", "reference")
        if rows * dim <= 16_000_000 or strategy != "full"
    ]
    return {
        **facts("fbgemm-gpu-cpu"),
        "note": "FBGEMM's CPU build runs on one thread.",
        "setting": {"features": features, "rows": rows, "batch": 4096, "zipf": 1.05, "kept_fraction": 0.1},
        "steps": steps,
        "cells": cells,
    }


def measure(
    strategy: str, backend: str, features: int, rows: int, dim: int, batch: int, repeats: int
) -> dict[str, Any]:
    import torch

    from bench.harness.draws import scattered, zipf_ranks
    from recsys_embed import EmbeddingLayer, Feature
    from recsys_embed.embeddings.index_maps import RowNumbers
    from recsys_embed.ids import Ids
    from recsys_embed.tables.base import Request

    budget = None if strategy == "full" else 0.1
    emb = EmbeddingLayer(
        [Feature(f"f{i}", rows) for i in range(features)],
        dim,
        strategy=strategy,
        budget=budget,
        exact=(),
        backend=backend,
    )
    optimizer = emb.optimizer("rowwise_adagrad", lr=0.01)
    (part,) = emb.strategies
    generator = torch.Generator().manual_seed(0)
    batches = [scattered(zipf_ranks(features, rows, batch, generator), rows).to(torch.int32) for _ in range(4)]
    numbers = [part.address(Ids(ids, features)).rows["rows"].flatten(0, 1).contiguous() for ids in batches]
    raw = raw_operator(emb)
    gradient = torch.randn(batch, features, dim, generator=generator) * 0.01
    slots = raw.total_D // features // emb.tables.groups[0].width
    offsets = torch.arange(numbers[0].numel() + 1, dtype=numbers[0].dtype)

    class Given(torch.autograd.Function):
        """Ends a step with a gradient that was made before."""

        @staticmethod
        def forward(ctx: Any, vectors: Any, held: list[Any]) -> Any:
            ctx.held = held
            return vectors.new_zeros(())

        @staticmethod
        def backward(ctx: Any, _: Any) -> Any:
            return ctx.held.pop(), None

    def ours(turn: int) -> tuple[float, float]:
        held = [gradient.clone()]
        start = time.perf_counter()
        vectors = emb(batches[turn % 4])
        middle = time.perf_counter()
        Given.apply(vectors, held).backward()
        optimizer.step()
        return middle - start, time.perf_counter() - middle

    def by_hand(turn: int) -> tuple[float, float]:
        held = [gradient.clone()]
        start = time.perf_counter()
        read = raw(numbers[turn % 4].view(-1), offsets).view(batch, features, slots, -1)
        vectors = read[:, :, 0] * read[:, :, 1] if strategy == "compositional" else read.flatten(2)
        middle = time.perf_counter()
        Given.apply(vectors, held).backward()
        return middle - start, time.perf_counter() - middle

    group = emb.tables.groups[0]
    of_vectors = torch.randn(batch, group.vectors, group.width, generator=generator) * 0.01

    def natively(turn: int) -> float:
        its = of_vectors.clone()
        rows_of_ids = part.address(Ids(batches[turn % 4], features)).rows
        assert isinstance(rows_of_ids, RowNumbers)
        request = Request([rows_of_ids.source("rows")], batch)
        start = time.perf_counter()
        rows, _ = emb.tables.read_to_train(0, request)
        emb.tables.update_by_vectors(0, request, None, rows, its)
        return time.perf_counter() - start

    def addressing(turn: int) -> float:
        start = time.perf_counter()
        part.address(Ids(batches[turn % 4], features)).rows["rows"]
        return time.perf_counter() - start

    own = natively if backend == "native" else lambda turn: math.nan
    for turn in range(5):
        ours(turn), by_hand(turn), addressing(turn), own(turn)
    turns = [(ours(turn), by_hand(turn), addressing(turn), own(turn)) for turn in range(repeats)]

    def ms(values: list[float]) -> float:
        return round(1e3 * statistics.median(values), 3)

    def ratio(values: list[float]) -> float:
        return round(statistics.median(values), 3)

    cell = {
        "strategy": strategy,
        "backend": backend,
        "dim": dim,
        "forward_ms": ms([a[0] for a, *_ in turns]),
        "update_ms": ms([a[1] for a, *_ in turns]),
        "addressing_ms": ms([c for _, _, c, _ in turns]),
        "raw_forward_ms": ms([b[0] for _, b, *_ in turns]),
        "raw_update_ms": ms([b[1] for _, b, *_ in turns]),
        "ratio": ratio([sum(a) / sum(b) for a, b, *_ in turns]),
    }
    if backend == "native":
        cell["native_ms"] = ms([n for *_, n in turns])
        cell["over_native"] = ratio([sum(a) / n for a, _, _, n in turns])
    else:
        cell["ratio_without_addressing"] = ratio([(sum(a) - c) / sum(b) for a, b, c, _ in turns])
    return cell


def raw_operator(emb: Any) -> Any:
    """FBGEMM's operator over tables of the same sizes as the layer's, lanes in the same order."""
    (group,) = emb.tables.groups
    names = list(dict.fromkeys(group.lanes))
    specs = [emb.tables.specs[name] for name in names]
    return operator([(spec.rows, spec.width) for spec in specs], [names.index(name) for name in group.lanes])


def table(result: dict[str, Any]) -> str:
    lines = [
        f"{result['date']}  {result['machine']}  {result['versions']}",
        "",
        "Tables alone, median ms of forward + update; × is how many times as long as native, turn by turn [range]",
        *(_step_line(step) for step in result["steps"]),
        "",
        f"{result['setting']}  median ms; ratio = (ours forward + update) / (FBGEMM by hand forward + update)",
        "",
        f"{'strategy':14}{'back end':11}{'D':>4}{'forward':>9}{'update':>9}{'(address)':>11}"
        f"{'raw fwd':>9}{'raw upd':>9}{'ratio':>8}{'less address':>14}{'native':>9}{'over it':>9}",
    ]
    for cell in result["cells"]:
        lines.append(
            f"{cell['strategy']:14}{cell['backend']:11}{cell['dim']:4}{cell['forward_ms']:9.2f}{cell['update_ms']:9.2f}"
            f"{cell['addressing_ms']:11.2f}{cell['raw_forward_ms']:9.2f}{cell['raw_update_ms']:9.2f}"
            f"{cell['ratio']:8.2f}"
            + (
                f"{'':14}{cell['native_ms']:9.2f}{cell['over_native']:9.2f}"
                if "native_ms" in cell
                else f"{cell['ratio_without_addressing']:14.2f}"
            )
        )
    return "\n".join(lines)


def _step_line(step: dict[str, Any]) -> str:
    def shown(name: str) -> str:
        one = step[name]
        return f"{one['forward_ms']:.2f} + {one['update_ms']:.2f}"

    others = (
        f"{name} {shown(name)} ({step[name]['ratio']}× {step[name]['ratio_range']})"
        for name in ("fbgemm", "fbgemm_two_threads", "torch")
    )
    own = f"native {shown('native')}, {step['limit']['native_ratio']}× the limit {shown('limit')}"
    return f"D {step['dim']}, B {step['batch']}: {own}; " + "; ".join(others)


if __name__ == "__main__":
    main()
