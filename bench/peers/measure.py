"""One training in a process of its own: its speed, its first batch, its memory and its AUC."""

from __future__ import annotations

import contextlib
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

import numpy as np
import psutil

from bench.harness.memory import tree_memory
from bench.harness.setting import ALLOCATOR
from bench.peers.environments import python_of
from bench.peers.roster import Contender
from recsys_embed.training.metrics import auc

HERE = Path(__file__).resolve().parent
SKIPPED = 2
"""First steps that no speed is taken of: memory is new, and threads begin."""

BASE_BYTES = 1_000_000_000
"""Of a process without tables."""

WATCHING = 20
"""Looking at the memory of large processes takes a while: at most one part of so many of the time."""


def obstacle(contender: Contender, home: Path, rows: int, dim: int) -> str | None:
    """Why a contender cannot run here, or None."""
    if contender.environment is not None and python_of(home, contender.environment) is None:
        return "not installed"
    needed = BASE_BYTES + contender.copies * rows * dim * 4
    if needed > 0.85 * psutil.virtual_memory().available:
        return f"left out: would need {needed / 1e9:.0f} GB"
    return None


def run(
    contender: Contender, options: Mapping[str, Any], setting: Mapping[str, Any], home: Path, limit: float, bare: bool
) -> dict[str, Any]:
    """Train once.

    Args:
        options: of the contender: ``contender.options`` or ``contender.common``.
        setting: what all contenders are told, see ``contenders/common.py``.
        limit: seconds after which it is stopped.
        bare: without settings for the allocator.

    Returns:
        ``samples_per_second`` (by the median step, and ``…_total``), ``first_batch_seconds``, ``peak_bytes``, ``auc``,
        and what the contender told; or ``left_out`` or ``failed`` with the reason.
    """
    python = sys.executable if contender.environment is None else str(python_of(home, contender.environment))
    script = HERE / "contenders" / f"{contender.script}.py"
    with tempfile.TemporaryDirectory() as folder:
        scores = Path(folder) / "scores.npz"
        told = {"precision": "fp32", **setting, **options, "scores": str(scores), "began": time.time()}
        command = [python, str(script), json.dumps(told)]
        with (Path(folder) / "out").open("w+") as out, (Path(folder) / "err").open("w+") as err:
            process = subprocess.Popen(command, stdout=out, stderr=err, cwd=folder, env=_variables(contender, bare))
            peak, in_time = _watch(process, limit)
            out.seek(0), err.seek(0)
            lines, complaint = out.read().strip().splitlines(), err.read().strip().splitlines()
        if not in_time:
            return {"left_out": f"left out: took more than {limit:.0f} s"}
        if process.returncode or not lines:
            log = home / "failures" / f"{contender.name}.txt"
            log.parent.mkdir(parents=True, exist_ok=True)
            log.write_text("\n".join([*lines, *complaint]) + "\n", encoding="utf-8")
            return {"failed": (complaint or [f"exit code {process.returncode}"])[-1]}
        answer = json.loads(lines[-1])
        if "left_out" in answer:
            return answer
        with np.load(scores) as found:
            reached = auc(found["labels"], found["scores"])
    ended = answer.pop("ended")
    return {**speed(ended, told["batch"]), "first_batch_seconds": ended[0] - told["began"], "peak_bytes": peak,
            "auc": reached, **answer}  # fmt: skip


def speed(ended: list[float], batch: int) -> dict[str, float]:
    """Samples a second, by the ends of the steps: by the median step, and by all together."""
    steps = np.diff(ended[SKIPPED - 1 :])
    return {
        "samples_per_second": batch / statistics.median(steps),
        "samples_per_second_total": batch * len(steps) / float(steps.sum()),
    }


def _variables(contender: Contender, bare: bool) -> dict[str, str]:
    """Of the environment: a peer sees nothing of this checkout."""
    kept = {key: value for key, value in os.environ.items() if key not in (*ALLOCATOR, "PYTHONPATH")}
    if contender.environment is None:
        kept["PYTHONPATH"] = str(HERE.parents[1])
    return kept if bare else {**kept, **ALLOCATOR}


def _watch(process: subprocess.Popen[bytes], limit: float) -> tuple[int, bool]:
    """The most bytes that it and its children held, and whether it ended in time."""
    peak, began, watched = 0, time.perf_counter(), psutil.Process(process.pid)
    while process.poll() is None:
        looked = time.perf_counter()
        peak = max(peak, tree_memory(watched))
        now = time.perf_counter()
        if now - began > limit:
            _stop(watched)
            process.wait()
            return peak, False
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.1, WATCHING * (now - looked)))
    return peak, True


def _stop(process: psutil.Process) -> None:
    for one in [*process.children(recursive=True), process]:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
