"""F13: an MLflow server that is absent, hangs, answers 500, or dies while a job logs.

A job's tracking may cost five seconds in all, MLflow's import left out, and once the server is sound again everything
is there exactly once: as many metrics as were logged. A fault counts where a request met it, or where none could.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import random
import socket
import threading
import time
from pathlib import Path

from bench.injections.artifacts import configured, fresh, result_row
from bench.injections.mlflow_server import Server
from bench.injections.tally import Scale, Tally
from recsys_embed.config import Config
from recsys_embed.tracking import Tracker, deliver

SECONDS, EPOCHS = 5.0, 20
FINAL = {
    "best_val_auc": 0.72,
    "budget_bytes": 10_001.0,
    "kept_fraction": 0.5,
    "serve_bytes": 9_900.0,
    "test_auc": 0.7001,
    "test_logloss": 0.5,
}


def inject(scale: Scale, folder: Path) -> Tally:
    """Each fault once, or from three random requests on, ten times."""
    tally, draw = Tally(), random.Random(0)
    if importlib.util.find_spec("mlflow") is None:
        tally.gaps.append("MLflow is not installed")
        return tally
    logger = logging.getLogger("recsys_embed.tracking")
    level, slowest = logger.level, 0.0
    logger.setLevel(logging.CRITICAL)
    try:
        _job(folder, None, 0, tally)  # imports
        for turn in range(scale.of(1, 10)):
            for fault in ("absent", "hang", "500", "lost"):
                from_request = 1 if turn == 0 and fault != "lost" else draw.randrange(2, 12)
                slowest = max(slowest, _job(folder, fault, from_request, tally))
    finally:
        logger.setLevel(level)
    tally.notes.append(f"the slowest job waited {slowest:.1f} s for its tracking; a job logs {EPOCHS} epochs")
    return tally


def _job(folder: Path, fault: str | None, from_request: int, tally: Tally) -> float:
    """What a training logs while its server has a fault, and what the server has in the end; the seconds it took."""
    home, met = fresh(folder / "job"), [0]
    place = f"{fault} from request {from_request}"
    with contextlib.chdir(home), contextlib.ExitStack() as stack:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        server = None if fault == "absent" else stack.enter_context(Server.running(port))

        def broken(path: str, number: int) -> str | None:
            met[0] += number >= from_request
            return fault if number >= from_request else None

        if server is not None and fault is not None:
            server.fault = broken
        took = _logs(configured(tracking={"enabled": True, "uri": f"http://127.0.0.1:{port}", "experiment": "clicks"}))
        kept = any(home.glob("mlflow-pending/*"))
        if server is None:
            server = stack.enter_context(Server.running(port))
        server.fault = lambda path, number: None
        server.released.set()
        _ended()
        waiting = deliver()
        found = server.metrics()
    if fault is None:
        if found != _expected():
            tally.breach(f"a sound server does not get what is logged: {found}")
        return took
    fired = fault == "absent" or met[0] > 0
    tally.injected += fired
    tally.detected += fired and kept
    missing = len(_expected()) - len(set(found) & set(_expected()))
    if waiting or missing:
        tally.lost += 1
        tally.breach(f"{place}: {missing} metrics are lost, {waiting} entries still wait")
    elif found != _expected():
        tally.silent += 1
        tally.breach(f"{place}: the server has {len(found)} metrics instead of {len(_expected())}")
    else:
        tally.recovered += fired
    if took > SECONDS:
        tally.breach(f"{place}: tracking took {took:.1f} s")
    return took


def _ended() -> None:
    """Wait for what would have ended with the job's process: the thread that a server holds up keeps its files."""
    for thread in threading.enumerate():
        if thread.name == "recsys_embed.tracking":
            thread.join(60.0)


def _logs(config: Config) -> float:
    begin = time.perf_counter()
    tracker = Tracker(config, "train", job="train")
    for epoch in range(1, EPOCHS + 1):
        tracker.epoch({"epoch": epoch, "val_auc": epoch / 100})
    tracker.training(config, {**result_row(1, 0), "val_auc": FINAL["best_val_auc"], "error": ""}, nested=False)
    tracker.close()
    return time.perf_counter() - begin


def _expected() -> list[tuple[str, int, float]]:
    epochs = [("val_auc", epoch, epoch / 100) for epoch in range(1, EPOCHS + 1)]
    return sorted([*epochs, *((name, 0, value) for name, value in FINAL.items())])
