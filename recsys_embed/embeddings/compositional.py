"""Compositional embeddings of complementary partitions (Shi et al., 1909.02107).

An id is written in a mixed radix with k digits; each digit reads a row of its own small table, and the rows are
multiplied, added or concatenated (section 4). Two digits are the quotient-remainder trick (section 2): the remainder
table has m rows, the quotient table ceil(n/m). Distinct ids differ in at least one digit.

DIFF: m is not one number of "collisions" for all features; each feature gets its share R_f of the rows and takes the
largest remainder table that leaves enough quotients, so that every budget between the smallest and full is met. As ids
are ranked by falling frequency, the most frequent ids then have a remainder row of their own.

DIFF: initial weights of a product have the scale of a full table's: one factor as there, the others around 1 (two
factors near 0 start at a product of 1e-3 and hardly learn; factors in [0, 1] start all positive).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from recsys_embed.config import CompositionalConfig
from recsys_embed.embeddings.base import FULL_INIT, Lookup, Strategy, TableSpec, Uniform, apportion, vocabularies
from recsys_embed.embeddings.index_maps import Digits
from recsys_embed.errors import ConfigError
from recsys_embed.features import Feature
from recsys_embed.tables.combination import Combination, combined

AROUND_ONE = Uniform(0.5, 1.5)
COMBINATIONS: Mapping[str, Combination] = {"multiply": "product", "add": "sum"}


class Compositional(Strategy):
    """k tables of each vocabulary, read at the digits of the id. Bytes: 4 W sum(radices), W = D, or D/k by concat."""

    paper: ClassVar[str] = "1909.02107"
    use: ClassVar[str] = "every id keeps a vector of its own; good while the remainder tables hold the frequent ids"

    def __init__(
        self, features: Sequence[Feature], dim: int, *, radices: Mapping[str, Sequence[int]], operation: str
    ) -> None:
        self.operation = operation
        self.radices = {name: list(bases) for name, bases in radices.items()}
        self.partitions = len(next(iter(self.radices.values())))
        if operation == "concat" and dim % self.partitions:
            raise ConfigError(f"compositional: dim {dim} is not a multiple of partitions = {self.partitions}")
        for name, size in vocabularies(features).items():
            if math.prod(self.radices[name]) < size:
                raise ConfigError(
                    f"compositional: radices {self.radices[name]} of {name!r} cannot tell {size} ids apart"
                )
        super().__init__(features, dim, {"rows": self._digits(features)})
        self.linear = operation != "multiply"
        self.combination = COMBINATIONS.get(operation)

    def _digits(self, features: Sequence[Feature]) -> Digits:
        bases = [self.radices[f.vocab] for f in features]
        return Digits([[math.prod(row[:digit]) for digit in range(self.partitions)] for row in bases], bases)

    @staticmethod
    def least(config: CompositionalConfig, features: Sequence[Feature], dim: int) -> int:
        """The balanced radices of every vocabulary."""
        return sum(sum(_smallest(size, config.partitions)) for size in vocabularies(features).values())

    @staticmethod
    def most(config: CompositionalConfig, features: Sequence[Feature], dim: int) -> int:
        """The remainder tables at full size: more rows would never be read."""
        return sum(_largest(config, size) for size in vocabularies(features).values())

    @classmethod
    def sized(
        cls, config: CompositionalConfig, features: Sequence[Feature], dim: int, rows: int, label: str, seed: int
    ) -> Compositional:
        """``rows`` over all vocabularies by cardinality, then over each one's radices."""
        sizes = vocabularies(features)
        least = {name: sum(_smallest(size, config.partitions)) for name, size in sizes.items()}
        parts = apportion(rows, {name: _largest(config, size) for name, size in sizes.items()}, least)
        radices = {name: split_radices(size, config.partitions, parts[name]) for name, size in sizes.items()}
        return cls(features, dim, radices=radices, operation=config.operation)

    def grow(self, features: Sequence[Feature]) -> None:
        """Append rows to the table of the last digit, until all ids differ in a digit; the others stay."""
        for name, size in vocabularies(features).items():
            bases = self.radices[name]
            bases[-1] = max(bases[-1], -(-size // math.prod(bases[:-1])))
        self.features, self.index_maps["rows"] = tuple(features), self._digits(features)

    def tables(self) -> list[TableSpec]:
        """One per vocabulary and digit."""
        concat = self.operation == "concat"
        width = self.dim // self.partitions if concat else self.dim
        add = Uniform(FULL_INIT.low / math.sqrt(self.partitions), FULL_INIT.high / math.sqrt(self.partitions))
        inits = {"concat": [FULL_INIT], "add": [add], "multiply": [FULL_INIT, AROUND_ONE]}[self.operation]
        return [
            TableSpec(f"{name}.{digit}", rows, width, inits[min(digit, len(inits) - 1)])
            for name, bases in sorted(self.radices.items())
            for digit, rows in enumerate(bases)
        ]

    def reads(self) -> dict[str, list[list[str]]]:
        """A slot per digit."""
        return {"rows": [[f"{f.vocab}.{digit}" for digit in range(self.partitions)] for f in self.features]}

    def combine(self, rows: Mapping[str, Tensor], lookup: Lookup) -> Tensor:
        """The digits' rows, multiplied, added or concatenated."""
        slots = rows["rows"]
        return slots.flatten(-2) if self.combination is None else combined(slots, self.combination)


def _largest(config: CompositionalConfig, size: int) -> int:
    """The most rows that are of use: as many weights as the full table, at most a remainder row for each id."""
    rows = size + config.partitions - 1 if config.operation == "concat" else size
    return max(rows, sum(_smallest(size, config.partitions)))


def _smallest(size: int, partitions: int) -> list[int]:
    """The radices with the fewest rows whose product reaches ``size``, largest first.

    >>> _smallest(100, 2), _smallest(27, 3), _smallest(1, 2)
    ([10, 10], [3, 3, 3], [1, 1])
    """
    if partitions == 1:
        return [size]
    root = max(1, round(size ** (1 / partitions)))
    candidates = [
        sorted([base, *_smallest(-(-size // base), partitions - 1)], reverse=True)
        for base in range(max(1, root - 1), root + 2)
    ]
    return min(candidates, key=lambda bases: (sum(bases), bases[0]))


def split_radices(size: int, partitions: int, rows: int) -> list[int]:
    """Radices of ``size`` ids with ``rows`` rows in all: the first as large as it can be, the others balanced.

    >>> split_radices(100, 2, 20), split_radices(100, 2, 54), split_radices(100, 3, 40)
    ([10, 10], [52, 2], [36, 2, 2])

    Raises:
        ConfigError: not even balanced radices are that small.
    """
    smallest = _smallest(size, partitions)
    if rows < sum(smallest):
        raise ConfigError(f"compositional: {size} ids need at least {sum(smallest)} rows, got {rows}")

    def others(quotients: int) -> list[int]:
        return _smallest(quotients, partitions - 1)

    # The fewest quotients that fit: `first + sum(others)` falls, then rises in `quotients`; bisect the falling part.
    low, high = 1, max(1, -(-size // smallest[0]))
    while low < high:
        middle = (low + high) // 2
        if -(-size // middle) + sum(others(middle)) <= rows:
            high = middle
        else:
            low = middle + 1
    rest = others(low)
    first = rows - sum(rest)
    return [first, *rest]
