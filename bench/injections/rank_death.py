"""F9: ranks under torchrun that are killed or stopped from outside, once their job has written a checkpoint.

A kill ends the job within fifteen seconds, or, with a restart to spare, the job goes on from its last checkpoint. A
rank that is stopped (SIGSTOP) is noticed within thirty seconds by the other, whose patience is twenty. No process is
left. The model folder in the end equals, byte for byte, that of a job that nobody disturbed.

A kill counts where the process was alive before and is not after it, a stop where the system says that it is stopped.
"""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

from bench.injections.artifacts import configured, model_sums, table
from bench.injections.forks import on_ranks
from bench.injections.tally import Scale, Tally
from bench.injections.torchrun import RANKS, Job
from recsys_embed import jobs
from recsys_embed.config import load_config

PROMPT, NOTICED, LONG = 15.0, 30.0, 300.0
KILL, STOP = signal.SIGKILL, signal.SIGSTOP

JOBS = {
    "full": ((0, (KILL,)), (0, (STOP,)), (1, (KILL,))),
    "quick": ((1, (KILL, STOP)), (0, ())),
}
"""One command again and again, until it has an end: how many restarts it has to spare, and what is done to it."""


def inject(scale: Scale, folder: Path) -> Tally:
    """Chains of jobs in one folder: five (one where quick)."""
    tally, draw = Tally(), random.Random(0)
    config = _config(scale, folder)
    for told in on_ranks(RANKS, _undisturbed, config, folder / "whole", seconds=LONG):
        if told.code or told.error:
            tally.breach(f"a job that nobody disturbs ends with {told.code}: {told.error} {told.text}")
            return tally
    for chain in range(scale.of(1, 5)):
        out, fired = folder / f"chain-{chain}", 0
        for restarts, faults in JOBS[scale.name]:
            job, sent = Job(config, out, restarts=restarts), time.perf_counter()
            for fault in faults:
                if not job.saves(draw.randrange(1, 4), LONG):
                    tally.breach(f"no checkpoint was written any more: {job.errors[-300:]}")
                    break
                time.sleep(draw.uniform(0, 0.2))  # anywhere in the steps that follow
                sent = time.perf_counter()
                fired += _disturbed(job, draw.randrange(RANKS), fault, tally, wake=scale.name == "quick" or chain > 0)
            code, took = job.ended(LONG), time.perf_counter() - sent
            for process in job.left():
                tally.breach(f"a process is left: {process.info['cmdline']}")
                process.kill()
            if len(faults) > restarts and (not code or (faults[-1] == KILL and took > PROMPT)):
                tally.breach(f"after {faults[-1].name} the job ended with {code}, after {took:.1f} s")
        tally.injected += fired
        if code != 0:
            tally.lost += 1
            tally.breach(f"the same command does not go on, it ends with {code}: {job.errors[-300:]}")
        elif model_sums(out) != model_sums(folder / "whole"):
            tally.silent += 1
            tally.breach("the model of the job that went on is another one")
        else:
            tally.recovered += fired
    tally.notes.append(
        "torchrun kills a stopped rank after thirty seconds more: only the first of the full scale is left to that, "
        "the others are woken once they were noticed"
    )
    return tally


def _undisturbed(config: Path, out: Path) -> None:
    jobs.train(load_config(config), out, progress=False)


def _disturbed(job: Job, rank: int, fault: signal.Signals, tally: Tally, *, wake: bool) -> bool:
    """Kill or stop a rank and hear what the other one says; whether it was killed or stopped."""
    victim = job.rank(rank)
    before = victim.status()
    victim.send_signal(fault)
    sent = time.perf_counter()
    said, limit = ("another rank has ended", PROMPT) if fault == KILL else ("another rank did not answer", NOTICED)
    noticed = job.heard(f"recsys-embed: rank {1 - rank}: {said}", limit)
    tally.detected += noticed is not None
    if noticed is None:
        tally.breach(f"{fault.name}: the other rank says nothing within {limit:g} s: {job.errors[-300:]}")
    elif fault == STOP:
        tally.note(f"a stopped rank was noticed after {noticed - sent:.1f} s")
    if fault == KILL:
        return before != "zombie" and (not victim.is_running() or victim.status() == "zombie")
    fired = bool(victim.status() == "stopped")
    if wake:
        victim.resume()
    return fired


def _config(scale: Scale, folder: Path) -> Path:
    """A job of some seconds; its rows lie on both ranks, or where quick whole on each, which needs no TorchRec."""
    rows, path = folder / "rows.csv", folder / "config.toml"
    table(scale.of(3_000, 40_000)).to_csv(rows, index=False)
    placement = {"*": "data_parallel"}
    if scale.name == "full":
        placement = {"user": "row_wise", "item": "table_wise", **placement}
    config = configured(
        data={"path": str(rows)},
        model={"dim": 6, "dropout": 0.1},
        training={"batch_size": 32, "epochs": 3, "checkpoint_steps": scale.of(10, 50)},
        sharding={"placement": placement, "replicate_below": 0, "timeout_seconds": scale.of(10, 20)},
    )
    path.write_text(config.to_toml(), encoding="utf-8")
    return path
