"""A search: every method under one budget, on validation alone; then its finds trained with several seeds.

All trials and finals are runs of the search's folder, as those of a study are: what is done is not done again when the
same command is started again.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from recsys_embed import ranks
from recsys_embed.config import Config, SearchConfig
from recsys_embed.data import EncodedDataset
from recsys_embed.data.prepare import complete
from recsys_embed.errors import BudgetError, ConfigError
from recsys_embed.files import try_lock, typed_errors
from recsys_embed.report.judge import JUDGED, judge_cell
from recsys_embed.report.results import RESULTS, write_results
from recsys_embed.report.run import Cell, describe, saved_document
from recsys_embed.report.study import Runs, check_names, sized
from recsys_embed.report.tuning import seeded
from recsys_embed.search.choice import find_name, front, winner
from recsys_embed.search.contenders import ONE_TRAINING, trained_once
from recsys_embed.search.measures import measure_allocation
from recsys_embed.search.samplers import open_study
from recsys_embed.search.slots import FIRST, is_over, standing
from recsys_embed.search.space import Space, check_choices
from recsys_embed.search.storage import optuna, storage_errors
from recsys_embed.search.table import write_search
from recsys_embed.search.trials import LEFT_OVER, ROW, RUN, SAME, Trials, curve, parameters, proposed
from recsys_embed.search.workers import helped
from recsys_embed.tracking import Tracker, best_trials

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

_LOG = logging.getLogger("recsys_embed")
METHOD, TRIAL, PARAMETERS = "search_method", "search_trial", "search_parameters"
"""Tags of a trial's run in MLflow."""
_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Found:
    """What a search ended with: the rows of ``results.csv`` and of ``search.csv``, and the winner's config."""

    results: pd.DataFrame
    trials: pd.DataFrame
    best: Config | None


def check_search(config: Config) -> None:
    """Check what can be, before any data is read.

    Raises:
        ConfigError: no budget, initial vectors, more workers on several ranks, or choices of strategies that are none;
            see :func:`~recsys_embed.report.study.check_names`.
        StackError: Optuna is needed, and missing.
    """
    data = complete(config.data)
    if hashed := [name for name in data.feature_names if data.hashes(name)]:
        raise ConfigError(
            f"a search divides the budget by how many ids there are and how frequent they are, and {', '.join(hashed)} "
            "have no vocabulary to say so",
            path="data.raw_hash",
        )
    if config.embedding.budget is None:
        raise ConfigError("a search needs a budget: set embedding.budget", path="embedding.budget")
    if config.embedding.initial:
        raise ConfigError(
            "a search tries strategies and widths whose rows are no vectors: embedding.initial is for train and report",
            path="embedding.initial",
        )
    if ranks.count() > 1 and config.search.workers > 1:
        raise ConfigError("search.workers is for one rank: several take part in every trial", path="search.workers")
    check_names(config, [{"*": node} for node in config.search.strategies])
    if any(method not in ONE_TRAINING for method in config.search.methods):
        check_choices(config.search.strategies)
        optuna()


