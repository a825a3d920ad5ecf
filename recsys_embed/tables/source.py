"""Ids of which a read makes row numbers by itself.

Shapes: n features of a read, S slots, B samples, N occurrences, L = n * S lanes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

Numbering = Literal["as_they_are", "hashes", "digits"]
"""How an id becomes a row number by two constants: a hash's seed and number of rows, or a digit's divisor and base."""


@dataclass(frozen=True)
class Source:
    """The ids of one strategy's read.

    Args:
        features: n.
        ids: ``[n, B]``, or ``[N]`` where jagged, as :class:`~recsys_embed.ids.Ids` has them.
        numbering: how row numbers are made of them; ids that are numbers as they are have one slot.
        constants: ``int64 [2, n, S]``; None for ids that are numbers as they are.
        rows: makes the row numbers where no read does, in the order of lanes: ``[L, B]``, feature by feature, or
            ``[S*N]``, slot by slot.
    """

    features: int
    ids: Tensor
    numbering: Numbering
    constants: Tensor | None
    rows: Callable[[], Tensor]

    @property
    def slots(self) -> int:
        """S."""
        return 1 if self.constants is None else self.constants.shape[2]

    @property
    def lanes(self) -> int:
        """L."""
        return self.features * self.slots

    def flat(self) -> Source:
        """Those of a matrix with one slot as ``[n*B]``, jagged."""
        return replace(self, ids=self.ids.reshape(-1), rows=lambda: self.rows().reshape(-1))

    @classmethod
    def of(cls, rows: Tensor, lanes: int) -> Source:
        """Row numbers that are there."""
        return cls(lanes, rows, "as_they_are", None, lambda: rows)
