"""The section ``data`` of a config, as it follows from an inspection."""

from __future__ import annotations

from typing import Any, Literal

from recsys_embed.inspection.columns import Column
from recsys_embed.inspection.inspection import Inspection
from recsys_embed.inspection.kinds import Kind
from recsys_embed.inspection.skew import is_skewed
from recsys_embed.inspection.times import unordered

LEAK = 0.95
"""A feature that predicts the label alone with this AUC, out of fold, knows it."""


def left_out(found: Inspection, column: Column) -> str | None:
    """Why a column is no feature; None where it is one, or the label, or says the split."""
    kind = found.kinds[column.name]
    if kind is Kind.UNREADABLE:
        return "cannot be read as one value a cell"
    if kind is Kind.CONSTANT:
        return "constant"
    if kind is Kind.ID_PER_ROW:
        return "another value in every row"
    if kind is Kind.TIMESTAMP:
        return "a timestamp"
    if merged(column):
        return "whole numbers above 2**53 stored as floats"
    if found.aucs.get(column.name, 0) >= LEAK:
        return f"tells the label: AUC {found.aucs[column.name]:.3f} alone"
    return None


def merged(column: Column) -> bool:
    """Whether it holds, as floats, whole numbers so large that different ones are the same float."""
    numbers = column.numbers
    return bool(numbers) and numbers.whole and numbers.big > 0 and (column.floats or numbers.rounded)


def features(found: Inspection, kind: Kind) -> list[Column]:
    """The columns of a kind that are features of the config."""
    return [column for column in found.of_kind(kind) if left_out(found, column) is None]


def clock(found: Inspection) -> Column | None:
    """The timestamp by which rows are split: the first that can be, where no column says the split."""
    if found.of_kind(Kind.SPLIT):
        return None
    return next((column for column in found.of_kind(Kind.TIMESTAMP) if unordered(column) is None), None)


def scalings(found: Inspection) -> dict[str, Literal["log", "standard"]]:
    """Of each numeric feature."""
    columns = features(found, Kind.NUMERIC)
    return {column.name: "log" if is_skewed(column.sample) else "standard" for column in columns}


def config_tree(found: Inspection) -> dict[str, Any]:
    """The tree of a config; without ``label`` where none was found or its values are not clear."""
    tree: dict[str, Any] = {"path": found.path}
    if found.separator is not None:
        tree["separator"] = found.separator
    if found.label is not None and found.label.positive and found.label.negative:
        tree["label"] = found.label.tree()
    splits, time = found.of_kind(Kind.SPLIT), clock(found)
    if splits:
        tree["split"] = {"column": splits[0].name}
    elif time is not None:
        tree["split"] = {"time": time.name}
    tree["categorical"] = [column.name for column in features(found, Kind.CATEGORICAL)]
    numeric = scalings(found)
    tree["numeric"] = numeric if "log" in numeric.values() else list(numeric)
    bags = features(found, Kind.MULTI_VALUED)
    tree["multi_valued"] = {column.name: column.bags.separator for column in bags if column.bags}
    return {"data": {key: value for key, value in tree.items() if value or key == "path"}}