def run_search(config: Config, out: Path, dataset: EncodedDataset, *, tracker: Tracker, progress: bool = True) -> Found:
    """Try every method, train the best with all seeds; write ``search.csv``, ``results.csv`` and ``runs/``.

    On several ranks all call it, and the first one writes.

    Raises:
        BudgetError: no method fits the budget.
        CheckpointError: the storage of trials failed, or cannot be opened.
        ConfigError: the storage has a study of another config; or nothing is left to search.
    """
    search = _Search(config, out, dataset, tracker, progress)
    for method in config.search.methods:
        if method in ONE_TRAINING:
            search.train_once(method)
        else:
            with storage_errors(config.search.storage, out):
                search.sample(method)
    return search.finish()


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A trial that ended well: its row, and the config that it stands for."""

    row: dict[str, Any]
    config: Config


class _Search:
    """A search under way."""

    def __init__(self, config: Config, out: Path, dataset: EncodedDataset, tracker: Tracker, progress: bool) -> None:
        self._config = seeded(config, config.search.seeds[0])
        self._out, self._dataset, self._tracker, self._progress = out, dataset, tracker, progress
        self._budget = str(config.embedding.budget)
        self._first = ranks.own() == 0
        sampled = any(method not in ONE_TRAINING for method in config.search.methods)
        self._space = Space.of(self._config, dataset.features) if sampled else None
        self._budget_bytes = _budget_bytes(self._config, dataset)
        self._rows: dict[str, list[dict[str, Any]]] = {}
        self._candidates: dict[str, list[_Candidate]] = {}
        self._proposals: dict[tuple[str, int], Config | None] = {}

    # --- methods of one training -----------------------------------------------------------------------------

    def train_once(self, method: str) -> None:
        """Judge a method that needs one training; a size that cannot be had is a row like any other."""
        config = trained_once(self._config, method)
        cell = Cell(config, "" if config.embedding.budget is None else self._budget)
        with _turn(self._out, self._first):
            document = judge_cell(cell, self._dataset, self._out, progress=self._progress, measure=measure_allocation)
        known = {name: document["row"].get(name) for name in ("val_auc", "serve_bytes", "error", *_COST)}
        row = self._described(cell, method, 1) | known | document.get("measured", {})
        row |= {"status": document["row"]["status"], "history": curve(document["history"])}
        if row["status"] == "ok" and config.embedding.budget is not None:
            row["left_over"] = self._budget_bytes - row["serve_bytes"]
        self._rows[method] = [row]
        self._candidates[method] = [_Candidate(row, config)] if row["status"] == "ok" else []
        if self._first:
            self._write()
            _LOG.info("%s: %s", method, _outcome(row))
            if not document["row"]["reused"]:
                self._track(cell, row)

    # --- sampled methods -------------------------------------------------------------------------------------

    def sample(self, method: str) -> None:
        """Run the trials of a method, together with whoever has joined."""
        assert self._space is not None
        config, study = self._config, None
        with ranks.alone() as is_first:
            if is_first:
                study = open_study(config, method, self._dataset.fingerprint, self._out)
                if config.search.warm_start and not study.get_trials(deepcopy=False):
                    study.set_user_attr(FIRST, self._earlier(method))
        trials = Trials(config, method, self._space, self._dataset, self._out, study, progress=self._progress)
        if study is None:
            trials.run()
            return
        seen: set[int] = set()
        self._sync(study, method, seen)
        with helped(config, method, self._dataset.path, self._out):
            trials.run(lambda: self._sync(study, method, seen))
        self._sync(study, method, seen)

    def _earlier(self, method: str) -> list[dict[str, Any]]:
        """The best parameters of earlier searches of the same space."""
        assert self._space is not None
        names = parameters(self._config, self._space, method)
        found = best_trials(self._config.tracking, PARAMETERS, names, self._config.search.warm_start)
        _LOG.info("%s begins with %d proposals of earlier searches", method, len(found))
        return found

    def _sync(self, study: Study, method: str, seen: set[int]) -> None:
        """Take over what all workers have finished: rows, log, tracking."""
        there = standing(study)
        rows, candidates = [], []
        numbers = {trial.number: slot + 1 for slot, trial in there.items()}
        for slot, trial in sorted(there.items()):
            if not is_over(trial) or slot >= self._config.search.trials:
                continue
            config = self._proposed(method, trial)
            cell = Cell(config, self._budget) if config is not None else None
            row = self._row(cell, method, slot + 1, trial, numbers)
            rows.append(row)
            if row["status"] == "ok" and config is not None:
                candidates.append(_Candidate(row, config))
            if slot not in seen:
                seen.add(slot)
                _LOG.info("%s %d/%d: %s", method, slot + 1, self._config.search.trials, _outcome(row))
                if not _logged(study, slot):
                    study.set_user_attr(f"{_LOGGED}{slot}", True)
                    if cell is not None:
                        self._track(cell, row)
        self._rows[method], self._candidates[method] = rows, candidates
        self._write()

    def _proposed(self, method: str, trial: FrozenTrial) -> Config | None:
        """The config of a trial; None where its process died before one was drawn."""
        from optuna.trial import FixedTrial

        assert self._space is not None
        key = (method, trial.number)
        if key not in self._proposals:
            self._proposals[key] = None
            with contextlib.suppress(ValueError):
                config, _ = proposed(self._config, self._space, method, FixedTrial(trial.params))
                self._proposals[key] = config
        return self._proposals[key]

    def _row(
        self, cell: Cell | None, method: str, number: int, trial: FrozenTrial, numbers: Mapping[int, int]
    ) -> dict[str, Any]:
        kept = dict(trial.user_attrs.get(ROW, {}))
        row = self._described(cell, method, number) | kept
        same = trial.user_attrs.get(SAME)
        row |= {
            "left_over": trial.user_attrs.get(LEFT_OVER),
            "same_as": None if same is None else numbers.get(same),
            "params": trial.params,
            "run": trial.user_attrs.get(RUN, ""),
        }
        if trial.state.name == "FAIL":
            row["status"] = kept.get("status", "failed")
            row["error"] = kept.get("error") or trial.user_attrs.get("failed", "")
        return row

    # --- what all methods share ------------------------------------------------------------------------------

    def _described(self, cell: Cell | None, method: str, number: int) -> dict[str, Any]:
        known = {} if cell is None else describe(cell, self._dataset)
        return {name: known.get(name) for name in ("dataset", "fingerprint", "model", "dim", "run")} | {
            "dataset": self._dataset.name,
            "fingerprint": self._dataset.fingerprint,
            "model": self._config.model.name,
            "dim": self._config.model.dim,
            "method": method,
            "trial": number,
            "budget_requested": self._budget,
            "budget_bytes": self._budget_bytes,
            "seed": self._config.training.seed,
            "params": {},
        }

    def _write(self) -> None:
        write_search(self._out, [row for rows in self._rows.values() for row in rows])

    def _track(self, cell: Cell, row: Mapping[str, Any]) -> None:
        """Log a trial as a run nested under the search's."""
        document = saved_document(cell, self._dataset, self._out, JUDGED) or {"history": []}
        known = describe(cell, self._dataset) | document.get("row", {})
        known |= {name: row[name] for name in ("val_auc", *_COST) if row.get(name) is not None}
        known |= {"status": row["status"], "error": row.get("error") or ""}
        self._tracker.training(
            cell.config,
            known,
            history=document["history"],
            name=f"{row['method']} {row['trial']}",
            labels={METHOD: row["method"], TRIAL: str(row["trial"]), PARAMETERS: json.dumps(row["params"])},
        )

    # --- the finals ------------------------------------------------------------------------------------------

    def finish(self) -> Found:
        """Train the best of every method with all seeds."""
        search = self._config.search
        chosen = self._agreed_finalists()
        infeasible = all(row["status"] == "infeasible" for rows in self._rows.values() for row in rows)
        if ranks.told("nothing fits" if infeasible else ""):
            raise _nothing_fits(self._config, self._dataset)
        cells = [
            Cell(seeded(config, seed), "" if config.embedding.budget is None else self._budget, found_by=name)
            for name, config in chosen.items()
            for seed in search.seeds
        ]
        study = self._config.study.model_copy(update={"workers": search.workers})
        runs = Runs(
            self._config.model_copy(update={"study": study}), self._dataset, self._out, self._tracker, self._progress
        )
        with _turn(self._out, self._first):
            runs.measure(cells)
        nothing = pd.DataFrame({"status": []})
        if not self._first:
            return Found(nothing, nothing, self._told(None))
        rows = runs.rows()
        write_results(self._out / RESULTS, rows)
        best = winner(rows, self._budget_bytes)
        trials = pd.DataFrame([row for one in self._rows.values() for row in one])
        return Found(
            pd.DataFrame(rows) if rows else nothing, trials, self._told(None if best is None else chosen[best])
        )

    def _agreed_finalists(self) -> dict[str, Config]:
        """The finalists of all methods by their names, the same on all ranks."""
        named: dict[str, Config] = {}
        for method, candidates in self._candidates.items():
            for one in _finalists(method, candidates, self._config.search):
                one.row["finalist"] = True
                several = self._config.search.finalists > 1 and method not in ONE_TRAINING
                named[find_name(method, one.row["trial"], several=several)] = one.config
        if self._first:
            self._write()
        told = ranks.told(json.dumps({name: config.model_dump(mode="json") for name, config in named.items()}))
        return {name: Config.model_validate(tree) for name, tree in json.loads(told).items()}

    def _told(self, best: Config | None) -> Config | None:
        """The winner, on all ranks."""
        text = ranks.told("" if best is None else json.dumps(best.model_dump(mode="json")))
        return Config.model_validate_json(text) if text else None


