"""The jobs behind the commands and the pipelines: a report, and a single training."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from recsys_embed import ranks
from recsys_embed.collisions import collisions
from recsys_embed.config import Config, SearchConfig, TrackingConfig
from recsys_embed.data import EncodedDataset
from recsys_embed.errors import BudgetError, ConfigError
from recsys_embed.features import Feature
from recsys_embed.files import atomic_write
from recsys_embed.forgetting import Forgetting, forget, traces_beside
from recsys_embed.hashed import names_of
from recsys_embed.lanes import lay_out, specs_of
from recsys_embed.ledger import ledger
from recsys_embed.nightly import Night, continue_training
from recsys_embed.report.results import RESULTS
from recsys_embed.report.run import Trained
from recsys_embed.report.study import (
    DATA,
    check_names,
    check_sizes,
    check_study,
    exit_code,
    expand,
    prepare_into,
    run_study,
    sized,
)
from recsys_embed.report.trials import TRIALS
from recsys_embed.sharding import ShardingReport, check_rule, describe, memory_of, place
from recsys_embed.tables.base import UpdateRule
from recsys_embed.tracking import Tracker
from recsys_embed.train_into import train_into

__all__ = [
    "Forgetting",
    "Night",
    "Report",
    "Search",
    "continue_training",
    "fits",
    "forget",
    "plan",
    "report",
    "search",
    "traces_beside",
    "train",
]

_LOG = logging.getLogger("recsys_embed")
SHARDING, BEST = "sharding.json", "best.toml"


@dataclass(frozen=True)
class Report:
    """A finished report: the page, the rows behind it and the exit code they mean."""

    page: Path
    results: pd.DataFrame
    exit_code: int


def report(config: Config, out: str | Path, *, budget: str | None = None, progress: bool = True) -> Report:
    """Run the study, write its page, log both. ``budget`` is the one the page recommends for.

    Raises:
        ConfigError, DataError: before anything was trained or written.
    """
    out = Path(out)
    check_study(config)
    dataset = prepare_into(config, out)
    tracker = Tracker(config, f"report {dataset.name}", job="report")
    status = "KILLED"
    try:
        results = run_study(config, out, dataset=dataset, tracker=tracker, progress=progress)
        from recsys_embed.report.page import (  # matplotlib and jinja2: not for a training alone
            HTML,
            MARKDOWN,
            write_page,
        )

        page = write_page(out, budget=budget)
        tracker.artifacts([out / name for name in (HTML, MARKDOWN, RESULTS, TRIALS, "config.toml")])
        status = "FINISHED"
    finally:
        tracker.close(status)
    return Report(page, results, exit_code(results))


def train(config: Config, out: str | Path, *, progress: bool = True) -> tuple[Path, Trained]:
    """Prepare, train, evaluate, export into ``out/model``, track. The same call goes on with an interrupted training.

    On several ranks all of them call it with the same arguments. Every rank needs the files of the first: it alone
    prepares, writes, exports and tracks. The model that is returned then holds whole tables on every rank.

    Returns:
        The model folder, and the trained model with its measurements.

    Raises:
        BudgetError: no setting of the strategy fits the budget.
        ConfigError: before anything was prepared: a column that there is not, or an optimizer that several ranks
            cannot train tables by.
        DivergedError: a loss or gradient was not finite.
    """
    out = Path(out)
    check_names(config, [config.embedding.strategy])
    _check_optimizer(config)
    with ranks.alone() as first:
        dataset = prepare_into(config, out) if first else None
    dataset = dataset or EncodedDataset.open(out / DATA)
    check_sizes(config, dataset.features, infeasible=True)
    files = _write_plan(config, dataset, out) if first else []
    return train_into(config, dataset, out, files=files, progress=progress)


def _check_optimizer(config: Config) -> None:
    """Refuse an optimizer that several ranks cannot train tables by, before anything is prepared."""
    if ranks.count() > 1 and config.training.optimizer.tables != "adam":
        check_rule(config.training.optimizer.tables)


@dataclass(frozen=True)
class Search:
    """A finished search: the page (None where no method had a result to show), the rows behind it, the winner's config
    and model, and the exit code."""

    page: Path | None
    results: pd.DataFrame
    trials: pd.DataFrame
    best: Path | None
    model: Path | None
    exit_code: int


def search(config: Config, out: str | Path, *, progress: bool = True) -> Search:
    """Search widths and strategies within ``embedding.budget``; train and export the winner; write the page, log all.

    Selection reads no label of the test split. The winner's config is ``best.toml``, and ``best`` a folder as
    :func:`train` makes of it. On several ranks all of them call it, as with :func:`train`.

    Raises:
        ConfigError, DataError: before anything was trained; before anything was prepared where several ranks cannot
            train tables by the optimizer.
        BudgetError: no method fits the budget.
    """
    from recsys_embed.search.run import check_search, run_search  # Optuna: not for a training alone

    out = Path(out)
    check_search(config)
    _check_optimizer(config)
    with ranks.alone() as first:
        dataset = prepare_into(config, out) if first else None
    dataset = dataset or EncodedDataset.open(out / DATA)
    tracked = config if first else config.model_copy(update={"tracking": TrackingConfig(enabled=False)})
    tracker = Tracker(tracked, f"search {dataset.name}", job="search")
    page: Path | None = None
    model: Path | None = None
    status = "KILLED"
    try:
        if first:
            atomic_write(out / "config.toml", config.to_toml())
        found = run_search(config, out, dataset, tracker=tracker, progress=progress)
        if found.best is not None:
            plain = found.best.model_copy(update={"search": SearchConfig()})
            if first:
                atomic_write(out / BEST, plain.to_toml())
            untracked = plain.model_copy(update={"tracking": TrackingConfig(enabled=False)})
            model, _ = train(untracked, out / "best", progress=progress)
        if first:
            from recsys_embed.report.page import HTML, MARKDOWN, write_page
            from recsys_embed.search.table import SEARCH

            page = write_page(out) if len(found.results) else None
            tracker.artifacts([out / name for name in (HTML, MARKDOWN, RESULTS, SEARCH, BEST, "config.toml")])
        status = "FINISHED"
    finally:
        tracker.close(status)
    best = None if found.best is None else out / BEST
    code = max(exit_code(found.results), exit_code(found.trials), 4 if best is None else 0)
    return Search(page, found.results, found.trials, best, model, code)


def fits(config: Config, features: Sequence[Feature]) -> list[dict[str, Any]]:
    """What every strategy of a study would be at every budget, without training or allocating it.

    Returns:
        A row per strategy and budget: its sizes, its ledger of serving bytes, the smallest size that it has
        (``smallest_bytes``) and expected :func:`~recsys_embed.collisions.collisions`, or where features are hashed
        what is ``not_measured``; where the budget is too small, only the nearest and the smallest size.
    """
    rows: list[dict[str, Any]] = []
    for cell in expand(config.model_copy(update={"study": config.study.model_copy(update={"seeds": (0,)})})):
        row: dict[str, Any] = {"strategy": str(cell).split(", ")[0], "budget": cell.budget}
        try:
            fitted = sized(cell.config, features)
        except BudgetError as error:
            row |= {"status": "infeasible", "nearest_bytes": error.nearest_bytes}
        else:
            lines = ledger(fitted, None, lambda width: width)
            row |= {
                "status": "ok",
                "budget_bytes": fitted.budget_bytes,
                "serve_bytes": fitted.serve_bytes,
                "kept_fraction": fitted.share_of_full(fitted.serve_bytes),
                "coarse": fitted.coarse,
                "settings": fitted.settings,
                "ledger": lines[["part", "feature", "table", "rows", "width", "serve_bytes"]].to_dict("records"),
            }
            if hashed := names_of(features):
                row["not_measured"] = f"kept fraction and collisions: {hashed} are hashed, their ids are not counted"
            else:
                row["collisions"] = asdict(collisions(fitted.strategies))
        rows.append(row | {"smallest_bytes": _smallest(cell.config, features)})
    return rows


def _smallest(config: Config, features: Sequence[Feature]) -> int:
    embedding = config.embedding.model_copy(update={"budget": "1B"})
    try:
        return sized(config.model_copy(update={"embedding": embedding}), features).serve_bytes
    except BudgetError as error:
        return error.nearest_bytes


def _write_plan(config: Config, dataset: EncodedDataset, out: Path) -> list[Path]:
    """Say and write where the tables of this run lie; nothing where they are not sharded."""
    shards = ranks.count() > 1 or config.embedding.backend == "sharded"
    if not shards or config.training.optimizer.tables == "adam":
        return []
    report = _planned(config, dataset, ranks.count())
    _LOG.info("%s", report.text())
    atomic_write(out / SHARDING, json.dumps(report.document(), indent=1) + "\n")
    return [out / SHARDING]


def plan(config: Config, out: str | Path, *, world_size: int) -> ShardingReport:
    """Where the tables of a training would lie on some number of ranks, without these, and without training.

    Raises:
        BudgetError: no setting of the strategy fits the budget.
        ConfigError: a placement is impossible, or nothing would be sharded.
    """
    if config.training.optimizer.tables == "adam":
        raise ConfigError(
            "training.optimizer.tables = 'adam' keeps every table whole on every rank: there is nothing to plan",
            path="training.optimizer.tables",
        )
    check_names(config, [config.embedding.strategy])
    check_rule(config.training.optimizer.tables)
    return _planned(config, prepare_into(config, Path(out)), world_size)


def _planned(config: Config, dataset: EncodedDataset, world_size: int) -> ShardingReport:
    fitted = sized(config, dataset.features)
    strategies = list(fitted.strategies)
    _, groups = lay_out(strategies, dataset.features, decay=bool(config.embedding.decay))
    specs = specs_of(strategies)
    rule = UpdateRule(config.training.optimizer.tables)
    device = torch.device(config.training.device).type
    placements, _ = place(specs, groups, config.sharding, rule, world_size=world_size, device_type=device)
    memory = memory_of(config.sharding)
    return describe(placements, strategies, rule, world_size=world_size, device_memory=memory)
