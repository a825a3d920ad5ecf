"""The trials of a sampled method: draw, train, report, stop early; by any number of workers, on any number of ranks."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recsys_embed import ranks
from recsys_embed.config import Config, OptimizerConfig
from recsys_embed.data import EncodedDataset
from recsys_embed.files import try_lock, typed_errors
from recsys_embed.report.judge import Measure, judge_cell
from recsys_embed.report.run import RUNS, Abandoned, Cell
from recsys_embed.search.measures import measure_allocation, measure_with_latency
from recsys_embed.search.samplers import draw_by, objectives
from recsys_embed.search.slots import FAILED, Pace, beating, fill, give_back, take
from recsys_embed.search.space import Recorder, Space, Suggests
from recsys_embed.tracking.uris import reason
from recsys_embed.training.checkpoints import peek

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.trial import FrozenTrial

_LOG = logging.getLogger("recsys_embed")
RUN, SAME, ROW, LEFT_OVER = "run", "same_as", "row", "left_over"
"""Attributes of a trial: the run that it is; the earlier trial that is the same run; what was measured; bytes of the
budget that rounding left."""
_POLL_SECONDS = 1.0
_KEPT = ("serve_bytes", "best_epoch", "epochs", "samples_seen", "wall_seconds", "val_auc", "status", "error")


def proposed(config: Config, space: Space, method: str, trial: Suggests) -> tuple[Config, int]:
    """The config that a trial stands for, and the bytes of the budget that it leaves unused."""
    search = config.search
    budget = None
    if method == "pareto":
        share = trial.suggest_float("budget", search.smallest, 1.0, log=True)
        budget = max(space.least_bytes, int(share * space.budget_bytes))
    found = space.suggest(trial, budget)
    changes = {
        name: trial.suggest_float(name, *bounds, log=True)
        for name in ("tables_lr", "dense_lr")
        if (bounds := getattr(search, name)) is not None
    }
    optimizer: OptimizerConfig = config.training.optimizer.model_copy(update=changes)
    embedding = found.embedding
    if search.decay is not None:
        embedding = embedding.model_copy(update={"decay": trial.suggest_float("decay", *search.decay, log=True)})
    training = config.training.model_copy(update={"optimizer": optimizer})
    return config.model_copy(update={"embedding": embedding, "training": training}), found.left_over


def parameters(config: Config, space: Space, method: str) -> list[str]:
    """The names of what a trial is asked for."""
    asked = Recorder()
    proposed(config, space, method, asked)
    return asked.asked


def curve(history: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """The validation AUC after each epoch."""
    return {str(line["epoch"]): line["val_auc"] for line in history}


class Trials:
    """One worker's part in the trials of one method.

    Args:
        config: that of the search; with the seed that all trials have.
        space: where proposals come from.
        dataset: no label of its test split is read.
        out: the search's folder; every trial is a run in ``out/runs``.
        study: None on ranks other than the first.
    """

    def __init__(
        self,
        config: Config,
        method: str,
        space: Space,
        dataset: EncodedDataset,
        out: Path,
        study: Study | None,
        *,
        progress: bool = True,
    ) -> None:
        self._config, self._method, self._space, self._dataset, self._out = config, method, space, dataset, out
        self._study, self._progress = study, progress
        self._pace = Pace(beat=config.search.grace_seconds / 6, grace=config.search.grace_seconds)
        self._objectives = list(objectives(method, config.search))
        latency = "latency" in self._objectives
        self._measure: Measure = measure_with_latency if latency else measure_allocation

    def run(self, done: Callable[[], None] = lambda: None) -> None:
        """Take trials until every slot is over. ``done`` is called, on the first rank, after each of this worker's."""
        while True:
            with contextlib.ExitStack() as held:
                with ranks.alone() as first:
                    trial = self._next(held) if first else None
                    asked = self._asked(trial) if trial is not None else ""
                asked = ranks.told(asked)
                if not asked:
                    return
                cell = Cell(Config.model_validate_json(asked), str(self._config.embedding.budget))
                if trial is None or self._study is None:
                    self._follow(cell)
                else:
                    self._lead(self._study, trial, cell)
            if first:
                done()

    def _next(self, held: contextlib.ExitStack) -> Trial | None:
        """A trial, which is alive until ``held`` ends; None when all are over."""
        study, search = self._study, self._config.search
        assert study is not None
        while fill(study, search.trials, self._pace):
            trial = take(study, search.trials, lambda slot: draw_by(study, self._method, search, slot))
            if trial is not None:
                held.enter_context(beating(study, trial, self._pace))
                held.enter_context(give_back(study, trial))
                return trial
            time.sleep(_POLL_SECONDS)
        return None

    def _asked(self, trial: Trial) -> str:
        """The config to train, as text; "" is never one."""
        config, left_over = proposed(self._config, self._space, self._method, trial)
        trial.set_user_attr(LEFT_OVER, left_over)
        return json.dumps(config.model_dump(mode="json"))

    # --- one trial -------------------------------------------------------------------------------------------

    def _follow(self, cell: Cell) -> None:
        """Take part in a trial that the first rank leads."""

        def on_epoch(line: dict[str, Any]) -> None:
            if ranks.told(""):
                raise Abandoned

        with ranks.alone():
            pass  # whether another trial is the same
        if ranks.told("") == "train":
            self._judge(cell, on_epoch)

    def _lead(self, study: Study, trial: Trial, cell: Cell) -> None:
        """Train what was asked for, on all ranks, and tell the study."""
        from optuna.exceptions import UpdateFinishedTrialError

        run = cell.digest(self._dataset.fingerprint)
        with contextlib.ExitStack() as held:
            twin, lost = None, None
            with ranks.alone():
                try:
                    trial.set_user_attr(RUN, run)
                    twin = self._twin(study, trial, run, held)
                except UpdateFinishedTrialError as error:  # which the other ranks are to know
                    lost = error
            ranks.told("skip" if twin is not None or lost is not None else "train")
            if lost is not None:
                raise lost
            self._tell(study, trial, self._trained(trial, cell) if twin is None else self._taken_over(trial, twin))

    def _taken_over(self, trial: Trial, twin: FrozenTrial) -> dict[str, Any]:
        trial.set_user_attr(SAME, twin.number)
        return {**twin.user_attrs[ROW], "samples_seen": 0, "wall_seconds": 0.0}

    def _tell(self, study: Study, trial: Trial, row: dict[str, Any]) -> None:
        from optuna.trial import TrialState

        trial.set_user_attr(ROW, row)
        if row["status"] == "ok":
            study.tell(trial, [row[name] for name in self._objectives])
        elif row["status"] == "pruned":
            study.tell(trial, state=TrialState.PRUNED)
        else:
            trial.set_user_attr(FAILED, f"{row['status']}: {row['error']}")
            study.tell(trial, state=TrialState.FAIL)

    def _trained(self, trial: Trial, cell: Cell) -> dict[str, Any]:
        """What is kept of a trial, in plain values, with what was known where it was stopped early."""
        begin, lines = time.perf_counter(), self._saved_lines(cell)
        self._report(trial, lines)

        def on_epoch(line: dict[str, Any]) -> None:
            del lines[line["epoch"] - 1 :]  # of a newer checkpoint, which was not whole
            lines.append(line)
            stop = self._report(trial, [line])
            ranks.told("stop" if stop else "")
            if stop:
                raise Abandoned

        document = self._judge(cell, on_epoch)
        if document is None:
            return {
                "status": "pruned",
                "val_auc": max(line["val_auc"] for line in lines),
                "epochs": lines[-1]["epoch"],
                "samples_seen": lines[-1]["samples_seen"],
                "wall_seconds": time.perf_counter() - begin,
                "history": curve(lines),
            }
        self._report(trial, document["history"][len(lines) :])  # it was trained before, whole
        row: dict[str, Any] = {name: document["row"].get(name) for name in _KEPT} | document.get("measured", {})
        return row | {"history": curve(document["history"])}

    def _saved_lines(self, cell: Cell) -> list[dict[str, Any]]:
        """The epochs of a training that was interrupted, and is gone on with."""
        folder = self._out / RUNS / cell.digest(self._dataset.fingerprint)
        lines: list[dict[str, Any]] = peek(folder / "checkpoints").get("place", {}).get("history", [])
        return list(lines)

    def _report(self, trial: Trial, lines: Iterable[Mapping[str, Any]]) -> bool:
        """Tell the study how a trial comes along; whether it is to be stopped.

        A storage that is busy or away must not end a training: what it says is asked again after the next epoch.
        """
        from optuna.exceptions import UpdateFinishedTrialError

        if len(self._objectives) > 1:  # Optuna takes no reports of several
            return False
        try:
            for line in lines:
                trial.report(line["val_auc"], line["epoch"])
            return bool(trial.should_prune())
        except UpdateFinishedTrialError:
            return True  # another worker gave it up
        except Exception as error:
            _LOG.warning("the storage took no report of trial %d: %s", trial.number, reason(error))
            return False

    def _judge(self, cell: Cell, on_epoch: Callable[[dict[str, Any]], None]) -> Mapping[str, Any] | None:
        with contextlib.suppress(Abandoned):
            return judge_cell(
                cell, self._dataset, self._out, progress=self._progress, on_epoch=on_epoch, measure=self._measure
            )
        return None

    def _twin(self, study: Study, trial: Trial, run: str, held: contextlib.ExitStack) -> FrozenTrial | None:
        """Another trial of the same run, when it has ended well; None where there is none, and until ``held`` ends
        no other process of this machine begins with that run."""
        from optuna.trial import TrialState

        while True:
            with contextlib.ExitStack() as turn:
                mine = self._is_mine(run, turn)
                same = [
                    other
                    for other in study.get_trials(deepcopy=False)
                    if other.user_attrs.get(RUN) == run and other.number != trial.number
                ]
                ended = [other for other in same if other.state in (TrialState.COMPLETE, TrialState.PRUNED)]
                if ended:
                    return next(other for other in ended if SAME not in other.user_attrs)
                if mine and not any(o.state == TrialState.RUNNING and o.number < trial.number for o in same):
                    held.push(turn.pop_all())
                    return None
            fill(study, self._config.search.trials, self._pace)  # it may have died
            time.sleep(_POLL_SECONDS)

    def _is_mine(self, run: str, held: contextlib.ExitStack) -> bool:
        """Whether no other process is at a run; if so, none is until ``held`` ends."""
        folder = self._out / RUNS / run
        with typed_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(folder / ".turn", os.O_RDWR | os.O_CREAT)
        if try_lock(descriptor) is False:
            os.close(descriptor)
            return False
        held.callback(os.close, descriptor)
        return True
