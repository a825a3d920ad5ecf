"""What the page says, computed: sections, cells, budgets, differences and the recommendation.

A section is one data set under one model; a cell is one method at one budget, with a run per seed. All numbers come
from ``results.csv`` and the predictions, and none depends on the order of the rows.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recsys_embed.budget import ByteBudget
from recsys_embed.config import STRATEGIES
from recsys_embed.errors import ConfigError, DataError
from recsys_embed.report.results import (
    BUCKETS,
    RESULTS,
    name_methods,
    options_of,
    predictions_path,
    read_predictions,
    read_results,
)
from recsys_embed.report.statistics import Draws, Interval, bootstrap_rows, draw_cells, resamples_for
from recsys_embed.report.trials import read_trials
from recsys_embed.search.choice import method_of, place_of, winner
from recsys_embed.search.table import read_search

FULL = "full"
_AUC_TOLERANCE = 5e-4
"""Between the AUC in results.csv and that of the stored scores, which are rounded to float32."""


@dataclass(frozen=True)
class Budget:
    """A budget as it was asked for; ``bytes`` where any run says what it came to."""

    text: str
    bytes: int | None
    kept: float | None


@dataclass(frozen=True, eq=False)
class Cell:
    """The runs of one method at one budget, in the order of their seeds. ``index`` is its row in the draws.

    ``name`` is the method without how it was tuned.
    """

    method: str
    name: str
    strategy: str
    options: str
    budget: str
    runs: pd.DataFrame = field(repr=False)
    index: int | None = None

    @cached_property
    def ok(self) -> pd.DataFrame:
        """The runs that ended well."""
        return self.runs[self.runs["status"] == "ok"]

    @property
    def found_by(self) -> str:
        """The find of a search that it is; empty where it is none."""
        return str(self.runs["found_by"].iloc[0])

    @property
    def family(self) -> str:
        """What figures give a colour to: the strategy, or of a find the method of the search."""
        return method_of(self.found_by) if self.found_by else self.strategy

    @cached_property
    def tuning(self) -> dict[str, Any]:
        """How its settings were found; empty where they are the user's own."""
        texts = [text for text in self.runs["tuning"] if text]
        return dict(json.loads(texts[0])) if texts else {}

    @cached_property
    def protocol(self) -> dict[str, Any]:
        """The protocol of its first run; empty where none is known."""
        text = self.runs["protocol"].iloc[0]
        return dict(json.loads(text)) if text else {}

    @property
    def uncompressed(self) -> bool:
        """Whether these are the full tables that everything is compared with; full in fewer bits has a budget."""
        return self.strategy == FULL and not self.budget

    @property
    def seeds(self) -> int:
        """How many runs ended well."""
        return len(self.ok)

    def mean(self, column: str) -> float:
        """Over the seeds for which the number is defined."""
        values = self._known(column)
        return float(values.mean()) if len(values) else float("nan")

    def median(self, column: str) -> float:
        """As :meth:`mean`: what a busy machine did to one run leaves it where it is."""
        values = self._known(column)
        return float(np.median(values)) if len(values) else float("nan")

    def sd(self, column: str) -> float:
        """The sample standard deviation over seeds; NaN with fewer than two."""
        values = self._known(column)
        return float(values.std(ddof=1)) if len(values) > 1 else float("nan")

    def _known(self, column: str) -> np.ndarray:
        values = self.ok[column].to_numpy(dtype=np.float64, na_value=np.nan)
        return np.asarray(values[np.isfinite(values)])

    @property
    def bytes(self) -> float:
        """Serving bytes."""
        return self.mean("serve_bytes")

    @property
    def auc(self) -> float:
        """Mean test AUC."""
        return self.mean("test_auc")

    @property
    def coarse(self) -> bool:
        """Whether the strategy's sizes left part of the budget unused."""
        return bool(self.ok["coarse"].any())

    @cached_property
    def parts(self) -> dict[str, float]:
        """Serving bytes by feature or part."""
        for text in self.ok["parts"]:
            if text:
                return {str(name): float(size) for name, size in json.loads(text).items()}
        return {}