_COST = ("best_epoch", "epochs", "samples_seen", "wall_seconds")
_LOGGED = "recsys_embed:logged:"


def _logged(study: Study, slot: int) -> bool:
    return f"{_LOGGED}{slot}" in study.user_attrs


def _budget_bytes(config: Config, dataset: EncodedDataset) -> int:
    """The budget in bytes."""
    from recsys_embed.budget import ByteBudget, full_bytes

    assert config.embedding.budget is not None
    return ByteBudget.parse(config.embedding.budget).resolve(full_bytes=full_bytes(dataset.features, config.model.dim))


def _nothing_fits(config: Config, dataset: EncodedDataset) -> BudgetError:
    """The error of the method that comes nearest to the budget."""
    errors = []
    for method in config.search.methods:
        try:
            sized(trained_once(config, method), dataset.features)
        except BudgetError as error:
            errors.append(error)
    return min(errors, key=lambda error: error.nearest_bytes)


def _finalists(method: str, candidates: Sequence[_Candidate], search: SearchConfig) -> list[_Candidate]:
    """The trials with the highest validation AUC, or of a front the best and others spread over it; each find once."""
    once = {one.row["run"]: one for one in reversed(candidates)}.values()
    best = sorted(once, key=lambda one: (-one.row["val_auc"], one.row["serve_bytes"], one.row["trial"]))
    if method == "pareto":
        best = front(best, lambda one: float(one.row["serve_bytes"]))
        count = min(search.finalists, len(best))
        return [best[place * (len(best) - 1) // max(1, count - 1)] for place in range(count)]
    return best[: search.finalists]


def _outcome(row: Mapping[str, Any]) -> str:
    if row["status"] not in ("ok", "pruned"):
        return f"{row['status']} ({row['error']})"
    told = f"validation AUC {row['val_auc']:.4f}"
    if row.get("same_as"):
        return f"{told}, the same as trial {row['same_as']}"
    if row["status"] == "pruned":
        return f"stopped after {row['epochs']} epochs at {told}"
    return f"{told}, {row['serve_bytes']:,} bytes, {row['epochs']} epochs, {row['wall_seconds']:.1f} s"


@contextlib.contextmanager
def _turn(out: Path, first: bool) -> Iterator[None]:
    """Let one command at a time train in the block: another then finds what it needs."""
    if not first:
        yield
        return
    path = out / ".turn"
    with typed_errors(path):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        told = False
        while try_lock(descriptor) is False:
            if not told:
                _LOG.info("another command trains in %s; waiting for it", out)
                told = True
            time.sleep(_POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)
