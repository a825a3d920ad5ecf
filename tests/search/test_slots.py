"""Exactly as many trials as were asked for, whoever dies, stalls or races for them; over a database and a journal."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from optuna.trial import TrialState

from recsys_embed.search import slots
from recsys_embed.search.slots import (
    FAILED,
    FIRST,
    MOST_RETRIES,
    RETRIES,
    SLOT,
    SURPLUS,
    Pace,
    beating,
    fill,
    give_back,
    is_over,
    standing,
    take,
)
from recsys_embed.search.storage import open_storage

Opened = Callable[[], optuna.Study]
PATIENT, HASTY = Pace(beat=30, grace=180), Pace(beat=0.02, grace=0.2)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty one: to make its tables takes most of a test."""
    folder = tmp_path_factory.mktemp("empty")
    open_storage("sqlite", folder)
    return folder / "trials.db"


@pytest.fixture(params=["sqlite", "journal"])
def opened(request: pytest.FixtureRequest, tmp_path: Path, database: Path) -> Opened:
    """A worker's own view of one study."""
    shutil.copy(database, tmp_path)
    return lambda: optuna.create_study(
        storage=open_storage(request.param, tmp_path), study_name="s", direction="maximize", load_if_exists=True
    )


def taken(study: optuna.Study, count: int, pace: Pace = PATIENT) -> optuna.Trial:
    """The trial that a worker begins, with what it draws."""
    assert fill(study, count, pace)
    trial = take(study, count, lambda slot: None)
    assert trial is not None
    trial.suggest_float("x", 0, 1)
    return trial


def completed(study: optuna.Study, count: int, pace: Pace = PATIENT) -> None:
    """Take and complete all that is left."""
    while fill(study, count, pace):
        trial = take(study, count, lambda slot: None)
        if trial is not None:
            study.tell(trial, trial.suggest_float("x", 0, 1))


