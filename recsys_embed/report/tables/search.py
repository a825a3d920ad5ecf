"""What a search tried, found and spent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from recsys_embed.report.sizes import format_bytes
from recsys_embed.report.summary import Cell, Section
from recsys_embed.report.tables.cells import Table, Text
from recsys_embed.report.tables.words import grouped, number, plural, spread
from recsys_embed.search.choice import method_of


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
            first = ok.iloc[int(ok["val_auc"].argmax())]
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
    return ",\n".join(f"{count} {what}" for what, count in counts.items() if count)


def _total(values: pd.Series[Any]) -> int:
    return int(values.sum())
