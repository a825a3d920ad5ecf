"""The compression study: every strategy at every budget with every seed, under one protocol.

A study is cut into cells. Each finished cell is on disk before the next begins, so that a study can be killed at any
moment and taken up again; a cell that fails, diverges or cannot fit is a row like any other. With ``study.tuning``
the cells as configured come first, then the trials, then the cells as tuned.

A cell's seed sets the initial weights of the tables and of the model and the order of the batches. It does not move the
hash functions (``embedding.hash_seed``): the spread over seeds is that of training, with the same ids colliding.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from recsys_embed import ranks
from recsys_embed.budget import ByteBudget, Plan, assign, plan
from recsys_embed.config import Config, FullConfig, StrategyNode
from recsys_embed.data import EncodedDataset, prepare
from recsys_embed.data.prepare import complete
from recsys_embed.errors import BudgetError, ConfigError, RecsysEmbedError
from recsys_embed.features import Feature
from recsys_embed.files import atomic_write
from recsys_embed.hashed import check_hashed
from recsys_embed.report.judge import JUDGED, judge_cell, judge_cell_by_path, judged
from recsys_embed.report.results import RESULTS, write_results
from recsys_embed.report.run import (
    LEDGER,
    RESULT,
    RUNS,
    Cell,
    finished,
    run_cell,
    run_cell_by_path,
    save_document,
    unfinished,
)
from recsys_embed.report.trials import TRIALS, write_trials
from recsys_embed.report.tuning import Tuning, contenders, proposals
from recsys_embed.report.workers import Document, in_processes
from recsys_embed.storage import FP32
from recsys_embed.tracking import Tracker
from recsys_embed.training.device import device_of
from recsys_embed.training.initial import check as check_initial

_LOG = logging.getLogger("recsys_embed")
DATA = "data"

PLANTED: dict[str, Any] = {
    "data": {"planted": {"rows": 300_000}},
    "model": {"name": "dcn_v2", "dim": 16, "hidden": [64, 32]},
    "training": {"batch_size": 2048, "epochs": 4, "patience": 1},
    "study": {
        "strategies": ["full", "hash", "unified", "compositional"],
        "budgets": [0.5, 0.1, 0.02],
        "seeds": [0, 1, 2],
        # A process a core: threads that share one small training wait for each other more than they help.
        "workers": min(4, os.cpu_count() or 1),
    },
}
"""The study of ``report --planted``: the main job on a machine that has nothing else."""


def expand(config: Config) -> list[Cell]:
    """The cells of a study. Full tables in fp32 ask for no budget: they are trained once per seed."""
    cells: dict[str, Cell] = {}
    for patterns in config.study.strategies:
        full = all(isinstance(node, FullConfig) and node.table_storage() == FP32 for node in patterns.values())
        for budget in (None,) if full else config.study.budgets:
            for seed in config.study.seeds:
                embedding = {"strategy": patterns, "budget": budget, "seed": seed}
                one = config.model_copy(
                    update={
                        "embedding": config.embedding.model_copy(update=embedding),
                        "training": config.training.model_copy(update={"seed": seed}),
                    }
                )
                cell = Cell(one, "" if budget is None else str(budget))
                cells.setdefault(cell.digest(""), cell)
    return list(cells.values())


def run_study(
    config: Config,
    out: str | Path,
    *,
    dataset: EncodedDataset | None = None,
    tracker: Tracker | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Train or reuse every cell; write ``results.csv``, ``predictions/``, ``runs/`` and ``config.toml`` into ``out``,
    and with ``study.tuning`` also ``trials.csv``.

    Returns the rows of ``results.csv``, in the order of the config, the tuned ones last. Runs are logged where
    ``config.tracking`` says, or by the ``tracker`` given; trials are not, but for their table, which a report logs.

    Raises:
        ConfigError, DataError: before anything was trained or written.
    """
    out = Path(out)
    check_study(config)
    dataset = dataset or prepare_into(config, out)
    cells = expand(config)
    for cell in cells:
        check_sizes(cell.config, dataset.features)
    own = tracker is None
    tracker = tracker or Tracker(config, f"report {dataset.name}", job="report")
    atomic_write(out / "config.toml", config.to_toml())
    study, status = Runs(config, dataset, out, tracker, progress), "KILLED"
    try:
        study.measure(cells)
        if config.study.tuning is None:
            (out / TRIALS).unlink(missing_ok=True)  # of a study with tuning in the same folder
        else:
            study.measure(*study.tune(cells))
        # Last, so that a study that is taken up again keeps the rows it had until then.
        write_results(out / RESULTS, study.rows())
        status = "FINISHED"
    finally:
        if own:
            tracker.close(status)
    return pd.DataFrame(study.rows())


@dataclass(frozen=True)
class Job:
    """What is done with a cell: in this process, in another one, and the name of the document that it leaves."""

    here: Callable[..., Document]
    there: Callable[..., Document]
    saves: str


