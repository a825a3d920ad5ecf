"""Where trials are kept: what opens, what is refused, and that no damage or rival costs a record."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.storages._rdb import models

from recsys_embed.errors import CheckpointError
from recsys_embed.search.journal import Journal, mend
from recsys_embed.search.storage import open_storage

NAME = "recsys_embed/optuna"


def begun(where: str, folder: Path) -> optuna.Study:
    """A study there, with three trials of two parameters, one of which has a name that is no ASCII."""
    study = optuna.create_study(storage=open_storage(where, folder), study_name=NAME, load_if_exists=True)
    for number in range(3):
        trial = study.ask()
        value = trial.suggest_float("größe", 0, 1) + trial.suggest_int("rows", 1, 9)
        study.tell(trial, value + number)
    return study


def plain(path: Path) -> optuna.Study:
    """The study of a journal as Optuna alone opens it."""
    backend = optuna.storages.journal.JournalFileBackend(str(path))
    return optuna.load_study(study_name=NAME, storage=optuna.storages.JournalStorage(backend))


def told(study: optuna.Study) -> list[Any]:
    return [(one.number, one.state, one.values, one.params) for one in study.trials]


# --- what opens, and what does not ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "file"),
    [
        ("sqlite", "out/trials.db"),
        ("journal", "out/trials.journal"),
        ("{}/shared/mine.log", "shared/mine.log"),
        ("sqlite:///{}/mine.db", "mine.db"),
    ],
)
def test_a_storage_is_where_it_was_asked_for_and_plain_optuna_reads_it(tmp_path: Path, where: str, file: str) -> None:
    study = begun(where.format(tmp_path), tmp_path / "out")
    path = tmp_path / file
    assert path.exists()
    again = optuna.load_study(study_name=NAME, storage=open_storage(where.format(tmp_path), tmp_path / "out"))
    if path.suffix == ".db":
        alone = optuna.load_study(study_name=NAME, storage=f"sqlite:///{path}")
    else:
        alone = plain(path)
    assert told(study) == told(again) == told(alone)
    assert len(study.trials) == 3


@pytest.mark.parametrize("where", ["sqlite:///{}/text.txt", "{}/text.txt", "{}", "{}/text.txt/trials.log"])
def test_what_is_no_storage_is_named_and_left_alone(tmp_path: Path, where: str) -> None:
    text = "user,item,clicked\n" * 400
    (tmp_path / "text.txt").write_text(text)
    with pytest.raises(CheckpointError, match=str(tmp_path)) as caught:
        open_storage(where.format(tmp_path), tmp_path)
    assert caught.value.file == where.format(tmp_path)
    assert (tmp_path / "text.txt").read_text() == text
    assert not list(tmp_path.glob("*torn*"))


@pytest.mark.parametrize(
    "where", ["nosql://me:secret@there/db", "postgresql+nothing://me:secret@there/db", "sqlite:/x://"]
)
def test_a_url_of_no_database_is_named_without_its_password(tmp_path: Path, where: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_storage(where, tmp_path)
    assert where.split("://", maxsplit=1)[0] in str(caught.value)
    assert "secret" not in str(caught.value)


def _opens(where: str, folder: Path, barrier: Any, errors: Any) -> None:
    barrier.wait()
    try:
        optuna.create_study(storage=open_storage(where, folder), study_name=NAME, load_if_exists=True)
        errors.put("")
    except Exception as error:
        errors.put(repr(error))


@pytest.mark.parametrize(("where", "turns"), [("sqlite", 1), ("journal", 5)])
def test_processes_that_open_it_at_one_moment_all_do(tmp_path: Path, where: str, turns: int) -> None:
    context = multiprocessing.get_context("fork")
    for turn in range(turns):
        barrier, errors = context.Barrier(4), context.Queue()
        arguments = (where, tmp_path / str(turn), barrier, errors)
        processes = [context.Process(target=_opens, args=arguments) for _ in range(4)]
        for process in processes:
            process.start()
        found = [errors.get(timeout=60) for _ in processes]
        for process in processes:
            process.join()
        assert found == [""] * 4


# --- rivals --------------------------------------------------------------------------------------------------


def test_two_workers_never_take_one_trial_of_a_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one asks while the first has read that the trial waits and not yet written that it took it."""
    one, other = (begun_empty("sqlite", tmp_path) for _ in range(2))
    one.enqueue_trial({})
    one.enqueue_trial({})
    between(monkeypatch, lambda: numbers.append(other.ask().number))
    numbers: list[int] = []
    first = one.ask().number
    joined()
    assert sorted([first, *numbers]) == [0, 1]


