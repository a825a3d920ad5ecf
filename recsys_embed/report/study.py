"""The compression study: every strategy at every budget with every seed, under one protocol.

A study is cut into cells. Each finished cell is on disk before the next begins, so that a study can be killed at any
moment and taken up again; a cell that fails, diverges or cannot fit is a row like any other.

A cell's seed sets the initial weights of the tables and of the model and the order of the batches. It does not move the
hash functions (``embedding.hash_seed``): the spread over seeds is that of training, with the same ids colliding.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from recsys_embed.budget import ByteBudget, Plan, assign, plan
from recsys_embed.config import Config, FullConfig, StrategyNode
from recsys_embed.data import EncodedDataset, prepare
from recsys_embed.data.prepare import complete
from recsys_embed.errors import BudgetError, ConfigError, RecsysEmbedError
from recsys_embed.features import Feature
from recsys_embed.files import atomic_write
from recsys_embed.report.results import RESULTS, write_results
from recsys_embed.report.run import (
    LEDGER,
    RUNS,
    Cell,
    finished,
    run_cell,
    run_cell_by_path,
    save_document,
    unfinished,
)
from recsys_embed.storage import FP32
from recsys_embed.tracking import Tracker
from recsys_embed.training.device import device_of

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
    """Train or reuse every cell; write ``results.csv``, ``predictions/``, ``runs/`` and ``config.toml`` into ``out``.

    Returns the rows of ``results.csv``, in the order of the config. Runs are logged where ``config.tracking`` says, or
    by the ``tracker`` given.

    Raises:
        ConfigError, DataError: before anything was trained or written.
    """
    out = Path(out)
    check_names(config, config.study.strategies)
    dataset = dataset or prepare_into(config, out)
    cells = expand(config)
    for cell in cells:
        check_sizes(cell.config, dataset.features)
    own = tracker is None
    tracker = tracker or Tracker(config, f"report {dataset.name}", job="report")
    atomic_write(out / "config.toml", config.to_toml())

    documents = {cell: document for cell in cells if (document := finished(cell, dataset, out))}
    todo = [cell for cell in cells if cell not in documents]
    if documents:
        _LOG.info("%d of %d runs are there already", len(documents), len(cells))

    def track(cell: Cell, document: dict[str, Any]) -> None:
        row = document["row"]
        row["mlflow_run_id"] = row["mlflow_run_id"] or _track(tracker, cell, document, out, dataset.features)
        if row["mlflow_run_id"]:
            save_document(out, {**document, "row": {**row, "reused": False}})

    def done(cell: Cell, document: dict[str, Any]) -> None:
        documents[cell] = document
        write_results(out / RESULTS, _rows(cells, documents))
        _LOG.info("%d/%d %s: %s", len(documents), len(cells), cell, _outcome(document["row"]))
        track(cell, document)

    status = "KILLED"
    try:
        for cell, document in documents.items():
            if not document["row"]["mlflow_run_id"]:
                track(cell, document)
        if config.study.workers == 1 or len(todo) < 2:
            for cell in todo:
                done(cell, run_cell(cell, dataset, out, progress=progress))
        else:
            _in_processes(todo, dataset, out, min(config.study.workers, len(todo)), done)
        write_results(out / RESULTS, _rows(cells, documents))
        status = "FINISHED"
    finally:
        if own:
            tracker.close(status)
    return pd.DataFrame(_rows(cells, documents))


def exit_code(rows: pd.DataFrame) -> int:
    """4 where a run failed or diverged, 0 otherwise; an infeasible budget is a result."""
    return 4 if rows["status"].isin(["failed", "diverged"]).any() else 0


def _rows(cells: Iterable[Cell], documents: dict[Cell, dict[str, Any]]) -> list[dict[str, Any]]:
    return [documents[cell]["row"] for cell in cells if cell in documents]


def _outcome(row: dict[str, Any]) -> str:
    if row["status"] != "ok":
        return f"{row['status']} ({row['error']})"
    auc = "undefined" if row["test_auc"] is None else f"{row['test_auc']:.4f}"
    return f"test AUC {auc}, {row['serve_bytes']:,} bytes, {row['epochs']} epochs, {row['wall_seconds']:.1f} s"


def _track(tracker: Tracker, cell: Cell, document: dict[str, Any], out: Path, features: Sequence[Feature]) -> str:
    row = document["row"]
    path = out / RUNS / row["run"] / LEDGER
    ledger = pd.read_csv(path) if path.exists() else None
    run = tracker.training(cell.config, row, history=document["history"], ledger=ledger, features=features)
    return run or ""


# --- what can be refused before training ---------------------------------------------------------------------


def check_names(config: Config, strategies: Sequence[Mapping[str, StrategyNode]]) -> None:
    """Check budgets, name patterns and exact features against the declared columns, before any data is read.

    Raises:
        ConfigError: the columns do not fit together, a budget is none, a pattern or a name fits no column, or the
            device is not there.
    """
    device_of(config.training.device)
    for budget in config.study.budgets:
        ByteBudget.parse(budget)
    if config.embedding.budget is not None:
        ByteBudget.parse(config.embedding.budget)
    data = complete(config.data)
    names = [*data.categorical, *data.multi_valued]
    features = [Feature(name, vocabulary=data.vocabulary.get(name)) for name in names]
    for patterns in strategies:
        assign(features, patterns)
    for name in config.embedding.exact or ():
        if name not in names:
            raise ConfigError(f"embedding.exact names {name!r}, which is no categorical column", path="embedding.exact")


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
    """Size a run's embedding without allocating it.

    Raises:
        ConfigError: the strategy cannot be built from these features at any size.
        BudgetError: no size fits the budget, if ``infeasible`` asks for it.
    """
    try:
        sized(config, features)
    except BudgetError:
        if infeasible:
            raise


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


# --- several processes ---------------------------------------------------------------------------------------


def _in_processes(
    cells: Sequence[Cell],
    dataset: EncodedDataset,
    out: Path,
    workers: int,
    done: Callable[[Cell, dict[str, Any]], None],
) -> None:
    """Run cells in worker processes. When one is killed, the pool breaks and nobody can say which cell did it: each
    that was running is tried once more alone, and the one that breaks its pool again is the one that failed."""
    work = partial(run_cell_by_path, dataset=dataset.path, out=out, checkpoints=True)
    todo = deque(cells)
    while todo:
        for suspect in _drain(todo, workers, workers, work, done):
            _LOG.warning("%s: its process died; once more, alone", suspect)
            if _drain(deque([suspect]), 1, workers, work, done):
                document = unfinished(suspect, dataset, "failed", "the process was killed (out of memory?)")
                save_document(out, document)
                done(suspect, document)


def _drain(
    todo: deque[Cell],
    processes: int,
    share: int,
    work: Callable[[Cell], dict[str, Any]],
    done: Callable[[Cell, dict[str, Any]], None],
) -> list[Cell]:
    """Run cells off ``todo`` until none is left or the pool breaks; return the cells that were lost with it."""
    threads = max(1, (os.cpu_count() or 1) // share)
    context = multiprocessing.get_context("spawn")
    lost: list[Cell] = []
    running: dict[Future[dict[str, Any]], Cell] = {}
    with ProcessPoolExecutor(processes, mp_context=context, initializer=_start_worker, initargs=(threads,)) as pool:
        try:
            while not lost and (todo or running):
                while todo and len(running) < processes:
                    cell = todo.popleft()
                    try:
                        running[pool.submit(work, cell)] = cell
                    except BrokenProcessPool:
                        lost.append(cell)
                        break
                ready, _ = wait(running, return_when=ALL_COMPLETED if lost else FIRST_COMPLETED)
                if any(isinstance(future.exception(), BrokenProcessPool) for future in ready):
                    ready, _ = wait(running)
                for future in ready:
                    cell = running.pop(future)
                    if isinstance(future.exception(), BrokenProcessPool):
                        lost.append(cell)
                    else:
                        done(cell, future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.terminate()
            raise
    return lost


def _start_worker(threads: int) -> None:
    """Divide the processors, and die with the parent: a pool's workers would otherwise wait for it for ever."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    torch.set_num_threads(threads)

    def follow() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
