"""A config as a person reads and edits it: TOML, with what is known of every column beside it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import tomli_w

from recsys_embed.inspection.advice import span
from recsys_embed.inspection.columns import Column
from recsys_embed.inspection.inspection import Inspection
from recsys_embed.inspection.kinds import Kind
from recsys_embed.inspection.sample import Sample
from recsys_embed.inspection.schema import config_tree, features, left_out

WIDTH = 80
_NAME = 30  # columns of the screen up to which comments are aligned
_VALUE = 20


def draft(found: Inspection) -> str:
    """The config of :func:`config_tree` as TOML with comments, which reads back as that tree."""
    data = config_tree(found)["data"]
    read = f"{found.rows:,} rows" if found.whole else f"the first {found.rows:,} rows"
    lines = [_cut(f"# From {read} of {len(found.columns):,} columns."), "[data]", f"path = {_toml(found.path)}"]
    if "separator" in data:
        lines.append(f"separator = {_toml(data['separator'])}")
    lines += _label_lines(found, data.get("label"))
    if "split" in data:
        lines.append(f"split = {_toml(data['split'])}")
    elif found.of_kind(Kind.TIMESTAMP):
        lines.append("# Rows are split at random; a split by time would be nearer to how a model is used.")
    for kind, note in (
        (Kind.CATEGORICAL, "# Whole numbers are taken for ids: move amounts to numeric."),
        (Kind.NUMERIC, None),
    ):
        columns = features(found, kind)
        if columns:
            if note and any(column.numbers for column in columns):
                lines.append(note)
            lines.append(f"{kind} = [")
            lines += _aligned((f"    {_toml(column.name)},", _told(found, column)) for column in columns)
            lines.append("]")
    bags = features(found, Kind.MULTI_VALUED)
    if bags:
        lines += ["", "[data.multi_valued]"]
        lines += _aligned(
            (tomli_w.dumps({column.name: data["multi_valued"][column.name]}).strip(), _told(found, column))
            for column in bags
        )
    without = [(column, reason) for column in found.columns if (reason := left_out(found, column)) is not None]
    if without:
        lines += ["", "# Left out:"]
        lines += _aligned((f"#   {_plain(column.name)}", _why(column, reason)) for column, reason in without)
    return "\n".join(lines) + "\n"


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


def _told(found: Inspection, column: Column) -> str:
    """A feature in few words, what matters most first."""
    others = [one for group in found.twins if column.name in group for one in group if one != column.name]
    twins = f"1:1 with {', '.join(map(_plain, others))}; " if others else ""
    missing = f", {_percent(column.missing / found.rows)} missing" if column.missing else ""
    numbers, bags, kind = column.numbers, column.bags, found.kinds[column.name]
    if kind is Kind.NUMERIC:
        return f"{twins}{_number(numbers.low)} to {_number(numbers.high)}, mean {_number(numbers.mean)}{missing}"
    if kind is Kind.MULTI_VALUED and bags is not None:
        values = _values(bags.sample)
        return f"{twins}{values}, {bags.values / max(column.present, 1):.1f} a cell{missing}"
    told = f"{twins}{_values(column.sample)}{missing}"
    if numbers and not numbers.code and column.distinct > 2:
        return f"{told}, whole numbers to {_number(numbers.high)}" if numbers.whole else f"{told}, numbers"
    top = column.top(3)
    if not top or top[0][1] < 2:
        return f"{told}, such as {', '.join(map(_value, column.examples[:2]))}"
    first, *less = (_value(text) for text, _ in top)
    return f"{told}: " + ", ".join([f"{first} ({_percent(top[0][1] / found.rows)})", *less])


def _values(sample: Sample) -> str:
    return f"{'about ' if sample.cut else ''}{sample.distinct:,} {'values' if sample.distinct > 1 else 'value'}"


def _why(column: Column, reason: str) -> str:
    if reason == "constant" and column.present:
        return f"{reason}: {_value(column.examples[0])}"
    if reason == "a timestamp":
        return f"{reason}, {' to '.join(span(column))}"
    return reason


def _aligned(lines: Iterable[tuple[str, str]]) -> list[str]:
    """Each text with its comment, one below the other where the texts are not too long."""
    known = list(lines)
    width = min(max(len(text) for text, _ in known), _NAME)
    return [_cut(f"{text:<{width}}  {'' if text.startswith('#') else '# '}{told}", len(text)) for text, told in known]


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
