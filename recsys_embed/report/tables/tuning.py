"""What tuning tried, found and spent."""

from __future__ import annotations

from typing import Any

import numpy as np

from recsys_embed.report.results import epochs_name
from recsys_embed.report.summary import Cell, Section
from recsys_embed.report.tables.cells import Table, Text
from recsys_embed.report.tables.words import grouped, listing, number, plural, values_text

TUNED = ("tables_lr", "dense_lr", "decay")


def tuning_facts(section: Section) -> list[tuple[str, str]]:
    """The declared space, the trials, how the choice was made and what was spent, as terms; empty without tuning."""
    if not section.tuned:
        return []
    told = [cell.tuning for cell in section.cells]
    seed = section.trials["seed"].dropna()
    epochs = list(dict.fromkeys(epochs_name(one["epochs"]) for one in told))
    counts = sorted({one["trials"] for cell, one in zip(section.cells, told, strict=True) if _tried(cell)})
    facts = [
        ("Space", f"{_space(told[0]['space'])}; seed {told[0]['seed']}"),
        (
            "Trials",
            f"{' or '.join(map(str, counts)) or 'none'} for each strategy, full included, at each budget; {_SAME}",
        ),
        ("Epochs", f"{listing(epochs)}, each a setting with trials and a result of its own"),
        (
            "Choice",
            _CHOICE
            + (f" Trials ran with seed {int(seed.iloc[0])}, what was chosen with all seeds." if len(seed) else ""),
        ),
    ]
    if text := _default(section):
        facts.append(("Default", text))
    trials = section.trials
    if len(trials):
        lost = int((trials["status"] != "ok").sum())
        spent = f"{plural(len(trials), 'trial')}, {grouped(int(trials['samples_seen'].sum()))} samples seen, "
        spent += f"{grouped(round(trials['wall_seconds'].sum()))} s of training"
        facts.append(("Spent", spent + (f"; {lost} without a result, whose samples are not known" if lost else "")))
    else:
        facts.append(("Spent", "unknown: trials.csv is not in the folder"))
    return facts


_SAME = "the same list of settings for all: those configured, then a Sobol sequence, drawn before the first"
_CHOICE = (
    "The trial with the highest validation AUC, the first of equals; a trial that fails or diverges is spent. The test "
    "split is not read in trials."
)


def _space(space: dict[str, Any]) -> str:
    ranges = [f"{name.replace('_', ' ')} {space[name][0]:g} to {space[name][1]:g}" for name in TUNED if name in space]
    none = f", where decay is 0 in {100 * space['no_decay']:g}% of it" if space["no_decay"] else ""
    return f"{', '.join(ranges)}, by order of magnitude{none}"


def _default(section: Section) -> str:
    """The settings of the runs that were not tuned."""
    protocols = [cell.protocol for cell in section.untuned if cell.protocol]
    if not protocols:
        return ""
    training, embedding = protocols[0].get("training", {}), protocols[0].get("embedding", {})
    known = training.get("optimizer", {}) | {name: embedding[name] for name in embedding if name == "decay"}
    values = {name: known[name] for name in TUNED if name in section.cells[0].tuning["space"] and name in known}
    epochs = [epochs_name(training["epochs"])] if "epochs" in training else []
    return ", ".join([*epochs, values_text(values)])


def tuning_table(section: Section) -> Table | None:
    """What each contender tried, chose, won and spent."""
    if not section.tuned:
        return None
    names = [name for name in TUNED if name in section.cells[0].tuning["space"]]
    budgets = [budget.text for budget in section.budgets]
    order = {name: place for place, name in enumerate(dict.fromkeys(cell.name for cell in section.cells))}
    rows = []
    for cell in sorted(
        section.cells,
        key=lambda cell: (order[cell.name], budgets.index(cell.budget) if cell.budget else -1, cell.tuning["epochs"]),
    ):
        trials, default, tried = section.trials_of(cell), section.untuned_like(cell), cell.tuning["trials"]
        ok = trials[trials["status"] == "ok"]
        lost = f"{tried - len(ok)} lost" if len(ok) < tried and len(trials) else ""
        row = [Text(cell.name), Text(cell.budget or "–"), Text(epochs_name(cell.tuning["epochs"]))]
        row.append(Text(str(tried), lost))
        row += [Text(_digits(cell.tuning["values"].get(name))) for name in names]
        row.append(Text(_auc(ok["val_auc"].max()), f"worst {number(ok['val_auc'].min())}" if len(ok) > 1 else ""))
        row += [Text(_auc(default.auc if default else float("nan"))), Text(_auc(cell.auc))]
        row.append(Text(grouped(int(ok["samples_seen"].sum())) if len(ok) else "–"))
        row.append(Text(f"{trials['wall_seconds'].sum():,.1f}" if len(trials) else "–"))
        rows.append(tuple(row))
    columns = ["strategy", "budget", "epochs", "trials", *(name.replace("_", " ") for name in names)]
    columns += ["best val AUC", "test AUC, default", "test AUC, tuned", "samples seen", "seconds"]
    return Table(tuple(columns), tuple(rows), 3)


def _digits(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _tried(cell: Cell) -> bool:
    return bool(cell.tuning["trials"])


def _auc(value: float) -> str:
    return "–" if np.isnan(value) else number(value)
