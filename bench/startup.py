"""Seconds that users wait before a command does what it was called for.

    python bench/startup.py [--quick] [--json FILE] [--against CHECKOUT]

``help``: ``recsys-embed --help``. ``first batch``: of ``recsys-embed train`` of a DCN-v2 on 20,000 rows with numbers,
categories and a bag that are prepared already, from the start of the process to the end of the first training step.
``train``: that command as a whole, one epoch, with its export. ``predict``: ``recsys-embed predict`` of 1,000 rows as a
whole. ``import torch`` is what none but the first can do without. Each time in a process of its own, in turns, with the
files in the system's cache; medians and ranges. With ``--against`` every turn runs the same with another checkout of
this project, of the same Python, and tells the ratios within the turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.harness.setting import facts, heading

HERE = Path(__file__).resolve().parents[1]
ROWS, PREDICTED = 20_000, 1_000

CONFIG = """
[data]
path = "rows.csv"
label = "label"
categorical = ["c0", "c1", "c2", "c3", "c4", "c5", "c6", "c7", "c8", "c9"]
multi_valued = { m0 = "|" }
numeric = ["n0", "n1", "n2"]
[model]
name = "dcn_v2"
dim = 16
[training]
epochs = 1
"""

WRITE = f"""
import recsys_embed
frame, _ = recsys_embed.planted(rows={ROWS}, multi_valued=1, numeric=3)
frame.to_csv("rows.csv", index=False)
frame[:{PREDICTED}].to_csv("some.csv", index=False)
"""

FIRST_BATCH = """
import os
from recsys_embed.cli import main, train
read_config = train.read_config
def begin(*args, **options):
    from recsys_embed.training import trainer
    step = trainer.step
    def first(*batch):
        step(*batch)
        os._exit(0)
    trainer.step = first
    return read_config(*args, **options)
train.read_config = begin
main()
"""
"""The command, that ends after its first step."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two turns instead of nine")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--against", type=Path, help="another checkout of this project, for ratios")
    args = parser.parse_args()
    result = run(turns=2 if args.quick else 9, against=args.against)
    print(table(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def run(*, turns: int, against: Path | None = None) -> dict[str, Any]:
    checkouts = {"here": HERE} if against is None else {"here": HERE, "there": against.resolve()}
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home)
        commands = {name: prepared(checkout, folder / name) for name, checkout in checkouts.items()}
        seen: dict[str, dict[str, list[float]]] = {what: {name: [] for name in checkouts} for what in commands["here"]}
        for turn in range(turns + 1):  # the first one warms up
            for what, by_name in seen.items():
                for name, checkout in checkouts.items():
                    out = folder / name / f"{what}-{turn}".replace(" ", "-")
                    by_name[name].append(seconds([*commands[name][what]], checkout, out))
    cells = [
        {"what": what, **summary(**{name: times[1:] for name, times in by_name.items()})}
        for what, by_name in seen.items()
    ]
    return {**facts("pandas", "pyarrow", "typer"), "setting": {"rows": ROWS, "turns": turns}, "cells": cells}


def prepared(checkout: Path, folder: Path) -> dict[str, list[str]]:
    """What is run, by name, once its data, a model and rows to predict are in ``folder``; ``OUT`` is another folder in
    every turn, and the data of a training lie there."""
    folder.mkdir()
    (folder / "config.toml").write_text(CONFIG, encoding="utf-8")
    command = [sys.executable, "-m", "recsys_embed"]
    seconds([sys.executable, "-c", WRITE], checkout, folder / "rows")
    seconds([*command, "train", "config.toml", "--out", "trained"], checkout, folder / "trained")
    train = ["train", "config.toml", "--quiet", "--out", "OUT"]
    return {
        "help": [*command, "--help"],
        "import torch": [sys.executable, "-c", "import torch"],
        "first batch": [sys.executable, "-c", FIRST_BATCH, *train],
        "train": [*command, *train],
        "predict": [*command, "predict", "trained/model", "some.csv"],
    }


def seconds(command: list[str], checkout: Path, out: Path) -> float:
    """How long a process of a checkout runs, whose data have been prepared in ``out``."""
    if "OUT" in command:
        out.mkdir()
        (out / "data").symlink_to(out.parent / "trained" / "data", target_is_directory=True)
    asked = [str(out) if word == "OUT" else word for word in command]
    began = time.perf_counter()
    variables = {**os.environ, "PYTHONPATH": str(checkout)}
    subprocess.run(asked, env=variables, cwd=out.parent, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def summary(here: list[float], there: list[float] | None = None) -> dict[str, Any]:
    """Median and range; and of the ratios of what runs there to what runs here, turn by turn."""
    found: dict[str, Any] = {
        "seconds": round(statistics.median(here), 3),
        "range": [round(min(here), 3), round(max(here), 3)],
    }
    if there is not None:
        ratios = [one / own for one, own in zip(there, here, strict=True)]
        found["there_seconds"] = round(statistics.median(there), 3)
        found["ratio"] = round(statistics.median(ratios), 2)
        found["ratio_range"] = [round(min(ratios), 2), round(max(ratios), 2)]
    return found


def table(result: Mapping[str, Any]) -> str:
    lines = [*heading(result), ""]
    lines.append(f"{'':<15}{'seconds':>9}{'range':>14}{'there':>9}{'ratio':>8}{'range':>13}")
    for one in result["cells"]:
        line = f"{one['what']:<15}{one['seconds']:>9.2f}{'–'.join(f'{s:.2f}' for s in one['range']):>14}"
        if "ratio" in one:
            ratios = "–".join(f"{r:.2f}" for r in one["ratio_range"])
            line += f"{one['there_seconds']:>9.2f}{one['ratio']:>8.2f}{ratios:>13}"
        lines.append(line)
    return "\n".join(lines)


if __name__ == "__main__":
    main()
