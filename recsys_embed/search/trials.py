"""The trials of a sampled method: draw, train, report, stop early; by any number of workers, on any number of ranks."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recsys_embed import ranks
from recsys_embed.config import Config, OptimizerConfig
from recsys_embed.data import EncodedDataset
from recsys_embed.report.judge import Measure, judge_cell
from recsys_embed.report.run import Abandoned, Cell
from recsys_embed.search.measures import measure_allocation, measure_with_latency
from recsys_embed.search.samplers import draw_by, objectives
from recsys_embed.search.slots import FAILED, Pace, beating, fill, give_back, take
from recsys_embed.search.space import Recorder, Space, Suggests

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
        worker: 0 for the process that was started, more for those that it started.
        first: proposals to try before any is drawn.
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
        worker: int = 0,
        first: list[dict[str, Any]] | None = None,
        progress: bool = True,
    ) -> None:
        self._config, self._method, self._space, self._dataset, self._out = config, method, space, dataset, out
        self._study, self._worker, self._first, self._progress = study, worker, first, progress
        self._pace = Pace(beat=config.search.grace_seconds / 6, grace=config.search.grace_seconds)
        self._objectives = list(objectives(method, config.search))
        latency = "latency" in self._objectives
        self._measure: Measure = measure_with_latency if latency else measure_allocation

    def run(self, done: Callable[[], None] = lambda: None) -> None:
        """Take trials until every slot is over. ``done`` is called, on the first rank, after each of this worker's."""
        while True:
            with ranks.alone() as first:
                trial = self._next() if first else None
                asked = self._asked(trial) if trial is not None else ""
            asked = ranks.told(asked)
            if not asked:
                return
            cell = Cell(Config.model_validate_json(asked), str(self._config.embedding.budget))
            if trial is None or self._study is None:
                self._follow(cell)
                continue
            with beating(self._study, trial, self._pace), give_back(self._study, trial):
                self._lead(self._study, trial, cell)
            done()

    def _next(self) -> Trial | None:
        assert self._study is not None
        while fill(self._study, self._config.search.trials, self._pace, self._first):
            draw_by(self._study, self._method, self._config.search, self._worker)
            trial = take(self._study)
            if trial is not None:
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
        from optuna.trial import TrialState

        run = cell.digest(self._dataset.fingerprint)
        with ranks.alone():
            twin = self._twin(study, trial, run)
        ranks.told("train" if twin is None else "skip")
        trial.set_user_attr(RUN, run)
        if twin is not None:
            trial.set_user_attr(SAME, twin.number)
            row = {**twin.user_attrs[ROW], "samples_seen": 0, "wall_seconds": 0.0}
        else:
            row = self._trained(trial, cell)
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
        from optuna.exceptions import UpdateFinishedTrialError

        begin, lines = time.perf_counter(), list[dict[str, Any]]()

        def on_epoch(line: dict[str, Any]) -> None:
            lines.append(line)
            stop = False
            if len(self._objectives) == 1:  # Optuna takes no reports of several
                try:
                    trial.report(line["val_auc"], line["epoch"])
                    stop = trial.should_prune()
                except UpdateFinishedTrialError:
                    stop = True  # another worker gave it up
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
        row: dict[str, Any] = {name: document["row"].get(name) for name in _KEPT} | document.get("measured", {})
        return row | {"history": curve(document["history"])}

    def _judge(self, cell: Cell, on_epoch: Callable[[dict[str, Any]], None]) -> Mapping[str, Any] | None:
        with contextlib.suppress(Abandoned):
            return judge_cell(
                cell, self._dataset, self._out, progress=self._progress, on_epoch=on_epoch, measure=self._measure
            )
        return None

    def _twin(self, study: Study, trial: Trial, run: str) -> FrozenTrial | None:
        """An earlier trial of the same run: one that has ended, or will have when this returns."""
        from optuna.trial import TrialState

        while True:
            same = [
                other
                for other in study.get_trials(deepcopy=False)
                if other.user_attrs.get(RUN) == run and other.number < trial.number
            ]
            ended = [other for other in same if other.state in (TrialState.COMPLETE, TrialState.PRUNED)]
            if ended:
                return ended[0]
            if all(other.state != TrialState.RUNNING for other in same):
                return None
            fill(study, self._config.search.trials, self._pace)  # it may have died
            time.sleep(_POLL_SECONDS)
