"""Where a simple baseline is as good as a search."""

from __future__ import annotations

import numpy as np

from recsys_embed.report.sizes import budget_name
from recsys_embed.report.summary import Budget, Cell, Section
from recsys_embed.report.tables.words import interval, signed
from recsys_embed.search.choice import method_of
from recsys_embed.search.contenders import METHODS

BASELINES = ("uniform", "mde")
"""Methods that look at no label and train once: what a search has to be better than."""


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
