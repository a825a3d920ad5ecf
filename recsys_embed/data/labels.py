"""The label column: which values are positive, which negative, and what becomes of the others."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np

from recsys_embed.config import DataConfig
from recsys_embed.data.chunks import Chunk
from recsys_embed.data.values import canonical
from recsys_embed.errors import ConfigError


@dataclass(frozen=True)
class LabelRule:
    """Values are compared as :func:`canonical` text: 1, "1", "1.0", True and "true" are one value.

    ``strict`` (the label was given as a column's name alone: 1 and 0) makes any other value an error. Otherwise
    rows with other values, a missing one included, are dropped and counted.
    """

    column: str
    positive: tuple[str, ...] = ("1",)
    negative: tuple[str, ...] = ("0",)
    strict: bool = True

    @classmethod
    def of(cls, config: DataConfig) -> LabelRule:
        """The rule a config asks for.

        Raises:
            ConfigError: a value is both positive and negative, or there is none of a kind.
        """
        label = config.labels
        positive = tuple(dict.fromkeys(map(canonical, label.positive)))
        negative = tuple(dict.fromkeys(map(canonical, label.negative)))
        if not positive or not negative or set(positive) & set(negative):
            raise ConfigError(
                f"label values are positive or negative, at least one each: {list(label.positive)} and "
                f"{list(label.negative)}",
                path="data.label",
            )
        return cls(label.column, positive, negative, strict=isinstance(config.label, str))

    def read(self, chunk: Chunk) -> np.ndarray:
        """Labels ``[rows]`` float32: 1, 0, and NaN where the value is neither (or missing)."""
        return self._read(chunk)[0]

    def check(self, chunk: Chunk, dropped: Counter[str], bad: np.ndarray | None = None) -> np.ndarray:
        """As :meth:`read`; counts the values of the rows to drop, but of those that are ``bad [rows]``.

        Raises:
            DataError: a value that is neither, where the rule is strict.
        """
        labels, codes, values = self._read(chunk)
        other = np.isnan(labels) if bad is None else np.isnan(labels) & ~bad
        if other.any():
            if self.strict:
                index = int(other.argmax())
                value = values[codes[index]]
                raise chunk.error(
                    "the label is missing"
                    if not value
                    else "a label is 1 or 0; declare others as label = { column = …, positive = […], negative = […] }",
                    self.column,
                    index,
                    value,
                )
            found, counts = np.unique(codes[other], return_counts=True)
            for code, count in zip(found, counts, strict=True):
                dropped[values[code]] += int(count)
        return labels

    def _read(self, chunk: Chunk) -> tuple[np.ndarray, np.ndarray, list[str]]:
        cells = chunk.text(self.column, exact=False).dictionary_encode()
        values: list[str] = [*cells.dictionary.to_pylist(), ""]
        codes = cells.indices.fill_null(len(values) - 1).to_numpy(zero_copy_only=False)
        meaning = [1.0 if v in self.positive else 0.0 if v in self.negative else np.nan for v in map(canonical, values)]
        return np.array(meaning, np.float32)[codes], codes, values
