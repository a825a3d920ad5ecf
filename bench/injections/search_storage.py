"""F12: what trials are kept in is torn, or held by somebody else.

A journal is cut at random places, as a killed writer or a full disk leaves it: it opens, every whole record is there,
the damaged file is kept, and plain Optuna reads what is left. In the middle of a search a writer tears it: the search
goes on in the same processes. It is torn again after the command was killed, which then is started again. During a
search over SQLite somebody else holds the database: nothing is lost and nobody says that it is locked.
"""

from __future__ import annotations

import random
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen

import optuna

from bench.injections.artifacts import configured, table
from bench.injections.children import command
from bench.injections.tally import Scale, Tally
from recsys_embed.search.slots import is_over, standing
from recsys_embed.search.storage import open_storage
from recsys_embed.search.table import read_search

STUDY, TORN = "recsys_embed/random", b'{"op_code":4,"worker_id":"a writer that was kil'
WAIT = 300.0


def inject(scale: Scale, folder: Path) -> Tally:
    """15 cuts; a search whose database is held for ten seconds (three); at full scale one whose journal is torn."""
    tally, trials, workers = Tally(), scale.of(3, 12), scale.of(1, 2)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    table(2_000).to_csv(folder / "rows.csv", index=False)
    _cuts(folder, 15, tally)
    _held(folder, trials, workers, scale.of(3, 10), tally)
    if scale.name == "full":
        _torn(folder, trials, workers, tally)
    return tally


# --- cuts ----------------------------------------------------------------------------------------------------


def _cuts(folder: Path, count: int, tally: Tally) -> None:
    path, draw = folder / "cut.journal", random.Random(0)
    _some_trials(path)
    whole = path.read_bytes()
    for turn in range(count):
        place = draw.randrange(1, len(whole))
        path = folder / f"cut-{turn}.journal"
        torn = whole[:place] + bytes(draw.choice((0, 0, 4096)))
        sound = whole[: whole.rfind(b"\n", 0, place) + 1]
        if torn == sound:
            continue
        path.write_bytes(torn)
        tally.injected += 1
        try:
            open_storage(str(path), folder)
            read = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))
            studies = len(read.get_all_studies())
        except Exception as error:
            tally.lost += 1
            tally.breach(f"cut at {place}: {type(error).__name__}: {error}")
            continue
        copies = [one.read_bytes() for one in folder.glob(f"{path.name}.torn-*")]
        tally.detected += copies == [torn]
        tally.recovered += path.read_bytes() == sound
        tally.lost += path.read_bytes() != sound or studies != (b"\n" in sound)
        if copies != [torn]:
            tally.breach(f"cut at {place}: the damaged file was not kept")


def _some_trials(path: Path) -> None:
    study = optuna.create_study(storage=open_storage(str(path), path.parent), study_name=STUDY)
    for value in range(5):
        trial = study.ask()
        trial.set_user_attr("row", {"größe": value})
        study.tell(trial, trial.suggest_float("width", 0, 1))


# --- in the middle of a search -------------------------------------------------------------------------------


def _torn(folder: Path, trials: int, workers: int, tally: Tally) -> None:
    """Torn while processes write to it, and once more while nobody does."""
    config, out = _config(folder, "journal", trials, workers), folder / "journal"
    path, process = out / "trials.journal", _start(config, out)

    def tear() -> None:
        with path.open("ab") as file:
            file.write(TORN)
        tally.injected += 1

    if _after(1, _journal(path), process):
        tear()
    before = len(_copies(path))
    if _after(2, _journal(path), process):
        tally.detected += len(_copies(path)) > before
        process.kill()
        process.communicate()
        tear()
        process = _start(config, out)
    _ends(process, out, _journal(path), trials, tally, "a torn journal")
    tally.detected += len(_copies(path)) == 2
    if len(_copies(path)) != 2 or not all(TORN in one.read_bytes() for one in _copies(path)):
        tally.breach(f"of a journal that was torn twice there are {len(_copies(path))} copies")


def _held(folder: Path, trials: int, workers: int, seconds: int, tally: Tally) -> None:
    config, out = _config(folder, "sqlite", trials, workers), folder / "sqlite"
    path, process = out / "trials.db", _start(config, out)
    if not _after(1, _database(path), process):
        tally.breach(f"no trial ended: {process.communicate()[1][-300:]}")
        return
    holder = sqlite3.connect(path, timeout=30, isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds:
        time.sleep(0.1)
    held = process.poll() is None
    holder.execute("ROLLBACK")
    holder.close()
    tally.injected += held
    text = _ends(process, out, _database(path), trials, tally, f"a database that was held for {seconds} s")
    if "locked" in text:
        tally.breach(f"somebody says that the database is locked: {text[-300:]}")


def _ends(
    process: Popen[str], out: Path, study: Callable[[], optuna.Study], trials: int, tally: Tally, what: str
) -> str:
    """Wait for the command, and count what it came to; what it said."""
    _, text = process.communicate(timeout=WAIT)
    over = {slot: trial.state.name for slot, trial in standing(study()).items() if is_over(trial)}
    rows = read_search(out)
    if process.returncode == 0 and over == dict.fromkeys(range(trials), "COMPLETE") and len(rows) == trials:
        tally.recovered += what.startswith("a torn") + 1
    else:
        tally.lost += 1
        tally.breach(f"{what}: exit code {process.returncode}, {over}, {len(rows)} rows: {text[-300:]}")
    retried = [one.number for one in study().trials if "retries" in one.user_attrs]
    tally.note(f"{what}: {trials} trials, {len(retried)} tried again")
    return text


def _config(folder: Path, storage: str, trials: int, workers: int) -> Path:
    search = {"methods": ["random"], "trials": trials, "workers": workers, "seeds": [0], "storage": storage}
    built = configured(
        data={"path": str(folder / "rows.csv")},
        training={"batch_size": 16, "epochs": 2},
        search={**search, "pruner": "none", "grace_seconds": 3.0},
    )
    path = folder / f"{storage}.toml"
    path.write_text(built.to_toml(), encoding="utf-8")
    return path


def _start(config: Path, out: Path) -> Popen[str]:
    return command(["search", config, "--out", out, "--quiet"])


def _after(count: int, study: Callable[[], optuna.Study], process: Popen[str]) -> bool:
    """Wait for so many complete trials; False where the command ends before, or takes too long."""
    begin = time.perf_counter()
    while process.poll() is None and time.perf_counter() - begin < WAIT:
        try:
            if sum(trial.state.name == "COMPLETE" for trial in study().trials) >= count:
                return True
        except Exception:  # not begun, or in the middle of it
            pass
        time.sleep(0.05)
    return False


def _journal(path: Path) -> Callable[[], optuna.Study]:
    """The study as plain Optuna opens it; it makes a file where there is none."""

    def study() -> optuna.Study:
        if not path.exists():
            raise FileNotFoundError(path)
        backend = optuna.storages.journal.JournalFileBackend(str(path))
        return optuna.load_study(study_name=STUDY, storage=optuna.storages.JournalStorage(backend))

    return study


def _database(path: Path) -> Callable[[], optuna.Study]:
    def study() -> optuna.Study:
        if not path.exists():
            raise FileNotFoundError(path)
        return optuna.load_study(study_name=STUDY, storage=f"sqlite:///{path}")

    return study


def _copies(path: Path) -> list[Path]:
    return sorted(path.parent.glob(f"{path.name}.torn-*"))
