"""F7: SIGTERM and Ctrl-C at random moments of ``recsys-embed train``.

The command ends within ten seconds with 143 or 130 and a valid checkpoint; the same command goes on; the model folder
in the end equals, byte for byte, that of a run that never stopped. At the full scale the commands are tracked: a chain
has one run in MLflow, KILLED after each signal and FINISHED in the end.
"""

from __future__ import annotations

import contextlib
import random
import signal
import sqlite3
import time
from pathlib import Path

from bench.injections.artifacts import configured, model_sums, saved_steps, table
from bench.injections.children import command
from bench.injections.tally import Scale, Tally
from recsys_embed import jobs
from recsys_embed.training import checkpoints

PROMPT, STARTING = 10.0, 240.0


def inject(scale: Scale, folder: Path) -> Tally:
    """Signals in turn, one a command, in chains that end with a finished run."""
    # A shell's background job is started with Ctrl-C ignored, and so are the commands it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    tally, draw, wanted = Tally(), random.Random(0), scale.of(2, 20)
    rows, config, store = folder / "rows.csv", folder / "config.toml", folder / "runs.db"
    table(scale.of(4_000, 40_000)).to_csv(rows, index=False)
    built = configured(
        data={"path": str(rows)},
        training={"batch_size": 32, "epochs": 3, "checkpoint_steps": 20},
        tracking={"enabled": scale.name == "full", "uri": f"sqlite:///{store}"},
    )
    config.write_text(built.to_toml(), encoding="utf-8")
    jobs.train(built, folder / "whole", progress=False)
    steps, chain = _last_step(folder / "whole"), 0
    while tally.injected < wanted and chain < wanted:
        chain += 1
        out, left = folder / f"chain-{chain}", min(2 if scale.name == "quick" else 4, wanted - tally.injected)
        arguments, finished = ["train", config, "--out", out, "--quiet"], chain * ["FINISHED"]
        for _ in range(left):
            number = (signal.SIGTERM, signal.SIGINT)[tally.injected % 2]
            at = _last_step(out) + draw.uniform(0, 0.4) * (steps - _last_step(out))
            if not _stopped(arguments, out, number, at, draw.uniform(0, 0.1), tally):
                break
            if _runs(store) not in ([], [*finished, "KILLED"]):
                tally.breach(f"{number.name}: the runs of MLflow are {_runs(store)}")
        last = command(arguments)
        _, text = last.communicate()
        if last.returncode != 0:
            tally.lost += 1
            tally.breach(f"the same command does not go on: {text[-300:]}")
        elif model_sums(out) != model_sums(folder / "whole"):
            tally.silent += 1
            tally.breach("the model that went on is another one")
        if _runs(store) not in ([], [*finished, "FINISHED"]):
            tally.breach(f"the runs of MLflow are {_runs(store)} in the end")
    if tally.injected < wanted:
        tally.breach(f"{tally.injected} of {wanted} signals came before the command had finished")
    return tally


def _last_step(out: Path) -> int:
    return max((int(name.removeprefix("step-")) for name in saved_steps(out)), default=0)


def _runs(store: Path) -> list[str]:
    """The states of the runs in a store of MLflow; none where nothing was tracked."""
    if not store.exists():
        return []
    with contextlib.closing(sqlite3.connect(store)) as connection:
        return [state for (state,) in connection.execute("select status from runs order by start_time")]


def _stopped(arguments: list[object], out: Path, number: signal.Signals, at: float, delay: float, tally: Tally) -> bool:
    """Start the command, send the signal ``delay`` seconds after it has saved a step beyond ``at``, judge how it ended;
    False where it had finished."""
    process = command(arguments)
    begin = time.perf_counter()
    while _last_step(out) <= at and process.poll() is None and time.perf_counter() - begin < STARTING:
        time.sleep(0.01)
    time.sleep(delay)
    process.send_signal(number)
    sent = time.perf_counter()
    _, text = process.communicate()
    code = process.returncode
    took = time.perf_counter() - sent
    if code == 0:
        return False
    tally.injected += 1
    if code == 128 + number and "goes on" in text:
        tally.detected += 1
    else:
        tally.breach(f"{number.name}: ends with {code}: {text[-200:]}")
    if took > PROMPT:
        tally.breach(f"{number.name}: it took {took:.1f} s to end")
    folders = [one for one in (out / "checkpoints").glob("*") if one.is_dir()]
    found = checkpoints.newest(folders[0]) if folders else None
    tally.recovered += found is not None
    tally.lost += found is None
    return True
