"""F11: workers of a search are killed, and so is the command that started them.

One command, four processes on one study (two at the small scale). A victim among them is killed each time that some
more trials have ended; where it was the command itself, its workers end too, and the command is started again. In the
end there are as many trials as were asked for, none runs for ever, none counts twice, and what was complete before a
kill is so after it. A process that was not killed is there at the next kill.
"""

from __future__ import annotations

import contextlib
import random
import time
from pathlib import Path
from subprocess import Popen
from typing import Any

import optuna
import psutil

from bench.injections.artifacts import configured, table
from bench.injections.children import command
from bench.injections.tally import Scale, Tally
from recsys_embed.search.slots import SURPLUS, is_over, standing
from recsys_embed.search.table import read_search

GRACE, WAIT = 4.0, 300.0


def inject(scale: Scale, folder: Path) -> Tally:
    """Kill by turns, over a database and over a journal."""
    tally = Tally()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    table(3_000).to_csv(folder / "rows.csv", index=False)
    for storage in ("sqlite", "journal")[: scale.of(1, 2)]:
        _search(folder, storage, scale.of(2, 8), scale.of(6, 24), scale.of(2, 4), tally)
    return tally


def _search(folder: Path, storage: str, kills: int, trials: int, workers: int, tally: Tally) -> None:
    out, config = folder / storage, folder / f"{storage}.toml"
    search = {"methods": ["random"], "trials": trials, "workers": workers, "seeds": [0], "storage": storage}
    built = configured(
        data={"path": str(folder / "rows.csv")},
        training={"batch_size": 16, "epochs": 3},
        search={**search, "pruner": "none", "grace_seconds": GRACE},
    )
    config.write_text(built.to_toml(), encoding="utf-8")
    draw, process = random.Random(kills), _start(config, out)
    done: dict[int, list[float]] = {}
    left, killed = set[int](), 0
    for kill in range(kills):
        _until(out, storage, process, trials * (kill + 1) // (kills + 2))
        time.sleep(draw.uniform(0, 0.3))
        family = [process.pid, *(child.pid for child in _workers(process.pid))]
        if not left <= set(family):
            tally.breach(f"{storage}: {len(left - set(family))} processes ended that nobody killed")
        done |= _complete(out, storage)
        victim = draw.choice(family)
        try:
            psutil.Process(victim).kill()
        except psutil.NoSuchProcess:
            continue
        killed, left = killed + 1, set(family) - {victim}
        if victim == process.pid:
            process.communicate()
            process, left = _start(config, out), set()
    tally.injected += killed
    _, text = process.communicate()
    if process.returncode != 0:
        tally.breach(f"{storage}: the command ends with {process.returncode}: {text[-300:]}")
    _judge(out, storage, trials, done, killed, tally)


def _judge(out: Path, storage: str, trials: int, done: dict[int, list[float]], killed: int, tally: Tally) -> None:
    study = _study(out, storage)
    assert study is not None
    there = standing(study)
    over = [trial for trial in there.values() if is_over(trial)]
    open_ones = [one for one in study.trials if not one.state.is_finished() and SURPLUS not in one.user_attrs]
    rows = read_search(out)
    if sorted(there) != list(range(trials)) or len(over) != trials or len(rows) != trials:
        tally.lost += 1
        tally.breach(f"{storage}: {trials} trials asked for, {len(over)} ended, {len(rows)} rows")
    if open_ones:
        tally.breach(f"{storage}: {len(open_ones)} trials are stuck")
    if set(rows["status"]) != {"ok"}:
        tally.breach(f"{storage}: trials ended with {sorted(set(rows['status']))}")
    counted = [trial.number for trial in study.trials if trial.state.name == "COMPLETE"]
    if len(counted) > trials:
        tally.silent += 1
        tally.breach(f"{storage}: {len(counted)} complete trials, {trials} were asked for")
    after = {trial.number: trial.values for trial in study.trials}
    for number, values in done.items():
        if after.get(number) != values:
            tally.lost += 1
            tally.breach(f"{storage}: trial {number} was complete with {values} before a kill")
    retried = sum("retries" in trial.user_attrs for trial in study.trials)
    tally.recovered += killed
    tally.note(f"{storage}: {killed} kills, {retried} trials were tried again")


def _start(config: Path, out: Path) -> Popen[str]:
    return command(["search", config, "--out", out, "--quiet"])


def _workers(pid: int) -> list[psutil.Process]:
    """The processes that a command started to train: not the one that spawns looks after, nor those that are dead."""
    found = []
    with contextlib.suppress(psutil.NoSuchProcess):
        for one in psutil.Process(pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):  # a zombie has no command
                if "spawn_main" in " ".join(one.cmdline()):
                    found.append(one)
    return found


def _until(out: Path, storage: str, process: Popen[str], count: int) -> None:
    """Wait for so many complete trials, or for the end of the command."""
    begin = time.perf_counter()
    while len(_complete(out, storage)) < count and process.poll() is None and time.perf_counter() - begin < WAIT:
        time.sleep(0.1)


def _complete(out: Path, storage: str) -> dict[int, list[float]]:
    """The values of the trials that are complete."""
    study = _study(out, storage)
    trials: list[Any] = [] if study is None else study.trials
    return {trial.number: trial.values for trial in trials if trial.state.name == "COMPLETE"}


def _study(out: Path, storage: str) -> optuna.Study | None:
    """The study, opened by plain Optuna; None where it has not begun."""
    file = out / ("trials.db" if storage == "sqlite" else "trials.journal")
    if not file.exists():
        return None
    try:
        if storage == "sqlite":
            return optuna.load_study(study_name="recsys_embed/random", storage=f"sqlite:///{file}")
        backend = optuna.storages.journal.JournalFileBackend(str(file))
        return optuna.load_study(study_name="recsys_embed/random", storage=optuna.storages.JournalStorage(backend))
    except Exception:  # not written so far, or in the middle of it
        return None
