"""Whether a new model takes the champion's place: a closed expression over what a night measures.

    val_auc >= champion - 0.001 and test_logloss < 0.4

``METRIC OP champion``, perhaps plus or minus a number, or ``METRIC OP NUMBER``; several are joined by ``and``. The
champion's value is that of the same metric, on the same rows. It is read word by word, and nothing of it is run.
"""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from recsys_embed.errors import ConfigError

METRICS = tuple(f"{split}_{name}" for split in ("val", "test") for name in ("auc", "logloss", "ne", "calibration"))
"""What a condition may name."""

OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    ">": operator.gt,
    "<": operator.lt,
}
CHAMPION, AND, _SIGNS = "champion", "and", ("+", "-")
_WORD = re.compile(r"\s*(>=|<=|[<>+\-]|[A-Za-z_]\w*|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?|\S)")


@dataclass(frozen=True)
class Comparison:
    """``metric operator`` the champion's value plus ``number``, or ``number`` alone."""

    metric: str
    operator: str
    champion: bool
    number: float

    def holds(self, new: float | None, champion: float | None) -> bool:
        """Whether it is so; not where a value is missing or no number."""
        bound = self.number + (champion if champion is not None else math.nan) if self.champion else self.number
        return new is not None and OPERATORS[self.operator](new, bound)


@dataclass(frozen=True)
class Condition:
    """All of its comparisons have to hold."""

    text: str
    comparisons: tuple[Comparison, ...]

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Read a condition.

        Raises:
            ConfigError: it is none; names the word, and what stands there in a condition.
        """
        words = _Words(text)
        found = [_comparison(words)]
        while words.next is not None:
            words.take((AND,), "'and', or the end")
            found.append(_comparison(words))
        return cls(text, tuple(found))

    def holds(self, new: Mapping[str, float | None], champion: Mapping[str, float | None]) -> bool:
        """Whether the new model is promoted, by the metrics of both."""
        return all(one.holds(new.get(one.metric), champion.get(one.metric)) for one in self.comparisons)


class _Words:
    """The words of a condition, one after another."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._words: Iterator[re.Match[str]] = _WORD.finditer(text)
        self.next: str | None = None
        self._step()

    def _step(self) -> None:
        match = next(self._words, None)
        self.next, self._place = (None, len(self._text)) if match is None else (match[1], match.start(1))

    def take(self, known: tuple[str, ...], what: str) -> str:
        """The next word, which is one of these."""
        if self.next not in known:
            raise self.error(what)
        word = self.next
        self._step()
        return word

    def number(self, what: str) -> float:
        """The next word, as a number."""
        try:
            value = float(self.next or "")
        except ValueError:
            raise self.error(what) from None
        if not math.isfinite(value):
            raise self.error(what)
        self._step()
        return value

    def error(self, what: str) -> ConfigError:
        found = "it ends" if self.next is None else f"there is {self.next!r}"
        return ConfigError(
            f"--promote-if {self._text!r}: {found} at character {self._place + 1}, where {what} is expected",
            path="promote_if",
        )


def _comparison(words: _Words) -> Comparison:
    metric = words.take(METRICS, f"a metric ({', '.join(METRICS)})")
    compared = words.take(tuple(OPERATORS), f"one of {' '.join(OPERATORS)}")
    if words.next == CHAMPION:
        words.take((CHAMPION,), CHAMPION)
        if words.next not in _SIGNS:
            return Comparison(metric, compared, True, 0.0)
        sign = words.take(_SIGNS, "+ or -")
        number = words.number("a number")
        return Comparison(metric, compared, True, -number if sign == "-" else number)
    return Comparison(metric, compared, False, words.number("'champion' or a number"))
