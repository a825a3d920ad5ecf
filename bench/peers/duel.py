"""One cell of the grid: all contenders on the same rows, in turns."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.peers import rows
from bench.peers.measure import obstacle, run
from bench.peers.roster import BASELINE, Contender

FIGURES = ("samples_per_second", "samples_per_second_total", "first_batch_seconds", "peak_bytes", "auc")
WRONG = 0.01
"""Who is so far behind the best AUC of a cell has not done the same work."""

OWN, SHARED, BARE = "as shipped", "common", "default allocator"
"""The columns: the optimizer that a contender ships with; row-wise Adagrad for all that have it; and as shipped with
no settings for the allocator, once."""


@dataclass(frozen=True)
class Plan:
    """What is the same for all cells."""

    home: Path
    samples: int
    val: int
    repeats: int
    threads: int
    limit: float
    bare: bool
    tables_lr: float = 0.02
    dense_lr: float = 0.005


@dataclass(frozen=True)
class Cell:
    model: str
    size: str
    dim: int
    batch: int


@dataclass(frozen=True, eq=False)
class Entry:
    """A contender in a column."""

    contender: Contender
    column: str

    @property
    def options(self) -> dict[str, Any]:
        chosen = self.contender.common if self.column == SHARED else self.contender.options
        assert chosen is not None
        return dict(chosen)


def duel(plan: Plan, cell: Cell, contenders: Sequence[Contender]) -> list[dict[str, Any]]:
    """A line for each contender and column. In every repeat all take a turn, and another begins."""
    made = rows.make(plan.home / "rows", rows.SIZES[cell.size], plan.samples, plan.val)
    setting = {
        "train": made.train, "val": made.val, "cardinalities": made.cardinalities, "model": cell.model,
        "dim": cell.dim, "batch": cell.batch, "threads": plan.threads, "tables_lr": plan.tables_lr,
        "dense_lr": plan.dense_lr,
    }  # fmt: skip
    entries = [Entry(one, OWN) for one in contenders]
    entries += [Entry(one, SHARED) for one in contenders if one.common is not None]
    bare = [Entry(one, BARE) for one in contenders] if plan.bare else []
    why_not = {one.name: obstacle(one, plan.home, sum(made.cardinalities), cell.dim) for one in contenders}
    found: dict[Entry, list[dict[str, Any]]] = {entry: [] for entry in (*entries, *bare)}
    for repeat in range(plan.repeats):
        turns = entries if repeat else [*entries, *bare]
        first = repeat * len(turns) // max(plan.repeats, 1)
        for entry in (*turns[first:], *turns[:first]):
            name = entry.contender.name
            if why_not[name] is not None:
                continue
            one = run(entry.contender, entry.options, setting, plan.home, plan.limit, entry.column == BARE)
            if "auc" not in one:
                why_not[name] = one.get("left_out") or f"failed: {one['failed']}"
                print(f"{cell} {name}: {why_not[name]}", file=sys.stderr, flush=True)
                continue
            found[entry].append(one)
            print(f"{cell} {name}, {entry.column}: {one['samples_per_second']:,.0f} samples/s, first batch after "
                  f"{one['first_batch_seconds']:.1f} s, {one['peak_bytes'] / 1e6:,.0f} MB, AUC {one['auc']:.4f}",
                  file=sys.stderr, flush=True)  # fmt: skip
    lines = [line(cell, entry, found[entry], why_not[entry.contender.name]) for entry in found]
    return judged(lines, found, made.best_auc)


def line(cell: Cell, entry: Entry, found: list[dict[str, Any]], why_not: str | None) -> dict[str, Any]:
    """Medians and ranges of a contender's runs, or why there are none."""
    about = {**vars(cell), "contender": entry.contender.name, "column": entry.column, "note": entry.contender.note}
    if not found:
        return {**about, "left_out": why_not}
    same = {key: value for key, value in found[0].items() if key not in FIGURES}
    return {**about, **same, "runs": len(found), **{name: spread([one[name] for one in found]) for name in FIGURES}}


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "lowest": min(values), "highest": max(values)}


def judged(
    lines: list[dict[str, Any]], found: dict[Entry, list[dict[str, Any]]], best_auc: float
) -> list[dict[str, Any]]:
    """The lines with their speed in units of the baseline's, repeat by repeat, and whether they do not count."""
    base = next((runs for entry, runs in found.items() if entry.contender.name == BASELINE and entry.column == OWN), [])
    best = max((one["auc"]["median"] for one in lines if "auc" in one), default=0.0)
    for one, (entry, runs) in zip(lines, found.items(), strict=True):
        if not runs:
            continue
        one["best_auc"] = best_auc
        one["behind"] = one["auc"]["median"] < best - WRONG
        if base and len(base) == len(runs) and entry.column != BARE:
            pairs = zip(runs, base, strict=True)
            one["over_fbgemm"] = spread([a["samples_per_second"] / b["samples_per_second"] for a, b in pairs])
    return lines