def test_nobody_gives_up_what_another_completes_at_that_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = (begun_empty("sqlite", tmp_path) for _ in range(2))
    trial, refused = one.ask(), list[str]()

    def give_up() -> None:
        try:
            other._storage.set_trial_state_values(trial._trial_id, state=optuna.trial.TrialState.FAIL)
        except optuna.exceptions.UpdateFinishedTrialError as error:
            refused.append(str(error))

    between(monkeypatch, give_up)
    one.tell(trial, 0.5)
    joined()
    assert refused
    assert [(one.state.name, one.values) for one in other.trials] == [("COMPLETE", [0.5])]


def begun_empty(where: str, folder: Path) -> optuna.Study:
    return optuna.create_study(storage=open_storage(where, folder), study_name=NAME, load_if_exists=True)


_RIVALS: list[threading.Thread] = []


def between(monkeypatch: pytest.MonkeyPatch, what: Callable[[], None]) -> None:
    """Let a rival act between the next read for a change and the change: for half a second, unless it has to wait."""
    read = models.TrialModel.find_or_raise_by_id
    _RIVALS.clear()

    def find(*arguments: Any, **options: Any) -> Any:
        found = read(*arguments, **options)
        if not _RIVALS:
            _RIVALS.append(threading.Thread(target=what))
            _RIVALS[0].start()
            _RIVALS[0].join(0.5)
        return found

    monkeypatch.setattr(models.TrialModel, "find_or_raise_by_id", find)


def joined() -> None:
    _RIVALS[0].join()


def _holds(path: Path, held: Any) -> None:
    journal = Journal(path, 5.0)
    journal._lock.acquire()
    held.set()
    signal.pause()


def test_a_lock_ends_with_the_process_that_held_it(tmp_path: Path) -> None:
    path = tmp_path / "trials.journal"
    context = multiprocessing.get_context("fork")
    held = context.Event()
    holder = context.Process(target=_holds, args=(path, held))
    holder.start()
    assert held.wait(60)
    with pytest.raises(CheckpointError, match=f"{path}: another process has held it for 0.1 seconds"):
        Journal(path, 0.1)
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    Journal(path, 0.1).append_logs([{"op_code": 0, "worker_id": "x", "study_name": NAME, "directions": [2]}])
    assert plain(path).trials == []


def test_plain_optuna_need_not_wait_for_a_lock_of_ours(tmp_path: Path) -> None:
    """It waits for half a minute where a file has the name of its own."""
    begun("journal", tmp_path)
    assert not os.path.lexists(tmp_path / "trials.journal.lock")


# --- a torn journal ------------------------------------------------------------------------------------------

GARBAGE = b"\x00\xff{]\r garbage"


def cut(share: float) -> Callable[[list[bytes]], tuple[bytes, list[bytes]]]:
    """The last record cut there, in shares of its length: the others are sound."""
    return lambda lines: (b"".join(lines[:-1]) + lines[-1][: int(len(lines[-1]) * share)], lines[:-1])


def cut_letter(lines: list[bytes]) -> tuple[bytes, list[bytes]]:
    """In the middle of a letter of two bytes: a journal that others write need not be ASCII."""
    letter = json.dumps({**json.loads(lines[-1]), "note": "größe"}, ensure_ascii=False).encode()
    return b"".join(lines) + letter[: letter.index(b"\xc3") + 1], lines


def merged(torn: float, place: int) -> Callable[[list[bytes]], tuple[bytes, list[bytes]]]:
    """A record torn, and the next in its line: the torn one is lost alone."""
    return lambda lines: (
        b"".join(lines[:place]) + lines[place][: int((len(lines[place]) - 1) * torn)] + b"".join(lines[place + 1 :]),
        lines[:place] + lines[place + 1 :],
    )