class Runs:
    """A study under way: the cells so far, and the documents of those that are done.

    On several ranks all do the same, each cell together, and the first one writes and tracks.
    """

    def __init__(self, config: Config, dataset: EncodedDataset, out: Path, tracker: Tracker, progress: bool) -> None:
        self._config, self._dataset, self._out = config, dataset, out
        self._tracker, self._progress = tracker, progress
        self._cells: list[Cell] = []
        self._documents: dict[Cell, Document] = {}

    def rows(self) -> list[dict[str, Any]]:
        """The rows of ``results.csv`` so far."""
        return [self._documents[cell]["row"] for cell in self._cells if cell in self._documents]

    def measure(self, cells: Sequence[Cell], given: Mapping[Cell, Document] | None = None) -> None:
        """Train or reuse cells, to their rows in ``results.csv``; ``given`` are the documents of some of them."""
        self._cells += cells
        there = {cell: document for cell in cells if (document := finished(cell, self._dataset, self._out))}
        if ranks.count() > 1:  # files may reach the ranks' machines at different times
            known = ranks.told(json.dumps([cell in there for cell in cells]))
            there = {
                cell: there.get(cell, {}) for cell, is_there in zip(cells, json.loads(known), strict=True) if is_there
            }
        there |= given or {}
        if there and ranks.own() == 0:
            _LOG.info("%d of %d runs are there already", len(there), len(cells))
        self._documents |= there
        for cell, document in there.items():
            if ranks.own() == 0 and not document["row"]["mlflow_run_id"]:
                self._track(cell, document)
        todo = [cell for cell in cells if cell not in there]
        self._each(todo, Job(run_cell, run_cell_by_path, RESULT), self._measured)

    def tune(self, cells: Iterable[Cell]) -> tuple[list[Cell], dict[Cell, Document]]:
        """Run the trials of every strategy, budget and setting of the epochs, to ``trials.csv``.

        Returns:
            The cells to measure with what was chosen, and the documents of those that are lost without training.
        """
        seeds = tuple(dict.fromkeys(self._config.study.seeds))
        first = [cell for cell in cells if cell.seed == seeds[0]]
        impossible = [cell for cell in first if not feasible(cell.config, self._dataset.features)]
        tuning = Tuning(contenders(self._config, first, infeasible=impossible), self._dataset.fingerprint)
        for trial in tuning.trials:
            if document := judged(trial, self._dataset, self._out):
                tuning.add(trial, document)
        if tuning.count:
            _LOG.info("%d of %d trials are there already", tuning.count, len(tuning.trials))

        def done(trial: Cell, document: Document) -> None:
            tuning.add(trial, document)
            write_trials(self._out, tuning.rows())
            _LOG.info("trial %d/%d, %s: %s", tuning.count, len(tuning.trials), trial, _judgement(document["row"]))

        self._each(tuning.todo(), Job(judge_cell, judge_cell_by_path, JUDGED), done)
        write_trials(self._out, tuning.rows())
        chosen = tuning.chosen(seeds)
        lost = {cell: unfinished(cell, self._dataset, "failed", error) for cell, error in chosen.items() if error}
        for cell in lost:
            _LOG.warning("%s: %s", cell, chosen[cell])
        return list(chosen), lost

    def _each(self, cells: Sequence[Cell], job: Job, done: Callable[[Cell, Document], None]) -> None:
        """Do a job with cells, here or in worker processes."""
        workers = min(self._config.study.workers, len(cells)) if ranks.count() == 1 else 1
        if workers < 2:
            for cell in cells:
                done(cell, job.here(cell, self._dataset, self._out, progress=self._progress))
            return

        def died(cell: Cell) -> Document:
            document = unfinished(cell, self._dataset, "failed", "the process was killed (out of memory?)")
            save_document(self._out, document, job.saves)
            return document

        work = partial(job.there, dataset=self._dataset.path, out=self._out, checkpoints=True)
        in_processes(cells, workers, work, done=done, died=died)

    def _measured(self, cell: Cell, document: Document) -> None:
        self._documents[cell] = document
        if ranks.own():
            return
        write_results(self._out / RESULTS, self.rows())
        _LOG.info("%d/%d %s: %s", len(self._documents), len(self._cells), cell, _outcome(document["row"]))
        self._track(cell, document)

    def _track(self, cell: Cell, document: Document) -> None:
        row = document["row"]
        path = self._out / RUNS / row["run"] / LEDGER
        ledger = pd.read_csv(path) if path.exists() else None
        features = self._dataset.features
        history = document["history"]
        run = self._tracker.training(cell.config, row, history=history, ledger=ledger, features=features)
        row["mlflow_run_id"] = run or ""
        if row["mlflow_run_id"]:
            save_document(self._out, {**document, "row": {**row, "reused": False}})


