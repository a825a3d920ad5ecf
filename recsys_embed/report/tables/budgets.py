"""What each method reaches at a budget."""

from __future__ import annotations

import numpy as np

from recsys_embed.report.figures.pareto import absent
from recsys_embed.report.sizes import format_bytes
from recsys_embed.report.summary import Budget, Cell, Section
from recsys_embed.report.tables.cells import Table, Text
from recsys_embed.report.tables.words import interval, number, percent, plural, signed, spread


def budget_table(section: Section, budget: Budget) -> Table:
    """What each method reaches at a budget, best first, and full beside it."""
    best, alike = section.best(budget), section.like_best(budget)
    ranks = section.ranks(budget) if section.seeds > 1 else {}
    full = section.full
    cells = sorted(section.at(budget), key=lambda cell: (-np.nan_to_num(cell.auc, nan=-1.0), cell.method))
    told = any(cell.options for cell in cells)
    columns = ["strategy", *(["settings"] if told else []), "serving bytes", "of budget", "test AUC"]
    columns += ["difference to full"] if full is not None else []
    columns += ["difference to best", *(["rank"] if ranks else []), "logloss", "NE", "calibration"]
    rows, kinds = [], []
    for cell in [*cells, *([full] if full is not None else [])]:
        tags = []
        if cell is best:
            tags.append("best")
        if any(cell is other for other in alike):
            tags.append("≈ best")
        if cell.seeds and cell.coarse:
            tags.append("coarse")
        lost = cell.runs[cell.runs["status"] != "ok"]
        if len(lost):
            what = ", ".join(sorted(set(lost["status"])))
            tags.append(what if not cell.seeds else f"{cell.seeds} of {plural(len(cell.runs), 'seed')}, rest {what}")
        row = [Text(cell.strategy if told else cell.method, tags=tuple(tags))]
        row += [Text(cell.options)] if told else []
        if cell.seeds:
            share = cell.bytes / budget.bytes if budget.bytes else float("nan")
            row += [Text(format_bytes(cell.bytes)), Text(percent(share)), spread(cell, "test_auc")]
            if full is not None:
                row.append(_gap(section, cell, full))
            row.append(_gap(section, cell, best))
            if ranks:
                low, high = ranks.get(cell.method, (0, 0))
                row.append(Text("–" if not low else str(low) if low == high else f"{low}–{high}"))
            row += [Text(number(cell.mean(f"test_{name}"))) for name in ("logloss", "ne", "calibration")]
        else:
            row += [Text("–")] * (len(columns) - len(row))
        rows.append(tuple(row))
        kinds.append("best" if cell is best else "reference" if cell is full else "" if cell.seeds else "absent")
    return Table(tuple(columns), tuple(rows), 2 if told else 1, tuple(kinds))


def _gap(section: Section, cell: Cell, other: Cell | None) -> Text:
    if other is None or cell is other:
        return Text("–")
    gap = section.difference(cell, other)
    return Text(signed(gap.estimate), interval(gap))


def absent_note(section: Section) -> str:
    """What the crosses in the Pareto plot are."""
    marks = absent(section)
    return f" × at the bottom edge: no result ({'; '.join(marks)})." if marks else ""
