"""What a search tried, found and spent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from recsys_embed.report.figures.allocation import panels, weight_text
from recsys_embed.report.figures.importance import ranked
from recsys_embed.report.importance import BEST, importances, parameter_name
from recsys_embed.report.sizes import budget_name, format_bytes
from recsys_embed.report.summary import Budget, Cell, Section
from recsys_embed.report.tables.cells import Table, Text
from recsys_embed.report.tables.words import grouped, interval, number, percent, plural, signed, spread
from recsys_embed.search.choice import find_name, method_of
from recsys_embed.search.contenders import METHODS

BASELINES = ("uniform", "mde")
"""Methods that look at no label and train once: what a search has to be better than."""


def search_facts(section: Section) -> list[tuple[str, str]]:
    """What selects, and what was spent, as terms; empty where nothing was searched."""
    search = section.search
    if search.empty:
        return []
    facts = [("Choice", f"{_trials_by(search)} {_WINNER}")]
    spent = [plural(len(search), "trial"), f"{grouped(_total(search['samples_seen']))} samples seen"]
    spent.append(f"{grouped(round(float(search['wall_seconds'].sum())))} s of training")
    finals = f"; the finals {grouped(_total(section.runs['samples_seen']))} samples"
    facts.append(("Spent", ", ".join(spent) + finals))
    return facts


_WINNER = (
    "The winner is the find within the budget with the highest mean validation AUC over all seeds. No label of the "
    "test split is read before that."
)


def _trials_by(search: pd.DataFrame) -> str:
    seeds = search["seed"].dropna()
    with_seed = f" with seed {int(seeds.iloc[0])}" if len(seeds) else ""
    return f"Validation alone. Trials are judged by the validation AUC of one training{with_seed}, finds by all seeds."


def search_table(section: Section) -> Table | None:
    """Of each method what it tried and spent, its best trial, and its best find with all seeds."""
    search = section.search
    if search.empty:
        return None
    winners = [chosen for budget in section.budgets if (chosen := section.chosen(budget)) is not None]
    timed = bool(search["latency"].notna().any())
    rows, kinds = [], []
    for method, trials in search.groupby("method", sort=False):
        ok = trials[trials["status"] == "ok"]
        find = best_find(section, str(method))
        wins = find is not None and any(find is one for one in winners)
        row = [
            Text(str(method), tags=("chosen",) if wins else ()),
            Text(f"{len(trials)}", _outcomes(trials)),
            Text(grouped(_total(trials["samples_seen"]))),
            Text(f"{trials['wall_seconds'].sum():,.1f}"),
        ]
        if len(ok):
            first = ok.loc[ok["val_auc"].idxmax()]
            row.append(Text(number(first["val_auc"]), f"trial {first['trial']}" if len(trials) > 1 else ""))
            row.append(Text("–" if pd.isna(first["left_over"]) else format_bytes(float(first["left_over"]))))
            row += [Text("–" if pd.isna(first["latency"]) else f"{first['latency']:,.0f}")] if timed else []
        else:
            row += [Text("–")] * (3 if timed else 2)
        row += [Text("–")] * 3 if find is None else _final(find, str(method))
        rows.append(tuple(row))
        kinds.append("best" if wins else "" if len(ok) else "absent")
    columns = ["method", "trials", "samples seen", "seconds", "best val AUC, one seed", "left over by rounding"]
    columns += ["µs/row"] if timed else []
    columns += ["val AUC, all seeds", "test AUC", "serving bytes"]
    return Table(tuple(columns), tuple(rows), 1, tuple(kinds))


def best_find(section: Section, method: str) -> Cell | None:
    """The find of a method with the highest mean validation AUC, one within its budget before one that is not."""
    limits = {budget.text: budget.bytes or float("inf") for budget in section.budgets}
    cells = [cell for cell in section.cells if cell.found_by and method_of(cell.found_by) == method and cell.seeds]
    known = [cell for cell in cells if not np.isnan(cell.mean("val_auc"))]

    def rank(cell: Cell) -> tuple[bool, bool, float, float]:
        fits = cell.bytes <= limits.get(cell.budget, float("inf"))
        return fits, cell.seeds == len(cell.runs), cell.mean("val_auc"), -cell.bytes

    return max(known, key=rank) if known else None


def _final(find: Cell, method: str) -> list[Text]:
    told = "" if find.found_by == method else find.found_by.removeprefix(f"{method}, ")
    val = spread(find, "val_auc")
    return [
        Text(val.main, "\n".join(part for part in (val.sub, told) if part)),
        spread(find, "test_auc"),
        Text(format_bytes(find.bytes)),
    ]


def _outcomes(trials: pd.DataFrame) -> str:
    """How the trials ended, where not all were trained to the end; they add up."""
    same = trials["same_as"].notna()
    lost = ~trials["status"].isin(["ok", "pruned"])
    counts = {
        "complete": int(((trials["status"] == "ok") & ~same).sum()),
        "pruned": int(((trials["status"] == "pruned") & ~same).sum()),
        "same as another": int((same & ~lost).sum()),
        **{status: int((trials["status"] == status).sum()) for status in sorted(set(trials["status"][lost]))},
    }
    if counts["complete"] == len(trials):
        return ""
    return "\n".join(f"{count} {what}" for what, count in counts.items() if count)


def _total(values: pd.Series[Any]) -> int:
    return int(values.sum())


def search_notices(section: Section) -> list[str]:
    """What selects, and where a simple baseline is as good as the search, of a section of finds."""
    if not section.searched:
        return []
    out = [f"Validation alone selects: {_chosen(section)}. Test AUC is what came of it, and chose nothing."]
    for budget in section.budgets:
        best = _best_searched(section, budget)
        if best is not None:
            out += [told for name in BASELINES if (told := _against(section, budget, name, best))]
    return out


def _chosen(section: Section) -> str:
    told = []
    for budget in section.budgets:
        cell = section.chosen(budget)
        at = f" at {budget_name(budget)}" if len(section.budgets) > 1 else ""
        told.append(f"{'no find ended well within the budget' if cell is None else f'{cell.method} won'}{at}")
    return ", ".join(told)


def _best_searched(section: Section, budget: Budget) -> Cell | None:
    """Of the methods that learn or try, the find that validation prefers."""
    simple = {*BASELINES, METHODS[0]}
    cells = [cell for cell in section.at(budget) if cell.found_by and method_of(cell.found_by) not in simple]
    return section.chosen(budget, cells)


def _against(section: Section, budget: Budget, name: str, best: Cell) -> str:
    """That a baseline is not worse than the best of the searched; "" where it is."""
    cell = next((one for one in section.at(budget) if one.found_by == name and one.seeds), None)
    if cell is None or np.isnan(cell.auc):
        return ""
    gap = section.difference(cell, best)
    at = f" at {budget_name(budget)}" if len(section.budgets) > 1 else ""
    told = f"difference of test AUC {signed(gap.estimate)}" + (f" {interval(gap)}" if gap.defined else "")
    whom = f"{best.method}, the best of the searched methods on validation{at} ({told})"
    if gap.defined and gap.contains_zero:
        return f"The simple baseline {name} is not distinguishable from {whom}."
    if gap.estimate > 0:
        return f"The simple baseline {name} is better than {whom}" + ("." if gap.defined else ", without an interval.")
    return ""


def importance_note(section: Section) -> str:
    """How importance is found, or why some is missing; empty where nothing was sampled."""
    found, why = importances(section.search)
    told = _IMPORTANCE if found else ""
    missing = f"No importance: {why}." if why else ""
    return " ".join(part for part in (told, missing) if part)


_IMPORTANCE = (
    f"How far the best {BEST:.0%} of a method’s complete trials are from all of them in each parameter, by PED-ANOVA, "
    "as shares. It is a hint, not a test: with few trials the order of the lower ones is chance."
)


def importance_table(section: Section) -> Table | None:
    """The importance of every parameter, a column a method."""
    found = {method: mine for method, mine in importances(section.search)[0].items() if mine}
    if not found:
        return None
    known = list(panels(finds_of(section))[1])
    rows = tuple(
        (Text(parameter_name(name, known)), *(Text(percent(mine.get(name, 0.0))) for mine in found.values()))
        for name in ranked(found)
    )
    return Table(("drawn", *found), rows)


def allocation_table(section: Section) -> Table | None:
    """The weights of an id in each block of a vocabulary, a column a find."""
    shown, ids = panels(finds_of(section))
    rows = []
    for vocabulary, count in ids.items():
        row = [Text(vocabulary), Text(grouped(int(count)))]
        for panel in shown:
            weights = panel.weights.get(vocabulary, ())
            told = " ".join(map(weight_text, weights if len(set(weights)) > 1 else weights[:1]))
            row.append(Text(told or "–", panel.strategies.get(vocabulary, "") if panel.mixed else ""))
        rows.append(tuple(row))
    return Table(("vocabulary", "ids", *(panel.name for panel in shown)), tuple(rows)) if shown else None


def finds_of(section: Section) -> dict[str, str]:
    """The allocation of each finalist, by its name among the methods of the results."""
    search = section.search
    if search.empty:
        return {}
    names = {cell.method for cell in section.cells}
    out = {}
    finalists = search[search["finalist"].astype(bool)]
    for method, trial, allocation in zip(finalists["method"], finalists["trial"], finalists["allocation"], strict=True):
        numbered = find_name(method, int(trial), several=True)
        out[numbered if numbered in names else str(method)] = str(allocation)
    return out
