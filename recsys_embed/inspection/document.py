"""An inspection as one JSON document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from recsys_embed.inspection.advice import Advice
from recsys_embed.inspection.columns import Column
from recsys_embed.inspection.inspection import Inspection
from recsys_embed.inspection.kinds import Kind
from recsys_embed.inspection.schema import config_tree, left_out
from recsys_embed.inspection.size import table_rows
from recsys_embed.inspection.times import span

TOP = 10


def document(found: Inspection, warnings: Sequence[Advice]) -> dict[str, Any]:
    """``columns`` in the file's order, ``label``, ``warnings``, ``table_rows`` of full tables for all that is embedded,
    and ``config``, the tree that a config file has."""
    return {
        "path": found.path,
        "rows": found.rows,
        "whole": found.whole,
        "label": None if found.label is None else asdict(found.label),
        "columns": [_column(found, column) for column in found.columns],
        "warnings": [asdict(one) for one in warnings],
        "table_rows": table_rows(found),
        "config": config_tree(found),
    }


def _column(found: Inspection, column: Column) -> dict[str, Any]:
    kind = found.kinds[column.name]
    told: dict[str, Any] = {
        "name": column.name,
        "kind": kind.value,
        "left_out": left_out(found, column),
        "count": column.present,
        "missing": column.missing,
        "distinct": column.distinct,
        "distinct_exact": not column.sample.cut,
        "once": column.sample.once,
        "top": [{"value": value, "count": count} for value, count in column.top(TOP)],
        "top_exact": not column.sample.cut,
        "examples": column.examples,
        "label_auc": found.aucs.get(column.name),
        "one_to_one": [one for group in found.twins if column.name in group for one in group if one != column.name],
    }
    if column.numbers:
        told |= {"min": column.numbers.low, "max": column.numbers.high, "mean": column.numbers.mean}
    if kind is Kind.TIMESTAMP:
        told["span"] = list(span(column))
    if kind is Kind.MULTI_VALUED and column.bags is not None:
        told["separator"] = column.bags.separator
        told["values"] = {
            "count": column.bags.values,
            "distinct": column.bags.sample.distinct,
            "distinct_exact": not column.bags.sample.cut,
            "longest": column.bags.longest,
        }
    return told
