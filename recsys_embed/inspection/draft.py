"""A config as a person reads and edits it: TOML, with what is known of every column beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import tomli_w

from recsys_embed.config import DCNv2Config
from recsys_embed.inspection.columns import Column
from recsys_embed.inspection.inspection import Inspection
from recsys_embed.inspection.kinds import Kind, is_doubtful
from recsys_embed.inspection.sample import Sample
from recsys_embed.inspection.schema import clock, config_tree, features, left_out, scalings
from recsys_embed.inspection.size import table_rows, vocabularies
from recsys_embed.inspection.times import span
from recsys_embed.report.sizes import format_bytes

WIDTH = 80
_NAME = 30  # columns of the screen up to which comments are aligned
_VALUE = 20
_RARE = 0.2  # of the values stand in one row
_EXAMPLES = 3


def draft(found: Inspection) -> str:
    """The config of :func:`config_tree` as TOML with comments, which reads back as that tree."""
    data = config_tree(found)["data"]
    read = f"{found.rows:,} rows" if found.whole else f"the first {found.rows:,} rows"
    lines = [_cut(f"# From {read} of {len(found.columns):,} columns."), "[data]", f"path = {_toml(found.path)}"]
    if "separator" in data:
        lines.append(f"separator = {_toml(data['separator'])}")
    lines += _label_lines(found, data.get("label"))
    lines += _split_lines(found, data.get("split"))
    categorical, numeric = features(found, Kind.CATEGORICAL), features(found, Kind.NUMERIC)
    if any(map(is_doubtful, categorical)):
        lines.append("# Whole numbers in doubt are taken for ids: move amounts to numeric.")
    if categorical:
        lines += _list("categorical", found, categorical)
    if numeric and isinstance(data["numeric"], list):
        lines += _list("numeric", found, numeric)
    elif numeric:
        lines += ["", "# log: a few are many times the others.", "[data.numeric]"]
        lines += _table(found, numeric, scalings(found))
    bags = features(found, Kind.MULTI_VALUED)
    if bags:
        lines += ["", "[data.multi_valued]", *_table(found, bags, data["multi_valued"])]
    without = [(column, reason) for column in found.columns if (reason := left_out(found, column)) is not None]
    without = [(column, reason) for column, reason in without if column is not clock(found)]
    if without:
        lines += ["", "# Left out:"]
        lines += _aligned([(f"#   {_plain(column.name)}", Told(_why(column, reason))) for column, reason in without])
    if categorical or bags:
        lines += _size_lines(found)
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Told:
    """A comment, and ``examples`` after it as far as there is room."""

    text: str
    examples: tuple[str, ...] = ()

    def within(self, room: int) -> str:
        """The comment with as many examples as fit."""
        told, joint = self.text, ": "
        for example in self.examples:
            if len(told) + len(joint) + len(example) > room:
                break
            told, joint = f"{told}{joint}{example}", ", "
        return told


def _label_lines(found: Inspection, label: str | dict[str, Any] | None) -> Iterator[str]:
    known = found.label
    if known is None:
        yield '# label = "…"  # none was found; name its column here'
    elif label is None:
        yield _cut(f"# label = {_toml({'column': known.column, 'positive': ['…'], 'negative': ['…']})}")
    else:
        yield f"# {known.positives:,} positive and {known.negatives:,} negative rows ({known.rate:.1%} positive)" + (
            f"; {known.others + known.missing:,} are dropped" if known.others + known.missing else ""
        )
        yield f"label = {_toml(label)}"


def _split_lines(found: Inspection, split: dict[str, Any] | None) -> Iterator[str]:
    time = clock(found)
    if time is not None:
        yield _cut(f"# Oldest 80 % train, newest 10 % test: {_period(time)}.")
    if split is not None:
        yield f"split = {_toml(split)}"


def _size_lines(found: Inspection) -> Iterator[str]:
    """What the tables would take, and how to have them smaller."""
    rows, dim = table_rows(found), DCNv2Config().dim
    about = "about " if any(sample.cut for sample in vocabularies(found)) else ""
    yield ""
    yield f"# Full tables: {about}{rows:,} rows of {dim} floats, {format_bytes(4 * dim * rows)}. In a tenth of that:"
    yield "# [embedding]"
    yield '# strategy = "unified"'
    yield '# budget = "10x"'


def _list(key: str, found: Inspection, columns: Sequence[Column]) -> list[str]:
    lines = [(f"    {_toml(column.name)},", _told(found, column)) for column in columns]
    return [f"{key} = [", *_aligned(lines), "]"]


def _table(found: Inspection, columns: Sequence[Column], values: dict[str, Any]) -> list[str]:
    return _aligned(
        [(tomli_w.dumps({column.name: values[column.name]}).strip(), _told(found, column)) for column in columns]
    )


def _told(found: Inspection, column: Column) -> Told:
    """A feature in few words, what matters most first."""
    numbers, bags, kind = column.numbers, column.bags, found.kinds[column.name]
    others = [one for group in found.twins if column.name in group for one in group if one != column.name]
    also = f", {_percent(column.missing / found.rows)} missing" if column.missing else ""
    also += f", 1:1 with {', '.join(map(_plain, others))}" if others else ""
    if kind is Kind.NUMERIC:
        return Told(f"{_number(numbers.low)} to {_number(numbers.high)}, mean {_number(numbers.mean)}{also}")
    if kind is Kind.MULTI_VALUED and bags is not None:
        return Told(f"{_values(bags.sample)}, {bags.values / max(column.present, 1):.1f} a cell{also}")
    once = column.sample.once
    told = f"{_values(column.sample)}{f', {_percent(once)} of them once' if once >= _RARE else ''}{also}"
    if numbers and not numbers.code and column.distinct > 2:
        return Told(f"{told}, {_number(numbers.low)} to {_number(numbers.high)}")
    top = column.top(_EXAMPLES)
    if not top or top[0][1] < 2:
        return Told(told, tuple(map(_value, column.examples[:2])))
    first, *less = (_value(text) for text, _ in top)
    return Told(told, (f"{first} ({_percent(top[0][1] / found.rows)})", *less))


def _values(sample: Sample) -> str:
    return f"{'about ' if sample.cut else ''}{sample.distinct:,} {'values' if sample.distinct > 1 else 'value'}"


def _why(column: Column, reason: str) -> str:
    if reason == "constant" and column.present:
        return f"{reason}: {_value(column.examples[0])}"
    if reason == "a timestamp":
        return f"{reason}, {_period(column)}"
    return reason


def _period(column: Column) -> str:
    """From when to when, to the minute."""
    return " to ".join(one[:16] for one in span(column))


def _aligned(lines: Sequence[tuple[str, Told]]) -> list[str]:
    """Each text with its comment, one below the other where the texts are not too long."""
    width = min(max(len(text) for text, _ in lines), _NAME)
    starts = [f"{text:<{width}}  {'' if text.startswith('#') else '# '}" for text, _ in lines]
    return [
        _cut(f"{start}{told.within(WIDTH - len(start))}", len(text))
        for start, (text, told) in zip(starts, lines, strict=True)
    ]


def _cut(line: str, keep: int = 0) -> str:
    """At most :data:`WIDTH` characters, or the first ``keep``, which are no comment."""
    most = max(WIDTH, keep)
    return (line if len(line) <= most else line[: most - 1] + "…" if most > keep + 8 else line[:keep]).rstrip()


def _toml(value: Any) -> str:
    """A value on one line."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(one)}" for key, one in value.items()) + " }"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return tomli_w.dumps({"x": value}).removeprefix("x = ").strip()


def _plain(text: str) -> str:
    """Text for a comment, which no control character can end."""
    return json.dumps(text, ensure_ascii=False)[1:-1].replace("\x7f", "\\u007f")


def _value(text: str) -> str:
    plain = _plain(text)
    return plain if len(plain) <= _VALUE else plain[: _VALUE - 1] + "…"


def _number(number: float) -> str:
    if number == int(number) and abs(number) < 1e15:
        return f"{int(number):,}"
    return f"{number:,.2f}" if 0.1 <= abs(number) < 1e6 else f"{number:.3g}"


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.1 else f"{share:.1%}" if share >= 0.001 else "<0.1%"
