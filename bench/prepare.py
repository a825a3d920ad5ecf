"""Preparing rows in the shape of Criteo's: rows a second and peak memory, beside bare readers.

    python bench/prepare.py [--quick] [--json FILE] [--rows N,N,…] [--repeats N] [--only NAME …] [--folder DIR]

``ours`` is ``recsys_embed.prepare`` with all its checks, on two processes: every cell's type, vocabularies of the
training rows alone, scaled numbers, an encoded data set on the disk with checksums, flushed. ``ours, 1`` is the same on
one process. ``pandas``, ``pyarrow`` and ``polars`` do the bare reading and the dictionary encoding of all 26 columns in
memory, by each library's own way, on as many threads as it takes by default: no split, no training-only vocabulary, no
file. Every contender runs in a process of its own; memory is the largest sum of the private and the proportional part
of shared pages (PSS) over its processes, seen every tenth of a second. Contenders take turns; medians and ranges.
A contender that would need more memory than there is, by its need at fewer rows, is left out, and that is said.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.harness.criteo import CATEGORICAL, NUMERIC, config_of, write_rows
from bench.harness.memory import tree_memory

CONTENDERS = ("ours", "ours, 1", "pyarrow", "polars", "pandas")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="200,000 rows, once")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--rows", default="1000000,10000000,50000000", help="numbers of rows")
    parser.add_argument("--repeats", type=int, default=3, help="turns at up to ten million rows; above, one")
    parser.add_argument("--only", nargs="+", default=CONTENDERS, choices=CONTENDERS, help="contenders, all by default")
    parser.add_argument("--folder", type=Path, help="where rows and data sets are written, 40 GB at 50 million rows")
    parser.add_argument("--one", nargs=3, metavar=("CONTENDER", "FILE", "OUT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        contend(args.one[0], Path(args.one[1]), Path(args.one[2]))
        return
    sizes = [200_000] if args.quick else [int(rows) for rows in args.rows.split(",")]
    result = run(sizes, 1 if args.quick else args.repeats, args.only, args.folder)
    print(table(result))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def run(sizes: list[int], repeats: int, contenders: Sequence[str], folder: Path | None) -> dict[str, Any]:
    from bench.harness.setting import facts

    cells: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=folder) as home:
        for rows in sizes:
            path = Path(home) / f"{rows}.tsv"
            write_rows(path, rows)
            seen: dict[str, list[tuple[float, int]]] = {name: [] for name in contenders}
            left_out = {name: reason for name in contenders if (reason := _impossible(name, rows, cells))}
            for _ in range(repeats if rows <= 10_000_000 else 1):
                for name in contenders:
                    if name not in left_out:
                        seen[name].append(measure(name, path, Path(home) / "out"))
                        shutil.rmtree(Path(home) / "out", ignore_errors=True)
            for name, found in seen.items():
                cells.append({"rows": rows, "contender": name, **_summary(rows, found, left_out.get(name))})
                print(line(cells[-1]), file=sys.stderr, flush=True)
            cells[-1]["file_bytes"] = path.stat().st_size
            path.unlink()
    return {**facts("pyarrow", "pandas", "polars"), "setting": {"columns": 40, "repeats": repeats}, "cells": cells}


def measure(contender: str, path: Path, out: Path) -> tuple[float, int]:
    """Seconds and peak bytes of one contender, in a process of its own."""
    command = [sys.executable, str(Path(__file__).resolve()), "--one", contender, str(path), str(out)]
    start, peak = time.perf_counter(), 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            peak = max(peak, tree_memory(watched))
            time.sleep(0.1)
        seconds = time.perf_counter() - start
        assert process.stdout is not None
        if process.returncode:
            raise SystemExit(f"{contender}: exit code {process.returncode}")
    return seconds, peak


def contend(contender: str, path: Path, out: Path) -> None:
    """What the child process does."""
    if contender.startswith("ours"):
        from recsys_embed.data import prepare

        prepare(config_of(path), out, workers=1 if contender.endswith("1") else 2)
    elif contender == "pyarrow":
        import pyarrow.csv as pacsv

        pacsv.read_csv(
            path,
            parse_options=pacsv.ParseOptions(delimiter="\t"),
            convert_options=pacsv.ConvertOptions(
                column_types=dict.fromkeys(CATEGORICAL, _dictionary()) | dict.fromkeys(NUMERIC, "double")
            ),
        )
    elif contender == "polars":
        import polars

        schema = dict.fromkeys(CATEGORICAL, polars.Categorical) | dict.fromkeys(NUMERIC, polars.Float64)
        polars.read_csv(path, separator="\t", schema_overrides=schema)
    else:
        import pandas

        types = dict.fromkeys(CATEGORICAL, "category") | dict.fromkeys(NUMERIC, "float64")
        pandas.read_csv(path, sep="\t", dtype=types)


def _dictionary() -> Any:
    import pyarrow

    return pyarrow.dictionary(pyarrow.int32(), pyarrow.string())


def _impossible(contender: str, rows: int, cells: list[dict[str, Any]]) -> str | None:
    if contender == "polars":
        try:
            import polars  # noqa: F401
        except ImportError:
            return "not installed"
    known = [cell for cell in cells if cell["contender"] == contender and "peak_bytes" in cell]
    if known and not contender.startswith("ours"):
        needed = known[-1]["peak_bytes"] * rows / known[-1]["rows"]
        if needed > 0.85 * psutil.virtual_memory().total:
            return f"would need {needed / 1e9:.0f} GB"
    return None


def _summary(rows: int, found: list[tuple[float, int]], left_out: str | None) -> dict[str, Any]:
    if left_out:
        return {"left_out": left_out}
    rates = [rows / seconds for seconds, _ in found]
    return {
        "rows_per_second": statistics.median(rates),
        "lowest": min(rates),
        "highest": max(rates),
        "peak_bytes": statistics.median(peak for _, peak in found),
    }


def line(cell: dict[str, Any]) -> str:
    start = f"{cell['rows']:>11,}  {cell['contender']:<9}"
    if "left_out" in cell:
        return f"{start} {cell['left_out']}"
    span = f"{cell['lowest']:,.0f}–{cell['highest']:,.0f}"
    return f"{start} {cell['rows_per_second']:>10,.0f}  {span:>19}  {cell['peak_bytes'] / 1e6:>9,.0f}"


def table(result: dict[str, Any]) -> str:
    head = f"{'rows':>11}  {'':<9} {'rows/s':>10}  {'range':>19}  {'peak MB':>9}"
    return "\n".join([head, *(line(cell) for cell in result["cells"])])


if __name__ == "__main__":
    main()
