"""Which trials a search still owes: exactly as many as asked for, whoever dies on the way.

A search of n trials has n slots, numbered. The first that nobody has is put into Optuna's queue, as a trial that waits
until a worker takes it; what the worker proposes is drawn then. A trial that dies with its worker is given up when its
heartbeat stops, and its slot is put into the queue again with the same proposal. So no trial is lost and none counts
twice, with any storage.

Optuna's own heartbeat is for databases only, and a trial whose worker dies before the first beat runs for ever.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

_LOG = logging.getLogger("recsys_embed")
SLOT, FAILED, SURPLUS, RETURNED, RETRIES = "slot", "failed", "surplus", "returned", "retries"
"""Attributes of a trial: its slot; why it failed by itself; that its slot was another's; that who ran it was asked to
stop; how many died before it in its slot."""
BEAT, FIRST = "recsys_embed:beat", "recsys_embed:first"
"""When a trial was last alive; of a study, the proposals of its first slots."""

MOST_RETRIES = 3
"""How often a slot is tried again after its worker died: a proposal that takes all memory kills every worker."""


@dataclass(frozen=True)
class Pace:
    """Seconds between two signs of life of a trial, and after how many without one it is given up.

    Both are long: a worker that is busy, or whose database is, must not be taken for dead.
    """

    beat: float = 30.0
    grace: float = 180.0


def standing(study: Study) -> dict[int, FrozenTrial]:
    """For each slot the trial that counts: one that finished, else one that runs or waits, else the last that died."""
    from optuna.trial import TrialState

    order = {
        TrialState.COMPLETE: 0,
        TrialState.PRUNED: 0,
        TrialState.FAIL: 3,
        TrialState.RUNNING: 1,
        TrialState.WAITING: 2,
    }
    found: dict[int, FrozenTrial] = {}

    def rank(trial: FrozenTrial) -> tuple[int, int]:
        over = trial.state == TrialState.FAIL and FAILED in trial.user_attrs
        return (0 if over else order[trial.state], -trial.number if order[trial.state] == 3 else trial.number)

    for trial in study.get_trials(deepcopy=False):
        slot = trial.user_attrs.get(SLOT)
        if slot is not None and SURPLUS not in trial.user_attrs:
            found[slot] = min(found.get(slot, trial), trial, key=rank)
    return found


def is_over(trial: FrozenTrial) -> bool:
    """Whether a slot's trial has ended for good: with a value, pruned, or failed by itself."""
    return trial.state.is_finished() and (trial.state.name != "FAIL" or FAILED in trial.user_attrs)


def fill(study: Study, count: int, pace: Pace) -> bool:
    """Give up trials without a sign of life, and queue a slot that nobody has if none waits; whether any is still open.

    Several workers may do this at the same moment: a slot that got two trials is settled when the second is taken.

    Args:
        study: the search.
        count: how many slots it has.
        pace: when a trial is given up.
    """
    from optuna.exceptions import UpdateFinishedTrialError
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if time.time() - _alive(trial) > pace.grace:
            with contextlib.suppress(UpdateFinishedTrialError):
                study._storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)
    there = standing(study)
    left = [slot for slot in range(count) if slot not in there or not is_over(there[slot])]
    nobodys = [slot for slot in left if slot not in there or there[slot].state == TrialState.FAIL]
    if nobodys and not any(slot in there and there[slot].state == TrialState.WAITING for slot in left):
        _queue(study, nobodys[0], there.get(nobodys[0]))
    return bool(left)


def _queue(study: Study, slot: int, died: FrozenTrial | None) -> None:
    """Have a slot tried, or tried again; one that died too often is over."""
    if died is None:
        first = study.user_attrs.get(FIRST, [])
        study.enqueue_trial(dict(first[slot]) if slot < len(first) else {}, user_attrs={SLOT: slot})
        return
    tries = died.user_attrs.get(RETRIES, 0) + (RETURNED not in died.user_attrs)
    if tries > MOST_RETRIES:
        # A finished trial takes no more attributes: that the slot is over is said by one more that failed.
        study.add_trial(_gave_up(died, slot))
    else:
        study.enqueue_trial(died.params, user_attrs={SLOT: slot, RETRIES: tries})


def _gave_up(died: FrozenTrial, slot: int) -> FrozenTrial:
    from optuna.trial import TrialState, create_trial

    return create_trial(
        state=TrialState.FAIL,
        params=died.params,
        distributions=died.distributions,
        user_attrs={SLOT: slot, FAILED: f"its process died {MOST_RETRIES + 1} times (out of memory?)"},
    )


def take(study: Study, count: int, draw: Callable[[int], None]) -> Trial | None:
    """A trial of the queue, to be run by this worker; None where there is none.

    ``draw`` is told its slot, and gives the study the sampler of what is not decided yet.
    """
    from optuna.exceptions import UpdateFinishedTrialError
    from optuna.trial import Trial, TrialState

    storage = study._storage
    for waiting in study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        slot, number = waiting.user_attrs.get(SLOT, count), waiting._trial_id
        with contextlib.suppress(UpdateFinishedTrialError):  # another took it, and has ended it
            if slot >= count or not storage.set_trial_state_values(number, state=TrialState.RUNNING):
                continue
            if _is_anothers(study, slot, waiting.number):
                storage.set_trial_user_attr(number, SURPLUS, True)
                storage.set_trial_state_values(number, state=TrialState.FAIL)
                continue
            draw(slot)
            study._thread_local.cached_all_trials = None  # as in Study.ask, which takes what it finds
            return Trial(study, number)
    return None


def _is_anothers(study: Study, slot: int, number: int) -> bool:
    """Whether a slot is over, or run by a trial of a lower number: two workers queued it at once."""
    return any(
        is_over(other) or (other.state.name == "RUNNING" and other.number < number)
        for other in study.get_trials(deepcopy=False)
        if other.user_attrs.get(SLOT) == slot and other.number != number
    )


@contextlib.contextmanager
def give_back(study: Study, trial: Trial) -> Iterator[None]:
    """Give a trial up at once where the block is interrupted or fails, so that nobody waits for its heartbeat to stop.
    Where another worker gave it up meanwhile, what the block found is left to that one's trial."""
    from optuna.exceptions import UpdateFinishedTrialError
    from optuna.trial import TrialState

    try:
        yield
    except BaseException as error:
        # Study.tell raises a ValueError.
        if isinstance(error, UpdateFinishedTrialError | ValueError) and _has_ended(study, trial):
            _LOG.warning("trial %d showed no sign of life for too long, and was given up while it ran", trial.number)
            return
        with contextlib.suppress(Exception):
            if not isinstance(error, Exception):
                trial.set_user_attr(RETURNED, True)
            study.tell(trial, state=TrialState.FAIL)
        raise


def _has_ended(study: Study, trial: Trial) -> bool:
    with contextlib.suppress(Exception):
        return study._storage.get_trial(trial._trial_id).state.is_finished()
    return False


@contextlib.contextmanager
def beating(study: Study, trial: Trial, pace: Pace) -> Iterator[None]:
    """Show, from a thread, that the trial's process is alive."""
    done = threading.Event()

    def beat() -> None:
        while True:
            # A database that is busy or away must not end a training: the next beat may pass.
            with contextlib.suppress(Exception):
                study._storage.set_trial_system_attr(trial._trial_id, BEAT, time.time())
            if done.wait(pace.beat):
                return

    thread = threading.Thread(target=beat, name="recsys_embed.search", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def _alive(trial: FrozenTrial) -> float:
    begun = trial.datetime_start
    return float(trial.system_attrs.get(BEAT, begun.timestamp() if begun is not None else 0.0))
