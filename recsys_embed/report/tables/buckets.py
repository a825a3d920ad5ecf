"""AUC by how often a row's ids were trained."""

from __future__ import annotations

import numpy as np

from recsys_embed.report.results import BUCKETS
from recsys_embed.report.summary import Section
from recsys_embed.report.tables.cells import Table, Text
from recsys_embed.report.tables.words import interval, number, signed, spread


def bucket_table(section: Section) -> Table | None:
    """AUC on frequent and rare ids, with the difference to full."""
    full = section.full
    rows, kinds = [], []
    for cell in section.in_order():
        row = [Text(cell.method), Text(cell.budget or "–")]
        for name in BUCKETS:
            column = f"auc_{name}"
            value = number(cell.mean(column))
            if full is None or cell is full or np.isnan(cell.mean(column)):
                row.append(Text(value, spread(cell, column).sub))
            else:
                gap = section.difference(cell, full, name)
                row.append(Text(value, f"{signed(gap.estimate)}\n{interval(gap)}".strip()))
        rows.append(tuple(row))
        kinds.append("reference" if cell is full else "")
    sizes = [f" ({section.rows[name]:,} rows)" if section.rows else "" for name in BUCKETS]
    columns = (section.noun, "budget", *(f"{name}{size}" for name, size in zip(BUCKETS, sizes, strict=True)))
    return Table(columns, tuple(rows), 2, tuple(kinds)) if rows else None