def exit_code(rows: pd.DataFrame) -> int:
    """4 where a run failed or diverged, 0 otherwise; an infeasible budget is a result."""
    return 4 if rows["status"].isin(["failed", "diverged"]).any() else 0


def _outcome(row: dict[str, Any]) -> str:
    if row["status"] != "ok":
        return f"{row['status']} ({row['error']})"
    auc = "undefined" if row["test_auc"] is None else f"{row['test_auc']:.4f}"
    return f"test AUC {auc}, {row['serve_bytes']:,} bytes, {row['epochs']} epochs, {row['wall_seconds']:.1f} s"


def _judgement(row: dict[str, Any]) -> str:
    if row["status"] != "ok":
        return f"{row['status']} ({row['error']})"
    settings = row["protocol"]["training"], row["protocol"]["embedding"]
    told = f"tables_lr {settings[0]['optimizer']['tables_lr']:g}, decay {settings[1]['decay']:g}"
    return f"{told}: validation AUC {row['val_auc']:.4f}, {row['wall_seconds']:.1f} s"


# --- what can be refused before training ---------------------------------------------------------------------


def check_names(
    config: Config,
    strategies: Sequence[Mapping[str, StrategyNode]],
    budgets: Sequence[int | float | str | None] | None = None,
) -> None:
    """Check budgets, name patterns and exact features against the declared columns, before any data is read.

    Args:
        config: the whole run or study.
        strategies: that will be trained, each a strategy for every pattern.
        budgets: that each of them will have; by default the embedding's.

    Raises:
        ConfigError: the columns do not fit together, a budget is none, a pattern or a name fits no column, strategy or
            budget cannot be had of hashed features, or the device is not there.
    """
    device_of(config.training.device)
    for budget in (*config.study.budgets, config.embedding.budget):
        _parsed(budget)
    data = complete(config.data)
    names = data.feature_names
    features = [Feature(name, vocabulary=data.vocabulary.get(name), hashed=data.hashes(name)) for name in names]
    for patterns in strategies:
        assigned = assign(features, patterns)
        for budget in [config.embedding.budget] if budgets is None else budgets:
            check_hashed(assigned, patterns, _parsed(budget), config.embedding.exact)
    for name in config.embedding.exact or ():
        if name not in names:
            raise ConfigError(f"embedding.exact names {name!r}, which is no categorical column", path="embedding.exact")
    for name in config.embedding.initial:
        if name not in names:
            raise ConfigError(
                f"embedding.initial names {name!r}, which is no categorical column", path=f"embedding.initial.{name}"
            )
        if data.hashes(name):
            raise ConfigError(
                f"embedding.initial names {name!r}, which is hashed: no row is one id's alone",
                path=f"embedding.initial.{name}",
            )


def _parsed(budget: int | float | str | None) -> ByteBudget | None:
    return None if budget is None else ByteBudget.parse(budget)


def check_study(config: Config) -> None:
    """:func:`check_names` for a study, and that its trials can be drawn.

    Raises:
        ConfigError: see there; or what tuning needs is not installed.
    """
    check_names(config, config.study.strategies, config.study.budgets)
    if config.study.tuning is not None:
        proposals(config)


def sized(config: Config, features: Sequence[Feature]) -> Plan:
    """The embedding of a run, sized to its budget; nothing is allocated.

    Raises:
        ConfigError: the strategy cannot be built from these features at any size.
        BudgetError: no size fits the budget.
    """
    embedding = config.embedding
    return plan(
        features,
        config.model.dim,
        embedding.strategy,
        embedding.budget,
        exact=embedding.exact,
        hash_seed=embedding.hash_seed,
    )


def check_sizes(config: Config, features: Sequence[Feature], *, infeasible: bool = False) -> None:
    """Size a run's embedding without allocating it, and look whether it can begin with the vectors of its files.

    Raises:
        ConfigError: the strategy cannot be built from these features at any size, or its rows are no vectors.
        DataError: a file of vectors cannot be read, or its vectors have another width.
        BudgetError: no size fits the budget, if ``infeasible`` asks for it.
    """
    try:
        check_initial(sized(config, features).strategies, config.embedding.initial)
    except BudgetError:
        if infeasible:
            raise


def feasible(config: Config, features: Sequence[Feature]) -> bool:
    """Whether any size fits the budget."""
    try:
        sized(config, features)
    except BudgetError:
        return False
    return True


def prepare_into(config: Config, out: Path) -> EncodedDataset:
    """Encode the data into ``out/data``; bad input leaves no folder behind."""
    existed = out.exists()
    try:
        return prepare(config.data, out / DATA)
    except RecsysEmbedError:
        if not existed:
            _remove_empty(out)
        raise


def _remove_empty(folder: Path) -> None:
    for root, _, _ in os.walk(folder, topdown=False):
        try:
            os.rmdir(root)
        except OSError:
            return
