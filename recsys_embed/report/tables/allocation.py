"""The weights that a search gave to each vocabulary and block of ids."""

from __future__ import annotations

from recsys_embed.report.figures.allocation import panels, weight_text
from recsys_embed.report.summary import Section
from recsys_embed.report.tables.cells import Table, Text
from recsys_embed.report.tables.words import grouped
from recsys_embed.search.choice import find_name


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
