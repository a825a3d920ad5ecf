"""The jobs behind the commands and the pipelines: a report, and a single training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from recsys_embed.config import Config
from recsys_embed.errors import BudgetError
from recsys_embed.export import export
from recsys_embed.features import Feature
from recsys_embed.files import atomic_write
from recsys_embed.report.run import Cell, Trained, train_and_measure
from recsys_embed.report.study import check_names, check_sizes, exit_code, expand, prepare_into, run_study, sized
from recsys_embed.tracking import Tracker


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
    check_names(config, config.study.strategies)
    dataset = prepare_into(config, out)
    tracker = Tracker(config, f"report {dataset.name}", job="report")
    status = "KILLED"
    try:
        results = run_study(config, out, dataset=dataset, tracker=tracker, progress=progress)
        from recsys_embed.report.page import write_page  # matplotlib and jinja2: not for a training alone

        page = write_page(out, budget=budget)
        tracker.artifacts([out / name for name in ("report.html", "report.md", "results.csv", "config.toml")])
        status = "FINISHED"
    finally:
        tracker.close(status)
    return Report(page, results, exit_code(results))


def train(config: Config, out: str | Path, *, progress: bool = True) -> tuple[Path, Trained]:
    """Prepare, train, evaluate, export into ``out/model``, track. The same call goes on with an interrupted training.

    Returns:
        The model folder, and the trained model with its measurements.

    Raises:
        BudgetError: no setting of the strategy fits the budget.
        DivergedError: a loss or gradient was not finite.
    """
    out = Path(out)
    check_names(config, [config.embedding.strategy])
    dataset = prepare_into(config, out)
    check_sizes(config, dataset.features, infeasible=True)
    cell = Cell(config, "" if config.embedding.budget is None else str(config.embedding.budget))
    tracker = Tracker(config, f"train {dataset.name} {cell.strategy}", job="train")
    # By the run's identity: another config's checkpoints are never taken up.
    checkpoints = out / "checkpoints" / cell.digest(dataset.fingerprint)
    status = "FAILED"
    try:
        atomic_write(out / "config.toml", config.to_toml())
        trained = train_and_measure(cell, dataset, checkpoints=checkpoints, progress=progress, on_epoch=tracker.epoch)
        model = export(trained.model, config, dataset.encoder, out / "model")
        tracker.training(config, trained.row, ledger=trained.ledger, features=dataset.features, nested=False)
        tracker.artifacts([model / "manifest.json"], tags={"recsys_embed.model": str(model.resolve())})
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        tracker.close(status)
    trained.row["mlflow_run_id"] = tracker.run_id or ""
    return model, trained


def fits(config: Config, features: Sequence[Feature]) -> list[dict[str, Any]]:
    """What every strategy of a study would be at every budget, without training or allocating it."""
    rows: list[dict[str, Any]] = []
    for cell in expand(config.model_copy(update={"study": config.study.model_copy(update={"seeds": (0,)})})):
        row: dict[str, Any] = {"strategy": str(cell).split(",")[0], "budget": cell.budget}
        try:
            fitted = sized(cell.config, features)
        except BudgetError as error:
            row |= {"status": "infeasible", "nearest_bytes": error.nearest_bytes}
        else:
            row |= {
                "status": "ok",
                "budget_bytes": fitted.budget_bytes,
                "serve_bytes": fitted.serve_bytes,
                "kept_fraction": fitted.serve_bytes / fitted.full_bytes,
                "coarse": fitted.coarse,
                "settings": fitted.settings,
            }
        rows.append(row)
    return rows
