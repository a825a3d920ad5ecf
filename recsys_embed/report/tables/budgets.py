"""What each method reaches at a budget."""

from __future__ import annotations

import numpy as np

from recsys_embed.report.figures.pareto import absent
from recsys_embed.report.results import epochs_name
from recsys_embed.report.sizes import format_bytes
from recsys_embed.report.summary import Budget, Cell, Section
from recsys_embed.report.tables.cells import Table, Text
from recsys_embed.report.tables.words import interval, number, percent, plural, signed, spread, values_text


def budget_table(section: Section, budget: Budget) -> Table:
    """What each method reaches at a budget, best first, full beside it, and last what was not tuned where all was."""
    best, alike = section.best(budget), section.like_best(budget)
    ranks = section.ranks(budget) if section.seeds > 1 else {}
    full = section.full
    cells = sorted(section.at(budget), key=lambda cell: (-np.nan_to_num(cell.auc, nan=-1.0), cell.method))
    fulls = [cell for cell in section.cells if cell.uncompressed and (cell is full or section.tuned)]
    untuned = [cell for cell in section.untuned if cell.budget == budget.text or cell.uncompressed]
    told = section.tuned or any(cell.options for cell in cells)
    chosen = section.chosen(budget)
    columns = [section.noun, *(["settings"] if told else []), "serving bytes", "of budget", "test AUC"]
    columns += ["difference to full"] if full is not None else []
    columns += ["difference to best", *(["rank"] if ranks else []), "logloss", "NE", "calibration"]
    rows, kinds = [], []
    for cell in [*cells, *fulls, *untuned]:
        beside = any(cell is other for other in untuned)
        tags = []
        if cell is best:
            tags.append("best")
        if cell is chosen:
            tags.append("chosen")
        if any(cell is other for other in alike):
            tags.append("≈ best")
        if cell.seeds and cell.coarse:
            tags.append("coarse")
        lost = cell.runs[cell.runs["status"] != "ok"]
        if len(lost):
            what = ", ".join(sorted(set(lost["status"])))
            tags.append(what if not cell.seeds else f"{cell.seeds} of {plural(len(cell.runs), 'seed')}, rest {what}")
        row = [Text(cell.strategy if told else cell.method, tags=tuple(tags))]
        row += [_settings(section, cell)] if told else []
        if cell.seeds:
            share = cell.bytes / budget.bytes if budget.bytes else float("nan")
            row += [Text(format_bytes(cell.bytes)), Text(percent(share)), spread(cell, "test_auc")]
            if full is not None:
                row.append(_gap(section, cell, None if beside else full))
            row.append(_gap(section, cell, None if beside else best))
            if ranks:
                low, high = (0, 0) if beside else ranks.get(cell.method, (0, 0))
                row.append(Text("–" if not low else str(low) if low == high else f"{low}–{high}"))
            row += [Text(number(cell.mean(f"test_{name}"))) for name in ("logloss", "ne", "calibration")]
        else:
            row += [Text("–")] * (len(columns) - len(row))
        rows.append(tuple(row))
        first = any(cell is other for other in (*fulls[:1], *untuned[:1]))
        kinds.append(_kind(cell, best, first=first, beside=beside))
    return Table(tuple(columns), tuple(rows), 2 if told else 1, tuple(kinds))


def _kind(cell: Cell, best: Cell | None, *, first: bool, beside: bool) -> str:
    """How a row stands out; ``first`` of those below the budget's own, ``beside`` what is compared."""
    if beside:
        return "beside reference" if first else "beside"
    return "best" if cell is best else "reference" if first else "" if cell.seeds else "absent"


def _settings(section: Section, cell: Cell) -> Text:
    """What tells a cell from others of its strategy: its options, and what tuning chose."""
    if not section.tuned:
        return Text(cell.options)
    how = f"tuned, {epochs_name(cell.tuning['epochs'])}" if cell.tuning else "default"
    chosen = "\n".join(values_text({name: value}) for name, value in cell.tuning.get("values", {}).items())
    return Text("; ".join(part for part in (cell.options, how) if part), chosen)


def _gap(section: Section, cell: Cell, other: Cell | None) -> Text:
    if other is None or cell is other:
        return Text("–")
    gap = section.difference(cell, other)
    return Text(signed(gap.estimate), interval(gap))


def absent_note(section: Section) -> str:
    """What the crosses in the Pareto plot are."""
    marks = absent(section)
    return f" × at the bottom edge: no result ({'; '.join(marks)})." if marks else ""
