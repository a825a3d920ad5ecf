"""What training took, and how fast the shipped models answer."""

from __future__ import annotations

import json

import numpy as np

from recsys_embed.report.sizes import format_bytes
from recsys_embed.report.summary import Section
from recsys_embed.report.tables.cells import Table, Text
from recsys_embed.report.tables.words import grouped

LATENCY, THROUGHPUT = "latency_single_row_microseconds", "predict_rows_per_second"


def speed_table(section: Section) -> Table | None:
    """What training and prediction took."""
    rows = []
    for cell in section.in_order():
        speed, late = cell.mean("train_samples_per_second"), cell.mean("predict_microseconds_per_row")
        rows.append(
            (
                Text(cell.method),
                Text(cell.budget or "–"),
                Text("–" if np.isnan(speed) else f"{speed:,.0f}"),
                Text("–" if np.isnan(late) else f"{late:.2f}"),
                Text("–" if np.isnan(cell.mean("epochs")) else f"{cell.mean('epochs'):.1f}"),
                Text("–" if np.isnan(cell.mean("wall_seconds")) else f"{cell.mean('wall_seconds'):.1f}"),
                Text(format_bytes(cell.mean("train_bytes"))),
                Text(format_bytes(cell.mean("checkpoint_bytes"))),
                Text(format_bytes(cell.mean("peak_rss_bytes"))),
            )
        )
    columns: tuple[str, ...] = (
        section.noun,
        "budget",
        "training, samples/s",
        "prediction, µs/row",
        "epochs",
        "seconds per run",
    )
    columns += ("training bytes", "checkpoint bytes", "peak memory of the process")
    return Table(columns, tuple(rows), 2) if rows else None


def serving_table(section: Section) -> Table | None:
    """How fast the shipped models answer, beside their bytes."""
    full = section.full
    rows = []
    for cell in section.in_order():
        row = [Text(cell.method), Text(cell.budget or "–"), Text(format_bytes(cell.bytes))]
        for column in (LATENCY, THROUGHPUT):
            value = cell.median(column)
            row.append(Text("–" if np.isnan(value) else f"{value:,.0f}"))
            if full is not None:
                ratio = value / full.median(column)
                row.append(Text("–" if np.isnan(ratio) else f"{ratio:.2f}"))
        rows.append(tuple(row))
    columns = [section.noun, "budget", "serving bytes"]
    for title in ("one row, µs", "batch, rows/s"):
        columns += [title, "× full"] if full is not None else [title]
    kinds = tuple("reference" if cell is full else "" for cell in section.in_order())
    return Table(tuple(columns), tuple(rows), 2, kinds) if rows else None


def serving_note(section: Section) -> str:
    """Where and how serving was measured; several values where runs differ."""
    texts = sorted({text for cell in section.cells for text in cell.ok["serving"] if text})
    if not texts:
        return "Not measured: these runs are from before serving was."
    told = [json.loads(text) for text in texts]

    def values(name: str) -> str:
        return " / ".join(dict.fromkeys(grouped(one.get(name, "unknown")) for one in told))

    return (
        f"Shipped models on {values('processor')}, threads: {values('threads')}, warm, "
        f"from encoded rows to probabilities; medians over seeds. One row: the median of {values('requests')} "
        f"requests, each of another row. Batch: of {values('batch')} rows. Runs beside others in parallel slow "
        "each other down."
    )
