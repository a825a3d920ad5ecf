"""What to be warned of, each with its numbers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from recsys_embed.inspection.columns import Column
from recsys_embed.inspection.frequent import LONGEST
from recsys_embed.inspection.inspection import Inspection
from recsys_embed.inspection.kinds import Kind
from recsys_embed.inspection.labels import Label
from recsys_embed.inspection.schema import LEAK, clock, merged
from recsys_embed.inspection.times import span, unordered

MOSTLY = 0.9  # of the cells are missing
FEW = 1_000  # rows, a tenth of which would be the test split
RARE_ROWS, RARE_SHARE = 100, 0.001  # of the rarer class


@dataclass(frozen=True)
class Advice:
    """A warning: its ``code``, the columns it is about, the sentence, and the numbers in it."""

    code: str
    columns: tuple[str, ...]
    message: str
    numbers: dict[str, Any]


def advice(found: Inspection) -> list[Advice]:
    """All warnings: of the rows, of the label, then column by column."""
    told = [*_of_rows(found), *_of_label(found)]
    for column in found.columns:
        told += _of_column(found, column)
    for group in found.twins:
        values = found.column(group[0]).distinct
        told.append(
            Advice(
                "one_to_one",
                group,
                f"{_and(group)} are 1:1 ({values:,} values each): {'all but one' if len(group) > 2 else 'one'} can go",
                {"distinct": values},
            )
        )
    return told


def _of_rows(found: Inspection) -> Iterator[Advice]:
    if found.headless:
        names = tuple(column.name for column in found.columns)
        message = f"the first line looks like a row, not like names ({', '.join(names[:3])}…): put names above it"
        yield Advice("no_header", names, message, {})
    if found.whole and found.rows < FEW:
        yield Advice(
            "few_rows", (), f"{found.rows:,} rows are few: a tenth of them is a test split that tells little",
            {"rows": found.rows},
        )  # fmt: skip
    if not any(kind in (Kind.CATEGORICAL, Kind.MULTI_VALUED) for kind in found.kinds.values()):
        yield Advice("no_features", (), "no column looks categorical, and there is nothing to embed", {})


def _of_label(found: Inspection) -> Iterator[Advice]:
    label = found.label
    if label is None:
        yield Advice("no_label", (), "no column is called like a label and has two values: name it with --label", {})
        return
    name = (label.column,)
    if label.problem is not None:
        code = "one_class" if label.positives + label.negatives else "unclear_label"
        yield Advice(code, name, f"{label.column} cannot be the label as it is: {label.problem}", _rows_of(label))
        return
    rarer = min(label.positives, label.negatives)
    if rarer < RARE_ROWS or rarer < RARE_SHARE * (label.positives + label.negatives):
        side = "positive" if label.positives == rarer else "negative"
        share = rarer / (label.positives + label.negatives)
        message = (
            f"{label.column} is {side} in {rarer:,} rows alone ({share:.2%}): an AUC from a tenth of them is rough"
        )
        yield Advice("rare_label", name, message, _rows_of(label))
    if label.missing:
        message = f"{label.column} is missing in {label.missing:,} of {found.rows:,} rows, which are dropped"
        yield Advice("unlabelled", name, message, _rows_of(label))


def _of_column(found: Inspection, column: Column) -> Iterator[Advice]:
    name, kind = column.name, found.kinds[column.name]
    if kind is Kind.UNREADABLE:
        yield Advice("unreadable", (name,), str(column.unreadable), {})
    elif kind is Kind.CONSTANT and not column.present:
        yield Advice("constant", (name,), f"{name} is empty in all {found.rows:,} rows", {"rows": found.rows})
    elif kind is Kind.CONSTANT:
        value = column.examples[0]
        message = f"{name} is constant: {value!r} in all {found.rows:,} rows"
        yield Advice("constant", (name,), message, {"rows": found.rows, "value": value})
    elif kind is Kind.ID_PER_ROW:
        almost = "" if column.distinct == column.present else "nearly "
        message = (
            f"{name} has another value in {almost}every row ({_distinct(column)} in {column.present:,}): no feature"
        )
        yield Advice("id_per_row", (name,), message, {"distinct": column.distinct, "rows": column.present})
    elif kind is Kind.TIMESTAMP:
        low, high = span(column)
        message = f"{name} is a timestamp ({low} to {high}): no feature; {_use_of(found, column)}"
        yield Advice("timestamp", (name,), message, {"min": low, "max": high})
    elif kind.feature:
        yield from _of_feature(found, column)


def _use_of(found: Inspection, column: Column) -> str:
    """What becomes of a timestamp."""
    if clock(found) is column:
        return "rows are split by it"
    problem = unordered(column)
    return "rows are split by another column" if problem is None else f"rows are not split by it, since {problem}"


def _of_feature(found: Inspection, column: Column) -> Iterator[Advice]:
    name, auc = column.name, found.aucs.get(column.name, 0.0)
    if auc >= LEAK and found.label is not None:
        message = f"{name} tells {found.label.column}: AUC {auc:.3f} alone, in rows it was not fitted to. Left out"
        yield Advice("leak", (name,), message, {"auc": auc})
    if column.missing >= MOSTLY * found.rows:
        message = f"{name} is missing in {column.missing / found.rows:.1%} of the rows"
        yield Advice("mostly_missing", (name,), message, {"missing": column.missing, "rows": found.rows})
    if column.numbers and column.numbers.whole and column.numbers.big:
        big = f"{name} has whole numbers above 2**53 in {column.numbers.big:,} rows"
        if merged(column):
            message = (
                f"{big}, stored as floats: different ids may be one by now. Left out; store it as text or integers"
            )
        else:
            message = f"{big}: ids, which stay whole here as text, and merge wherever they are read as floats"
        yield Advice("big_numbers", (name,), message, {"rows": column.numbers.big, "max": column.numbers.high})
    variants = _variants(column)
    if variants:
        shown = ", ".join(repr(one) for one in variants[0])
        message = f"{name} has values that differ in blanks alone, such as {shown} ({len(variants):,} values in all)"
        yield Advice("blanks", (name,), message, {"values": len(variants)})


def _variants(column: Column) -> list[list[str]]:
    """Frequent values that are one but for blanks around them, and case where there are such blanks."""
    groups: dict[str, list[str]] = defaultdict(list)
    for _, text, _ in column.frequent.values():
        if len(text) < LONGEST:
            groups[text.strip().casefold()].append(text)
    return [group for group in groups.values() if len(group) > 1 and any(one != one.strip() for one in group)]


def _distinct(column: Column) -> str:
    return f"about {column.distinct:,}" if column.sample.cut else f"{column.distinct:,}"


def _rows_of(label: Label) -> dict[str, Any]:
    return {
        "positives": label.positives,
        "negatives": label.negatives,
        "missing": label.missing,
        "others": label.others,
    }


def _and(names: tuple[str, ...]) -> str:
    return f"{', '.join(names[:-1])} and {names[-1]}"