TORN: dict[str, Callable[[list[bytes]], tuple[bytes, list[bytes]]]] = {
    "one byte of a record": lambda lines: (b"".join(lines) + b"{", lines),
    "its first word": lambda lines: (b"".join(lines) + b'{"op_c', lines),
    "a quarter": cut(0.25),
    "half": cut(0.5),
    "all but seven bytes": lambda lines: (b"".join(lines)[:-7], lines[:-1]),
    "all but the newline": lambda lines: (b"".join(lines)[:-1], lines[:-1]),
    "in a letter": cut_letter,
    "a tail of zeros": lambda lines: (b"".join(lines) + bytes(4096), lines),
    "half, then zeros": lambda lines: (cut(0.5)(lines)[0] + bytes(512), lines[:-1]),
    "zeros, then a record": lambda lines: (b"".join(lines[:-1]) + bytes(512) + lines[-1], lines),
    "garbage at the end": lambda lines: (b"".join(lines) + GARBAGE + b"\n", lines),
    "garbage amid": lambda lines: (b"".join([*lines[:5], GARBAGE + b"\n", *lines[5:]]), lines),
    "an empty line": lambda lines: (b"".join([*lines[:5], b"\n", *lines[5:]]), lines),
    "a value that is no record": lambda lines: (b"".join([*lines, b'{"a": 1}\n', b"null\n", b"7\n"]), lines),
    "a record after half of one": merged(0.5, -2),
    "a record after one without its newline": merged(1.0, -2),
    "a record after a letter of one": merged(0.02, -2),
    "a first record that is torn": lambda lines: (lines[0][:20], []),
    "nothing but zeros": lambda lines: (bytes(100), []),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("whole")
    begun("journal", folder)
    return (folder / "trials.journal").read_bytes()


@pytest.mark.parametrize("damage", TORN)
def test_a_torn_journal_keeps_every_whole_record(tmp_path: Path, whole: bytes, damage: str) -> None:
    path = tmp_path / "trials.journal"
    torn, sound = TORN[damage](whole.splitlines(keepends=True))
    path.write_bytes(torn)
    copy = mend(path)
    assert copy is not None
    assert copy.read_bytes() == torn
    assert path.read_bytes() == b"".join(sound)
    # A second opening changes nothing, Optuna alone reads it, and the search goes on.
    open_storage(str(path), tmp_path)
    assert path.read_bytes() == b"".join(sound)
    kept = told(plain(path)) if sound else []
    study = begun(str(path), tmp_path)
    assert told(study)[: len(kept)] == kept
    assert told(plain(path)) == told(study)
    assert len(study.trials) == len(kept) + 3
    assert sorted(tmp_path.glob("*torn*")) == [copy]


def test_a_whole_journal_is_left_as_it_is(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "trials.journal"
    path.write_bytes(whole)
    before = path.stat().st_ino
    open_storage(str(path), tmp_path)
    assert mend(path) is None
    assert (path.read_bytes(), path.stat().st_ino) == (whole, before)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["trials.journal", "trials.journal.held"]


def test_every_torn_file_is_kept(tmp_path: Path, whole: bytes) -> None:
    path = tmp_path / "trials.journal"
    path.write_bytes(whole)
    files = []
    for turn in range(3):
        with path.open("ab") as file:
            file.write(b'{"op_code":4' + b"x" * turn)
        files.append(path.read_bytes())
        assert mend(path) is not None
    assert [one.read_bytes() for one in sorted(tmp_path.glob("*torn*"))] == files


def test_a_tail_that_is_torn_while_the_journal_is_open_costs_itself_alone(tmp_path: Path) -> None:
    """Another writer died in the middle of its record; this one, and a reader that was there, go on."""
    study, path = begun("journal", tmp_path), tmp_path / "trials.journal"
    reader = optuna.load_study(study_name=NAME, storage=open_storage("journal", tmp_path))
    before = told(study)
    with path.open("ab") as file:
        file.write(b'{"op_code":4,"worker_id":"another')
    study.enqueue_trial({"rows": 3})
    study.set_user_attr("more", 1)
    assert told(reader)[:-1] == told(plain(path))[:-1] == before
    assert len(reader.trials) == 4
    assert len(list(tmp_path.glob("*torn*"))) == 1


def test_a_record_for_which_there_is_no_room_leaves_the_journal_whole(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    study, path = begun("journal", tmp_path), tmp_path / "trials.journal"
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 40, hard))
    try:
        with pytest.raises(CheckpointError, match=r"trials.journal: cannot be written: .*") as caught:
            study.set_user_attr("more", "x" * 200)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert caught.value.file == str(path)
    assert path.read_bytes() == before
    study.set_user_attr("more", "y")
    assert plain(path).user_attrs == {"more": "y"}
