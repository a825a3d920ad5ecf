"""Runs without a result."""

from __future__ import annotations

from recsys_embed.report.summary import Section
from recsys_embed.report.tables.cells import Table, Text


def failure_table(section: Section) -> Table | None:
    """Every run without a result, with its message; equal messages of a cell together."""
    runs = section.unfinished()
    rows = []
    keys = ["method", "budget_requested", "status", "error"]
    for key, mine in runs.groupby(keys, sort=False):
        method, budget, status, error = (str(part) for part in key)
        seeds = ", ".join(str(seed) for seed in mine["seed"])
        rows.append((Text(method), Text(budget or "–"), Text(status), Text(seeds), Text(error or "no message")))
    return Table((section.noun, "budget", "status", "seeds", "message"), tuple(rows), 5) if rows else None
