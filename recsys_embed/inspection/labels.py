"""Which column is the label, and which of its values are positive."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from recsys_embed.data.values import canonical
from recsys_embed.inspection.names import words

_SCALE = 11  # values of a rating, at most
MOST = _SCALE + 1  # values of a label that are told apart
_NAMES = (
    *("label", "target", "clicked", "click", "is_click", "converted", "conversion", "is_conversion", "purchased"),
    *("purchase", "bought", "ordered", "installed", "liked", "like", "watched", "churned", "churn", "is_churn"),
    *("subscribed", "response", "outcome", "action", "income", "class", "y"),
)
_RATINGS = {"rating", "ratings", "stars"}  # the only names of a label with more values than two
_YES = {"1", "yes", "y", "t", "positive", "pos", "click", "clicked", "+1", "good"}
_NO = {"0", "-1", "no", "n", "f", "negative", "neg", "none", "bad", "-"}


class LabelValues:
    """The label's values as small numbers in the order in which they appear: 0 is missing; the last one any other."""

    def __init__(self) -> None:
        self.values: list[str] = []
        self.rows = np.zeros(1, np.int64)
        self.others = 0

    @property
    def codes(self) -> int:
        """How many numbers there are."""
        return len(self.values) + 1

    def read(self, cells: pa.Array) -> np.ndarray:
        """Numbers of cells, ``[rows]`` int64; what is beyond the first :data:`MOST` values counts as missing."""
        coded = cells.dictionary_encode()
        known = {value: number + 1 for number, value in enumerate(self.values)}
        numbers = []
        for value in coded.dictionary.to_pylist():
            if value not in known and len(self.values) < MOST:
                self.values.append(value)
                known[value] = len(self.values)
            numbers.append(known.get(value, -1))
        indices = coded.indices.fill_null(len(numbers)).to_numpy(zero_copy_only=False)
        codes: np.ndarray = np.array([*numbers, 0], np.int64)[indices]
        self.others += int((codes < 0).sum())
        codes[codes < 0] = 0
        counts = np.bincount(codes, minlength=self.codes)
        self.rows = np.pad(self.rows, (0, self.codes - len(self.rows))) + counts
        return codes


@dataclass(frozen=True)
class Label:
    """A label's column with its positive and negative values as they stand in the file, and rows of each.

    ``others`` have rows with other values, ``missing`` those without; ``problem`` says why it cannot be trained on.
    """

    column: str
    positive: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()
    positives: int = 0
    negatives: int = 0
    others: int = 0
    missing: int = 0
    guessed: bool = False
    problem: str | None = None

    @property
    def rate(self) -> float:
        """The share of positives."""
        return self.positives / max(self.positives + self.negatives, 1)

    def tree(self) -> str | dict[str, Any]:
        """As ``data.label`` of a config: the name alone where all cells are 1 or 0."""
        meant = {canonical(one) for one in (*self.positive, *self.negative)}
        if self.problem is None and meant <= {"0", "1"} and not self.missing and not self.others:
            return self.column
        return {
            "column": self.column,
            "positive": list(dict.fromkeys(map(_typed, self.positive))),
            "negative": list(dict.fromkeys(map(_typed, self.negative))),
        }

    def meaning(self, values: Sequence[str]) -> np.ndarray:
        """Of each number of :class:`LabelValues`: 1 positive, 0 negative, −1 neither; ``[codes]`` int64."""
        kinds = {**dict.fromkeys(self.negative, 0), **dict.fromkeys(self.positive, 1)}
        return np.array([-1, *(kinds.get(value, -1) for value in values)], np.int64)


def guess_column(columns: Mapping[str, pa.Array]) -> str | None:
    """The column that is called like a label and has two values in the first rows, or that is a rating."""
    for wanted in _NAMES:
        for name, cells in columns.items():
            if "_".join(words(name)) == wanted and _is_binary(cells):
                return name
    for name, cells in columns.items():
        if _is_rating(name) and _scale(cells.drop_null().unique().to_pylist()):
            return name
    for wanted in _NAMES[:-1]:
        for name, cells in columns.items():
            if wanted in words(name) and _is_binary(cells):
                return name
    return None


def rule_of(column: str, found: LabelValues, *, guessed: bool) -> Label:
    """Which values are positive: 1, yes, the upper part of a rating; of two other values the rarer."""
    rows = dict(zip(found.values, found.rows[1:].tolist(), strict=True))
    missing = int(found.rows[0]) - found.others
    positive, negative, problem = _sides(rows, found.others, is_rating=_is_rating(column))
    told = {*positive, *negative}
    return Label(
        column,
        positive,
        negative,
        sum(rows[one] for one in positive),
        sum(rows[one] for one in negative),
        sum(count for one, count in rows.items() if one not in told) + found.others,
        missing,
        guessed,
        problem,
    )


def _sides(
    rows: Mapping[str, int], others: int, *, is_rating: bool
) -> tuple[tuple[str, ...], tuple[str, ...], str | None]:
    meanings = {value: canonical(value).lower() for value in rows}
    yes = tuple(value for value, meaning in meanings.items() if meaning in _YES)
    no = tuple(value for value, meaning in meanings.items() if meaning in _NO)
    if others:
        return (), (), f"it has more than {MOST} values"
    if not rows:
        return (), (), "no row has a value of it"
    if len(set(meanings.values())) == 1:
        return yes, no or tuple(value for value in rows if value not in yes), "all rows have the same value of it"
    if yes and no and len(yes) + len(no) == len(rows):
        return yes, no, None
    scale = _scale(rows) if is_rating else None
    if scale is not None and len(rows) > 2:
        middle = (math.ceil(min(scale.values())) + max(scale.values())) / 2  # half a star is one that is lowered
        ordered = sorted(scale, key=lambda value: scale[value])
        above = tuple(value for value in ordered if scale[value] > middle)
        return above, tuple(value for value in ordered if scale[value] < middle), None
    if len(set(meanings.values())) == 2:
        counts: Counter[str] = Counter()
        for value, meaning in meanings.items():
            counts[meaning] += rows[value]
        rare, common = sorted(counts, key=lambda meaning: (counts[meaning], meaning))
        if (yes and meanings[yes[0]] == common) or (no and meanings[no[0]] == rare):
            rare, common = common, rare
        positive = tuple(value for value, meaning in meanings.items() if meaning == rare)
        return positive, tuple(value for value in rows if value not in positive), None
    return (), (), f"it has {len(rows)} values, and which of them are positive is not to be guessed"


def _is_rating(name: str) -> bool:
    return not _RATINGS.isdisjoint(words(name))


def _scale(values: Iterable[str]) -> dict[str, float] | None:
    """Values as the points of a scale, if they are a few numbers."""
    try:
        scale = {value: float(value) for value in values}
    except ValueError:
        return None
    return scale if len(scale) <= _SCALE and all(abs(number) < 1e6 for number in scale.values()) else None


def _is_binary(cells: pa.Array) -> bool:
    """Whether the cells have two values; or one so far, and that is 0 or 1."""
    values = cells.drop_null().unique()
    return len(values) == 2 or (len(values) == 1 and canonical(values[0].as_py()) in ("0", "1"))


def _typed(value: str) -> str | int | float:
    """A value as one writes it in TOML: 4 for "4.0", which is the same label."""
    meaning = canonical(value)
    if re.fullmatch(r"-?\d+", meaning):
        return int(meaning)
    if re.fullmatch(r"-?\d+\.\d+", meaning):
        return float(meaning)
    return value