def counted(study: optuna.Study) -> list[int]:
    """The slot of every trial that ended well."""
    ended = [one for one in study.trials if one.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    return sorted(one.user_attrs[SLOT] for one in ended)


def test_as_many_trials_as_asked_for_and_more_when_more_are(opened: Opened) -> None:
    study = opened()
    completed(study, 4)
    assert len(study.trials) == 4
    completed(opened(), 4)
    assert counted(study) == [0, 1, 2, 3]
    completed(opened(), 6)
    assert len(study.trials) == 6
    assert counted(study) == [0, 1, 2, 3, 4, 5]
    assert not fill(study, 3, PATIENT)  # fewer are asked for


def test_slots_are_drawn_in_their_order_and_with_their_number(opened: Opened) -> None:
    study, drawn = opened(), list[int]()
    while fill(study, 3, PATIENT):
        trial = take(study, 3, drawn.append)
        assert trial is not None
        study.tell(trial, 0.0)
    assert drawn == [0, 1, 2]


def test_the_first_slots_try_what_is_known_to_be_good(opened: Opened) -> None:
    study = opened()
    study.set_user_attr(FIRST, [{"x": 0.25}, {"x": 0.75}])
    completed(study, 3)
    found = [one.params["x"] for one in study.trials]
    assert found[:2] == [0.25, 0.75]
    assert found[2] not in found[:2]


# --- workers that die ----------------------------------------------------------------------------------------


def test_a_trial_without_a_sign_of_life_is_tried_again_with_the_same_proposal(opened: Opened) -> None:
    dead = taken(opened(), 2)
    other = opened()
    assert taken(other, 2).user_attrs[SLOT] == 1  # nobody waits for it
    assert fill(other, 2, PATIENT)
    assert take(other, 2, lambda slot: None) is None  # it may be alive
    time.sleep(0.25)
    again = taken(other, 2, HASTY)
    assert again.user_attrs == {SLOT: 0, RETRIES: 1}
    assert again.params == dead.params
    other.tell(again, 1.0)
    assert standing(other)[0].number == again.number


def test_a_slow_trial_whose_heart_beats_is_left_alone(opened: Opened) -> None:
    study, other = opened(), opened()
    trial = taken(study, 1, HASTY)
    with beating(study, trial, HASTY):
        for _ in range(4):
            time.sleep(0.15)  # in all, three times the grace
            assert fill(other, 1, HASTY)
            assert take(other, 1, lambda slot: None) is None
        study.tell(trial, 1.0)
    assert [one.state for one in other.trials] == [TrialState.COMPLETE]


def test_one_that_was_given_up_while_it_ran_is_not_counted_beside_its_second_try(opened: Opened) -> None:
    study, other = opened(), opened()
    slow = taken(study, 1)
    time.sleep(0.25)
    again = taken(other, 1, HASTY)
    with give_back(study, slow):
        study.tell(slow, 0.1)
    other.tell(again, 0.2)
    assert counted(other) == [0]
    assert standing(other)[0].values == [0.2]
    assert not fill(study, 1, PATIENT)


def test_a_proposal_that_kills_every_worker_is_given_up_and_stops_nobody(opened: Opened) -> None:
    study = opened()
    for tries in range(MOST_RETRIES + 1):
        assert taken(opened(), 3).user_attrs.get(RETRIES, 0) == tries
        for trial in study.get_trials(states=(TrialState.RUNNING,)):
            study._storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)
    completed(study, 3)
    assert counted(study) == [1, 2]
    lost = standing(study)[0]
    assert is_over(lost)
    assert "4 times" in lost.user_attrs[FAILED]
    assert lost.params == study.trials[0].params
    assert len(study.trials) == MOST_RETRIES + 1 + 1 + 2


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_who_is_asked_to_stop_gives_back_at_once_however_often(opened: Opened, stop: type[BaseException]) -> None:
    study, params = opened(), []
    for _ in range(2 * MOST_RETRIES):
        trial = taken(study, 1)
        params.append(trial.params)
        with pytest.raises(stop), beating(study, trial, PATIENT), give_back(study, trial):
            raise stop
        assert study.trials[-1].state == TrialState.FAIL
    completed(opened(), 1)
    assert counted(study) == [0]
    assert params == [study.trials[-1].params] * len(params)


def test_an_error_of_a_worker_is_a_try_of_its_slot(opened: Opened) -> None:
    study = opened()
    for _ in range(MOST_RETRIES + 1):
        trial = taken(study, 1)
        with pytest.raises(OSError, match="away"), give_back(study, trial):
            raise OSError("away")
    assert fill(study, 1, PATIENT)
    assert not fill(study, 1, PATIENT)
    assert FAILED in standing(study)[0].user_attrs


# --- workers that race ---------------------------------------------------------------------------------------


