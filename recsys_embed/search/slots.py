"""Which trials a search still owes: exactly as many as asked for, whoever dies on the way.

A search of n trials has n slots, numbered. A slot is a trial that waits in Optuna's queue until a worker takes it; what
the worker proposes is drawn then. A trial that dies with its worker is given up when its heartbeat stops, and its slot
is put into the queue again with the same proposal. So no trial is lost and none is counted twice, with any storage.

Optuna's own heartbeat is for databases only, and a trial whose worker dies before the first beat runs for ever.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

_LOG = logging.getLogger("recsys_embed")
SLOT, FAILED, SURPLUS, BEAT = "slot", "failed", "surplus", "recsys_embed:beat"
"""Attributes of a trial: its slot; why it failed by itself; that its slot was another's; when it was last alive."""

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


def fill(study: Study, count: int, pace: Pace, first: list[dict[str, Any]] | None = None) -> bool:
    """Give up trials without a sign of life and queue every slot that nobody has; whether any slot is still open.

    Several workers may do this at the same moment: a slot that got two trials is settled when the second is taken.

    Args:
        study: the search.
        count: how many slots it has.
        pace: when a trial is given up.
        first: proposals of the first slots; the others are drawn.
    """
    from optuna.exceptions import UpdateFinishedTrialError
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        if time.time() - _alive(trial) > pace.grace:
            with contextlib.suppress(UpdateFinishedTrialError):
                study._storage.set_trial_state_values(trial._trial_id, state=TrialState.FAIL)
    there = standing(study)
    for slot in range(count):
        died = there.get(slot)
        if died is None:
            wanted = dict(first[slot]) if first and slot < len(first) else {}
            study.enqueue_trial(wanted, user_attrs={SLOT: slot})
        elif died.state == TrialState.FAIL and FAILED not in died.user_attrs:
            tries = died.user_attrs.get("retries", 0) + 1
            if tries > MOST_RETRIES:
                # A finished trial takes no more attributes: that the slot is over is said by one more that failed.
                study.add_trial(_gave_up(died, slot))
            else:
                study.enqueue_trial(died.params, user_attrs={SLOT: slot, "retries": tries})
    return any(not is_over(trial) for slot, trial in standing(study).items() if slot < count)


def _gave_up(died: FrozenTrial, slot: int) -> FrozenTrial:
    from optuna.trial import TrialState, create_trial

    return create_trial(
        state=TrialState.FAIL,
        params=died.params,
        distributions=died.distributions,
        user_attrs={SLOT: slot, FAILED: f"its process died {MOST_RETRIES + 1} times (out of memory?)"},
    )


def take(study: Study) -> Trial | None:
    """A trial of the queue, to be run by this worker; None where there is none."""
    from optuna.trial import TrialState

    if not study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
        return None
    trial = study.ask()
    slot = trial.user_attrs.get(SLOT)
    others = (
        other
        for other in study.get_trials(deepcopy=False)
        if slot is not None and other.user_attrs.get(SLOT) == slot and other.number != trial.number
    )
    if slot is None or any(
        is_over(other) or (other.state == TrialState.RUNNING and other.number < trial.number) for other in others
    ):
        trial.set_user_attr(SURPLUS, True)  # two workers queued it, or took the last of the queue, at once
        study.tell(trial, state=TrialState.FAIL)
        return None
    return trial


@contextlib.contextmanager
def give_back(study: Study, trial: Trial) -> Iterator[None]:
    """Give a trial up at once where the block is interrupted or fails, so that nobody waits for its heartbeat to stop.
    Where another worker gave it up meanwhile, what the block found is left to that one's trial."""
    from optuna.exceptions import UpdateFinishedTrialError
    from optuna.trial import TrialState

    try:
        yield
    except UpdateFinishedTrialError:
        _LOG.warning("trial %d showed no sign of life for too long, and was given up while it ran", trial.number)
    except BaseException:
        with contextlib.suppress(Exception):
            study.tell(trial, state=TrialState.FAIL)
        raise


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
