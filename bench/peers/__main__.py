"""Train beside peers: see ``README.md``."""

from __future__ import annotations

import argparse
import itertools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from bench.harness.setting import ALLOCATOR, facts
from bench.peers import environments, rows
from bench.peers.duel import Cell, Plan, duel
from bench.peers.roster import ROSTER
from bench.peers.table import table

HOME = Path.home() / ".cache" / "recsys_embed" / "peers"


def main() -> None:
    args = options()
    chosen = [one for one in ROSTER if args.contenders is None or one.name in args.contenders]
    names = sorted({one.environment for one in chosen if one.environment is not None})
    failed = {} if args.installed else environments.install(args.home, names)
    for name, why in failed.items():
        print(f"{name} could not be installed: {why}", file=sys.stderr)
    if args.install:
        raise SystemExit(1 if failed else 0)
    plan = Plan(args.home, args.samples, args.val, args.repeats, args.threads, args.limit, not args.no_bare)
    began = time.perf_counter()
    result: dict[str, Any] = {
        **facts("fbgemm-gpu-cpu"),
        "allocator": ALLOCATOR,
        "threads": args.threads,
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "setting": {
            "samples": args.samples, "val": args.val, "repeats": args.repeats, "zipf": 1.05,
            "tables_lr": plan.tables_lr, "dense_lr": plan.dense_lr,
        },
        "not_installed": failed,
        "cells": [],
    }  # fmt: skip
    grid = itertools.product(args.models, args.sizes, args.dims, args.batches)
    for model, size, dim, batch in grid:
        result["cells"] += duel(plan, Cell(model, size, dim, batch), chosen)
        result["minutes"] = round((time.perf_counter() - began) / 60, 1)
        if args.json:  # after every cell: what is measured is kept
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(result))


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="size S, one repeat, no run without allocator settings")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--home", type=Path, default=HOME, help="environments (3 GB) and rows; default %(default)s")
    parser.add_argument("--install", action="store_true", help="install what is missing, and measure nothing")
    parser.add_argument("--installed", action="store_true", help="install nothing: take those that are installed")
    parser.add_argument("--contenders", type=names, help="only these, by name, separated by ;")
    parser.add_argument("--models", type=commas, default=["deepfm"], help="of deepfm, dlrm, dcn_v2")
    parser.add_argument("--sizes", type=commas, default=list(rows.SIZES), help="of S, M, L")
    parser.add_argument("--dims", type=numbers, default=[16], help="widths of vectors")
    parser.add_argument("--batches", type=numbers, default=[4096], help="samples of a batch")
    parser.add_argument("--samples", type=int, default=122_880, help="training rows, each read once")
    parser.add_argument("--val", type=int, default=65_536, help="validation rows")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of torch, for everyone")
    parser.add_argument("--limit", type=float, default=300, help="seconds for one training")
    parser.add_argument("--no-bare", action="store_true", help="no run without settings for the allocator")
    args = parser.parse_args()
    if args.quick:
        args.sizes, args.repeats, args.no_bare, args.installed = ["S"], 1, True, True
    known = {one.name for one in ROSTER}
    for name in args.contenders or []:
        if name not in known:
            parser.error(f"no contender {name!r}: there are {'; '.join(sorted(known))}")
    return args


def commas(text: str) -> list[str]:
    return text.split(",")


def numbers(text: str) -> list[int]:
    return [int(one) for one in text.split(",")]


def names(text: str) -> list[str]:
    return [one.strip() for one in text.split(";")]


if __name__ == "__main__":
    main()
