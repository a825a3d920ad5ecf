"""The recommendation, and what limits it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from recsys_embed.report.sizes import budget_name, format_bytes
from recsys_embed.report.statistics import Interval
from recsys_embed.report.summary import Budget, Cell, Section
from recsys_embed.report.tables.baselines import search_notices
from recsys_embed.report.tables.protocol import rows_left_out
from recsys_embed.report.tables.words import PERCENT, listing, number, percent, plural, signed


@dataclass(frozen=True)
class Advice:
    """The sentence of recommendation, cut around the name of the method that it recommends."""

    before: str
    method: str = ""
    after: str = ""

    def __str__(self) -> str:
        return self.before + self.method + self.after


def advise(section: Section, budget: Budget | None) -> Advice:
    """One sentence: what to use at a budget, what it costs, and how sure that is."""
    if not any(cell.seeds for cell in section.cells):
        return Advice("No run ended well, so there is nothing to recommend; the messages are below.")
    if budget is None:
        return Advice("Only full tables were trained, so there is nothing to compare them with.")
    place = budget_name(budget)
    if section.searched:
        return _found(section, budget)
    best = section.best(budget)
    if best is None:
        return Advice(f"At a budget of {place} no strategy has a result, so there is nothing to recommend there.")
    full = section.full
    if best is full:
        tail = f" at a mean test AUC of {number(best.auc)} over {plural(best.seeds, 'seed')}"
        others = _likewise(section, budget)
        return Advice(f"A budget of {place} holds the ", "full", f" tables, and no strategy is better{tail}{others}.")

    cost = f" with a mean test AUC of {number(best.auc)} over {plural(best.seeds, 'seed')}{_cost(section, best)}"
    return Advice(f"At a budget of {place} use ", best.method, f"{cost}{_likewise(section, budget)}.")


def _found(section: Section, budget: Budget) -> Advice:
    """What a search chose at a budget, which is not always what has the highest test AUC."""
    place, best = budget_name(budget), section.chosen(budget)
    if best is None:
        return Advice(
            f"At a budget of {place} no find ended well with all seeds, so there is nothing to recommend there."
        )
    told = f": of all finds it has the highest mean validation AUC, {number(best.mean('val_auc'))} over "
    told += f"{plural(best.seeds, 'seed')}, and a mean test AUC of {number(best.auc)}"
    told += _cost(section, best) if best is not section.full else ""
    others = [cell for cell in section.candidates(budget) if cell is not best]
    gaps = [(cell.method, section.difference(cell, best)) for cell in others]
    alike = [name for name, gap in gaps if gap.defined and gap.contains_zero]
    better = [name for name, gap in gaps if gap.defined and gap.low > 0]
    if alike:
        told += f"; {listing(alike)} {'is' if len(alike) == 1 else 'are'} not distinguishable from it on the test split"
    if better:
        told += (
            f"; {listing(better)} {'is' if len(better) == 1 else 'are'} better on the test split, which chooses nothing"
        )
    return Advice(f"At a budget of {place} use ", best.method, f"{told}.")


def _cost(section: Section, best: Cell) -> str:
    """What a cell loses and saves against full."""
    full = section.full
    if full is None:
        return f", in {format_bytes(best.bytes)} (full was not trained, so the cost against it is unknown)"
    gap = section.difference(best, full)
    share = f"{percent(best.bytes / full.bytes)} of full’s {format_bytes(full.bytes)}"
    return f", {_against_full(gap, section.seeds)}, in {format_bytes(best.bytes)}, {share}"


def _against_full(gap: Interval, seeds: int) -> str:
    if np.isnan(gap.estimate):
        return "a difference to full that is undefined"
    side = "above" if gap.estimate > 0 else "below"
    size = f"{number(abs(gap.estimate))} {side} full"
    if not gap.defined:
        return size
    apart = "a real difference" if seeds > 1 else "more than the choice of test rows explains"
    known = "not distinguishable from it" if gap.contains_zero else apart
    return f"{size} ({PERCENT} interval of the difference {signed(gap.low)} to {signed(gap.high)}, {known})"


def _likewise(section: Section, budget: Budget) -> str:
    """How the others compare, and what one seed cannot say."""
    best = section.best(budget)
    assert best is not None
    others = [cell for cell in section.candidates(budget) if cell is not best]
    alike = section.like_best(budget)
    out = ""
    if others and "" in section.draws:
        if len(alike) == len(others):
            names = listing(cell.method for cell in others)
            out = f"; none of the others ({names}) is distinguishable from {best.method}"
        elif alike:
            verb = "is" if len(alike) == 1 else "are"
            out = f"; {listing(cell.method for cell in alike)} {verb} not distinguishable from {best.method}"
        elif section.seeds > 1:
            out = "; it is better than every other strategy there"
    if section.seeds == 1:
        out += "; but one seed cannot rank strategies"
    return out


def notices(section: Section) -> list[str]:
    """What limits the conclusions of a section."""
    out = search_notices(section)
    if rows_left_out(section):
        out.append("Rows of the input were left out: how many, and why, stands at the end, under protocol.")
    if section.tuned:
        out.append(
            "Every strategy and full were tuned equally, on validation. All differences, ranks, intervals and figures "
            "are between tuned runs; those with the settings as configured, called default, stand beside them."
        )
    if section.missing:
        out.append(
            f"The predictions of {plural(len(section.missing), 'run')} are not in the folder, so nothing here has an "
            "interval and no difference is called real."
        )
    if section.seeds == 1:
        out.append(
            "One seed: the intervals cover the test rows alone, not how far the same strategy moves when it is trained "
            "again. Three seeds or more are needed to rank strategies."
        )
    elif section.seeds == 2:
        out.append("Two seeds: the spread over seeds is barely known and the intervals are wide. Three are better.")
    if section.full is None and any(cell.seeds for cell in section.cells):
        out.append("Full tables have no result in this study: there is no difference to full.")
    if section.runs["protocol"].nunique() > 1 and not section.searched:  # settings are part of what a search draws
        out.append("Not all runs were trained under the same protocol: the comparison mixes it with the strategies.")
    return out