def test_a_slot_that_two_queue_at_once_is_counted_once(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = opened(), opened()
    queue = slots._queue

    def at_once(study: optuna.Study, slot: int, died: optuna.trial.FrozenTrial | None) -> None:
        monkeypatch.setattr(slots, "_queue", queue)
        assert fill(other, 2, PATIENT)  # nobody has queued anything so far
        queue(study, slot, died)

    monkeypatch.setattr(slots, "_queue", at_once)
    assert fill(one, 2, PATIENT)
    assert [trial.user_attrs[SLOT] for trial in one.trials] == [0, 0]
    first, second = (take(study, 2, lambda slot: None) for study in (one, other))
    assert first is not None
    assert second is None
    assert SURPLUS in one.trials[1].user_attrs
    one.tell(first, 1.0)
    completed(other, 2)
    assert counted(one) == [0, 1]


def test_one_that_is_taken_in_between_is_not_taken_again(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = opened(), opened()
    assert fill(one, 1, PATIENT)
    read, rivals = one.get_trials, []

    def late(*arguments: object, **options: object) -> list[optuna.trial.FrozenTrial]:
        found = read(*arguments, **options)  # type: ignore[arg-type]
        if not rivals:
            rivals.append(take(other, 1, lambda slot: None))
        return found

    monkeypatch.setattr(one, "get_trials", late)
    assert take(one, 1, lambda slot: None) is None
    assert rivals[0] is not None
    other.tell(rivals[0], 1.0)
    assert counted(one) == [0]


def test_what_others_queue_in_the_same_study_is_theirs(opened: Opened) -> None:
    study = opened()
    study.enqueue_trial({"x": 0.5})
    completed(study, 2)
    assert counted(study) == [0, 1]
    assert study.trials[0].state == TrialState.WAITING


class Workers(RuleBasedStateMachine):
    """Three workers on one study in memory, each of which queues, takes, ends, dies or stalls at any time."""

    COUNT, WORKERS = 3, st.integers(0, 2)

    def __init__(self) -> None:
        super().__init__()
        self.study = optuna.create_study(direction="maximize")
        self.running: dict[int, optuna.Trial] = {}
        self.dead: list[optuna.Trial] = []
        self.stalled: list[optuna.Trial] = []
        self.proposals: dict[int, set[float]] = {}

    def give_up(self, trial: optuna.Trial) -> None:
        """What :func:`fill` does to a trial without a sign of life."""
        self.study._storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)

    @rule(times=st.integers(1, 2))
    def queue(self, times: int) -> None:
        """Once, or twice at once: a second worker saw what the first one did."""
        seen = self.study.trials
        fill(self.study, self.COUNT, PATIENT)
        if times == 2 and len(self.study.trials) > len(seen) and self.study.trials[-1].state == TrialState.WAITING:
            last = self.study.trials[-1]
            self.study.enqueue_trial(last.system_attrs["fixed_params"], user_attrs=last.user_attrs)

    @rule(worker=WORKERS)
    def begin(self, worker: int) -> None:
        if worker not in self.running:
            trial = take(self.study, self.COUNT, lambda slot: None)
            if trial is not None:
                self.running[worker] = trial
                trial.suggest_float("x", 0, 1)

    @rule(worker=WORKERS, pruned=st.booleans())
    def end(self, worker: int, pruned: bool) -> None:
        if (trial := self.running.pop(worker, None)) is not None:
            self.study.tell(trial, None if pruned else 0.5, state=TrialState.PRUNED if pruned else TrialState.COMPLETE)

    @rule(worker=WORKERS)
    def die(self, worker: int) -> None:
        if (trial := self.running.pop(worker, None)) is not None:
            self.dead.append(trial)

    @rule(worker=WORKERS)
    def stall(self, worker: int) -> None:
        if (trial := self.running.pop(worker, None)) is not None:
            self.stalled.append(trial)

    @precondition(lambda self: self.dead)
    @rule()
    def notice(self) -> None:
        self.give_up(self.dead.pop())

    @precondition(lambda self: self.stalled)
    @rule()
    def wake(self) -> None:
        """One that was given up while it ran tells its value."""
        trial = self.stalled.pop()
        self.give_up(trial)
        with give_back(self.study, trial):
            self.study.tell(trial, 0.9)

    @invariant()
    def no_slot_counts_twice(self) -> None:
        ended = counted(self.study)
        assert ended == sorted(set(ended))
        assert len(self.study.get_trials(states=(TrialState.RUNNING,))) <= 3 + len(self.dead) + len(self.stalled)

    def teardown(self) -> None:
        """Whatever happened, a worker that is left does the rest."""
        for trial in (*self.running.values(), *self.dead, *self.stalled):
            self.give_up(trial)
        completed(self.study, self.COUNT)
        there = standing(self.study)
        assert sorted(there) == list(range(self.COUNT))
        assert all(is_over(trial) for trial in there.values())
        assert counted(self.study) == sorted(slot for slot in there if FAILED not in there[slot].user_attrs)


Workers.TestCase.settings = settings(max_examples=40, stateful_step_count=30)
TestWorkers = Workers.TestCase
