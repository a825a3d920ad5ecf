"""Rows of a table by their numbers: ours against torch's ``embedding`` and against indexing, in one process.

    python bench/gather.py [--quick] [--json FILE]

As many floats are read for every width: those of 26 features of 16 dimensions and 4096 samples, from a table that is
ten times as large as a batch. Row numbers are uniform, in the order in which the reference back end asks for them. Ways
take turns; times are medians on one thread, and a ratio is the median of ratios turn by turn. The second table has the
forward and the backward pass to an ordinary parameter.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.harness.command import command
from bench.harness.setting import facts
from recsys_embed.tables.gather import gather

WAYS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ours": gather,
    "embedding": lambda source, rows: F.embedding(rows, source),
    "indexing": lambda source, rows: source[rows],
}
TYPES = {"fp32": torch.float32, "fp16": torch.float16, "int8": torch.int8}


def main() -> None:
    def measured(quick: bool) -> dict[str, Any]:
        torch.set_num_threads(1)
        return run(batch=512 if quick else 4096, repeats=7 if quick else 25)

    command(__doc__, "an eighth of the floats and fewer repeats", measured, table)


def run(*, batch: int, repeats: int) -> dict[str, Any]:
    floats = 26 * 16
    cells = [
        measure(batch, floats // width, width, dtype, backward, repeats)
        for backward in (False, True)
        for dtype in (TYPES if not backward else ["fp32"])
        for width in (1, 2, 16)
    ]
    return {
        **facts(),
        "setting": {"batch": batch, "floats_per_sample": floats},
        "cells": cells,
    }


def measure(batch: int, lanes: int, width: int, dtype: str, backward: bool, repeats: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    size = 10 * batch * lanes
    source = (100 * torch.rand(size, width, generator=generator)).to(TYPES[dtype]).requires_grad_(backward)
    rows = torch.randint(0, size, (lanes, batch), generator=generator).t()
    gradient = torch.randn(batch, lanes, width, generator=generator)

    def seconds(way: str) -> float:
        source.grad = None
        begin = time.perf_counter()
        read = WAYS[way](source, rows)
        if backward:
            read.backward(gradient)
        return time.perf_counter() - begin

    turns = [{way: seconds(way) for way in WAYS} for _ in range(repeats + 2)][2:]
    return {
        "pass": "forward and backward" if backward else "forward",
        "dtype": dtype,
        "width": width,
        **{f"{way}_ms": round(1e3 * statistics.median(turn[way] for turn in turns), 3) for way in WAYS},
        **{
            f"{way}_ratio": round(statistics.median(turn[way] / turn["ours"] for turn in turns), 2)
            for way in WAYS
            if way != "ours"
        },
    }


def table(result: dict[str, Any]) -> str:
    lines = [
        f"{result['date']}  {result['machine']}  {result['versions']}",
        f"{result['setting']}  median ms; ratio to ours",
        "",
        f"{'pass':22}{'type':6}{'width':>6}{'ours':>9}{'embedding':>11}{'indexing':>10}{'embedding':>12}{'indexing':>10}",
    ]
    for cell in result["cells"]:
        lines.append(
            f"{cell['pass']:22}{cell['dtype']:6}{cell['width']:6}{cell['ours_ms']:9.2f}{cell['embedding_ms']:11.2f}"
            f"{cell['indexing_ms']:10.2f}{cell['embedding_ratio']:11.2f}x{cell['indexing_ratio']:9.2f}x"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