@dataclass(frozen=True)
class Section:
    """One data set under one model. ``draws`` are the bootstrap's, of all test rows and of each bucket.

    Where settings were tuned, ``cells`` are the tuned ones and ``untuned`` those with the user's own settings, which
    are shown beside them and compared with nothing; ``trials`` is what tuning tried, ``search`` what a search did.
    """

    dataset: str
    fingerprint: str
    model: str
    dim: str
    cells: tuple[Cell, ...]
    budgets: tuple[Budget, ...]
    draws: dict[str, Draws] = field(repr=False)
    resamples: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    missing: tuple[str, ...] = ()
    untuned: tuple[Cell, ...] = ()
    trials: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False)
    search: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False)

    @cached_property
    def runs(self) -> pd.DataFrame:
        """The rows of all that is compared."""
        return pd.concat([cell.runs for cell in self.cells])

    @cached_property
    def all_runs(self) -> pd.DataFrame:
        """All rows, each with the name of its method."""
        return pd.concat([cell.runs.assign(method=cell.method) for cell in (*self.cells, *self.untuned)])

    @property
    def tuned(self) -> bool:
        """Whether it is tuned runs that are compared."""
        return any(cell.tuning for cell in self.cells)

    @property
    def searched(self) -> bool:
        """Whether these are finds of a search."""
        return any(cell.found_by for cell in self.cells)

    @property
    def noun(self) -> str:
        """What is compared."""
        return "method" if self.searched else "strategy"

    @cached_property
    def full(self) -> Cell | None:
        """The uncompressed tables, where a run of them ended well; of several, tuned with different settings of the
        epochs, the one with the highest mean validation AUC."""
        known = [cell for cell in self.cells if cell.uncompressed and cell.seeds]
        return max(known, key=lambda cell: np.nan_to_num(cell.mean("val_auc"))) if known else None

    @property
    def full_bytes(self) -> float:
        """Bytes of the full tables; NaN where no run says."""
        known = self.all_runs["full_bytes"].dropna()
        return float(known.max()) if len(known) else (self.full.bytes if self.full else float("nan"))

    @property
    def host_bytes(self) -> float:
        """Bytes of the vocabularies, which are beside every budget; NaN where no run says."""
        known = self.runs["host_bytes"].dropna()
        return float(known.max()) if len(known) else float("nan")

    @property
    def bayes(self) -> float:
        """The best AUC that the planted data allows; NaN for other data."""
        known = self.runs["bayes_auc"].dropna()
        return float(known.iloc[0]) if len(known) else float("nan")

    @property
    def seeds(self) -> int:
        """Seeds asked for."""
        return int(self.runs["seed"].nunique())

    @cached_property
    def methods(self) -> tuple[str, ...]:
        """Every method, full first, then in the order of the catalogue."""
        return tuple(dict.fromkeys(cell.method for cell in self.cells))

    def in_order(self) -> list[Cell]:
        """The cells that ended well: full, then by budget from large to small."""
        places = {budget.text: place for place, budget in enumerate(self.budgets)}
        trained = [cell for cell in self.cells if cell.seeds]
        return sorted(trained, key=lambda cell: (not cell.uncompressed, places.get(cell.budget, -1)))

    def at(self, budget: Budget) -> list[Cell]:
        """The cells asked for at a budget."""
        return [cell for cell in self.cells if cell.budget == budget.text and not cell.uncompressed]

    def chosen(self, budget: Budget, among: Sequence[Cell] | None = None) -> Cell | None:
        """The find that a search prefers at a budget, by validation alone; None of a study.

        ``among``: some of the cells; by default all that the budget could hold.
        """
        if among is None:
            among = [cell for cell in self.cells if cell.uncompressed or cell.budget == budget.text]
        found = {cell.found_by: cell for cell in among if cell.found_by}
        if not found or budget.bytes is None:
            return None
        runs = pd.concat([cell.runs for cell in found.values()])
        wanted = ("found_by", "status", "val_auc", "serve_bytes")
        name = winner([{key: row[key] for key in wanted} for row in runs.to_dict("records")], budget.bytes)
        return None if name is None else found[name]

    def untuned_like(self, cell: Cell) -> Cell | None:
        """The same strategy and budget with the user's own settings."""
        mine = (cell.name, cell.budget)
        return next((other for other in self.untuned if (other.name, other.budget) == mine), None)

    def trials_of(self, cell: Cell) -> pd.DataFrame:
        """What was tried for a tuned cell."""
        trials, wanted = self.trials, (cell.strategy, cell.budget, cell.tuning["epochs"])
        same = [
            (strategy, budget, epochs) == wanted and options_of(strategy, settings) == cell.options
            for strategy, budget, epochs, settings in zip(
                trials["strategy"], trials["budget_requested"], trials["epochs"], trials["settings"], strict=True
            )
        ]
        return trials.loc[np.array(same, dtype=bool)]

    def candidates(self, budget: Budget) -> list[Cell]:
        """What could serve within a budget: its cells that ended well, and full where it fits."""
        fits = self.full is not None and budget.bytes is not None and self.full.bytes <= budget.bytes
        return ([self.full] if fits and self.full else []) + [cell for cell in self.at(budget) if cell.seeds]

    def best(self, budget: Budget) -> Cell | None:
        """The candidate with the highest mean test AUC."""
        known = [cell for cell in self.candidates(budget) if not np.isnan(cell.auc)]
        return max(known, key=lambda cell: cell.auc) if known else None

    def difference(self, one: Cell, other: Cell, bucket: str = "") -> Interval:
        """Of mean AUC, on all rows or those of a bucket; without predictions an estimate alone."""
        column = f"auc_{bucket}" if bucket else "test_auc"
        draws = self.draws.get(bucket)
        if draws is None or one.index is None or other.index is None:
            return Interval(one.mean(column) - other.mean(column), float("nan"), float("nan"))
        return draws.difference(one.index, other.index)

    def ranks(self, budget: Budget) -> dict[str, tuple[int, int]]:
        """The ranks each candidate can hold, by method; empty without predictions."""
        cells = [cell for cell in self.candidates(budget) if cell.index is not None and not np.isnan(cell.auc)]
        if "" not in self.draws:
            return {}
        ranks = self.draws[""].ranks([cell.index for cell in cells if cell.index is not None])
        return {cell.method: rank for cell, rank in zip(cells, ranks, strict=True)}

    def like_best(self, budget: Budget) -> list[Cell]:
        """The candidates other than the best that are not distinguishable from it."""
        best = self.best(budget)
        if best is None:
            return []
        apart = [(cell, self.difference(cell, best)) for cell in self.candidates(budget) if cell is not best]
        return [cell for cell, gap in apart if gap.defined and gap.high >= 0]

    def pareto(self) -> list[Cell]:
        """The cells that no other beats in bytes and AUC at once."""
        known = [cell for cell in self.cells if cell.seeds and not np.isnan(cell.auc)]
        return [
            cell
            for cell in known
            if not any(
                other.bytes <= cell.bytes
                and other.auc >= cell.auc
                and (other.bytes < cell.bytes or other.auc > cell.auc)
                for other in known
            )
        ]

    def unfinished(self) -> pd.DataFrame:
        """Rows of the runs that were refused, failed or diverged, with the name of their method."""
        return self.all_runs[self.all_runs["status"] != "ok"]

    def find_budget(self, text: str) -> Budget | None:
        """The budget of the study that ``text`` means: as it was typed, or the same number of bytes."""
        for budget in self.budgets:
            if budget.text == text.strip():
                return budget
        try:
            wanted = ByteBudget.parse(text)
        except ConfigError:
            return None
        for budget in self.budgets:
            if wanted.kept is not None and budget.kept is not None and np.isclose(wanted.kept, budget.kept, rtol=1e-6):
                return budget
            if wanted.bytes is not None and wanted.bytes == budget.bytes:
                return budget
        return None

    def default_budget(self) -> Budget | None:
        """The smallest at which a method is within statistical reach of full; else the middle one."""
        if self.full is not None:
            for budget in reversed(self.budgets):
                for cell in self.at(budget):
                    gap = self.difference(cell, self.full)
                    if cell.seeds and gap.defined and gap.high >= 0:
                        return budget
        return self.budgets[len(self.budgets) // 2] if self.budgets else None


# --- reading -------------------------------------------------------------------------------------------------


def summarise(folder: str | Path, *, seed: int = 0) -> list[Section]:
    """Read a report's folder into its sections.

    Raises:
        DataError: ``results.csv`` or predictions are not what a study writes, or do not belong together.
    """
    folder = Path(folder)
    frame = read_results(folder / RESULTS)
    trials, search = (one.assign(dim=one["dim"].astype("str")) for one in (read_trials(folder), read_search(folder)))
    sections = []
    keys = ["dataset", "fingerprint", "model", "dim"]
    for key, runs in frame.assign(dim=frame["dim"].astype("str")).groupby(keys, sort=True, dropna=False):
        dataset, fingerprint, model, dim = (str(part) for part in key)
        cells, budgets = _cells(folder, runs.reset_index(drop=True))
        tuned = any(cell.tuning for cell in cells)
        section = Section(
            dataset,
            fingerprint,
            model,
            dim,
            _indexed([cell for cell in cells if bool(cell.tuning) == tuned]),
            budgets,
            draws={},
            untuned=tuple(cell for cell in cells if tuned and not cell.tuning),
            trials=trials[(trials[keys] == [dataset, fingerprint, model, dim]).all(axis=1)],
            search=_in_order(search[(search[keys] == [dataset, fingerprint, model, dim]).all(axis=1)]),
        )
        sections.append(_with_draws(folder, section, seed))
    return sections


def _in_order(search: pd.DataFrame) -> pd.DataFrame:
    """The trials by method, the simpler ones first, then in the order of their numbers."""
    places = [(place_of(method), trial) for method, trial in zip(search["method"], search["trial"], strict=True)]
    return search.iloc[sorted(range(len(search)), key=places.__getitem__)].reset_index(drop=True)


def _cells(folder: Path, runs: pd.DataFrame) -> tuple[list[Cell], tuple[Budget, ...]]:
    """The cells in the order of the catalogue, then from large budgets to small."""
    runs = runs.assign(method=name_methods(runs), name=name_methods(runs, tuned=False))
    budgets = _budgets(runs)
    order = {budget.text: place for place, budget in enumerate(budgets)}
    cells = []
    for key, mine in runs.groupby(["method", "name", "strategy", "budget_requested"], sort=False):
        method, name, strategy, budget = (str(part) for part in key)
        mine = mine.sort_values(["seed", "run"], kind="stable").drop(columns=["method", "name"])
        twice = mine["seed"][mine["seed"].duplicated()]
        if len(twice):
            raise DataError(
                f"two runs of {method} at budget {budget or 'none'} have the same seed",
                file=str(folder / RESULTS),
                column="seed",
                value=int(twice.iloc[0]),
            )
        # What tells finds apart is drawn: a strategy for each feature is no name.
        found = bool(mine["found_by"].iloc[0])
        options = "" if found else options_of(strategy, mine["settings"].iloc[0])
        cells.append(Cell(method, name, strategy, options, budget, mine))
    cells.sort(key=lambda cell: (_place(cell), order.get(cell.budget, -1)))
    return cells, budgets


def _indexed(cells: Sequence[Cell]) -> tuple[Cell, ...]:
    """Number the cells that have a result, as the draws do."""
    trained = [cell for cell in cells if cell.seeds]
    return tuple(replace(cell, index=trained.index(cell) if cell.seeds else None) for cell in cells)


def _with_draws(folder: Path, section: Section, seed: int) -> Section:
    """Run the bootstrap where the predictions of every run are there."""
    loaded = _predictions(folder, section.cells)
    stored = {run: scores for run, scores in loaded.items() if scores is not None}
    missing = tuple(run for run in loaded if run not in stored)
    if missing or not stored:
        return replace(section, missing=missing)
    first = next(iter(stored.values()))
    labels, buckets = first["label"], first["bucket"]
    subsets = [None, *(np.flatnonzero(buckets == place) for place in range(len(BUCKETS)))]
    resamples = resamples_for(len(labels), len(stored))
    scores = [one["score"] for one in stored.values()]
    aucs = bootstrap_rows(labels, scores, subsets, resamples=resamples, seed=seed, weights=first.get("weight"))

    runs = pd.concat([cell.ok.assign(owner=cell.index) for cell in section.cells if cell.seeds])
    for run, said, again in zip(runs["run"], runs["test_auc"].tolist(), aucs[0][:, 0].tolist(), strict=True):
        if abs(said - again) > _AUC_TOLERANCE:
            raise DataError(
                f"the stored scores have a test AUC of {again:.6f}, {RESULTS} says {said:.6f}",
                file=str(predictions_path(folder, run)),
            )
    owners, seeds = runs["owner"].astype("int64").tolist(), runs["seed"].astype("int64").tolist()
    draws = {name: draw_cells(auc, owners, seeds, seed=seed) for name, auc in zip(("", *BUCKETS), aucs, strict=True)}
    sizes = {name: int((buckets == place).sum()) for place, name in enumerate(BUCKETS)}
    return replace(section, draws=draws, resamples=resamples, rows={"test": len(labels), **sizes})


def _predictions(folder: Path, cells: Sequence[Cell]) -> dict[str, dict[str, np.ndarray] | None]:
    """Of every run that ended well; all of them on the same rows."""
    out: dict[str, dict[str, np.ndarray] | None] = {}
    first: dict[str, np.ndarray] | None = None
    for cell in cells:
        for run in cell.ok["run"]:
            scores = read_predictions(folder, run)
            out[run] = scores
            if scores is None:
                continue
            first = first or scores
            shared = sorted((first.keys() | scores.keys()) - {"score"})
            for column in shared:
                if not np.array_equal(first.get(column, ()), scores.get(column, ())):
                    raise DataError(
                        "differs between runs of the same data: they cannot be compared row by row",
                        file=str(predictions_path(folder, run)),
                        column=column,
                    )
            if scores is not first:
                scores.update({column: first[column] for column in shared})  # held once
    return out


def _budgets(runs: pd.DataFrame) -> tuple[Budget, ...]:
    """From large to small."""
    full = runs["full_bytes"].dropna()
    whole = int(full.max()) if len(full) else None
    out = []
    asked_for = runs[(runs["strategy"] != FULL) | (runs["budget_requested"] != "")]
    for text, mine in asked_for.groupby("budget_requested", sort=True):
        known = mine["budget_bytes"].dropna()
        size, kept = (int(known.max()) if len(known) else None), None
        with suppress(ConfigError):
            asked = ByteBudget.parse(str(text))
            kept = asked.kept
            if size is None:
                size = asked.bytes if whole is None else asked.resolve(full_bytes=whole)
        if kept is None and size is not None and whole is not None:
            kept = size / whole
        out.append(Budget(str(text), size, kept))
    return tuple(sorted(out, key=lambda budget: (-(budget.bytes or 0), -(budget.kept or 0.0), budget.text)))


def _place(cell: Cell) -> tuple[int, int, str, str]:
    """In the order of the catalogue, finds in that of the methods."""
    if cell.found_by:
        return (*place_of(cell.found_by), "")
    names = list(STRATEGIES)
    return (names.index(cell.strategy) if cell.strategy in names else len(names), 0, cell.strategy, cell.method)
