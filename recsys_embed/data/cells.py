"""Where a feature's values come from: a column, a cross of columns, or a numeric column in buckets."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_embed.data.chunks import Chunk

MARKS = (("\x1e", "\x1e0"), ("\x1f", "\x1e1"))
"""What is escaped in the cells of a cross, and how; the last stands between them."""


@dataclass(frozen=True)
class Plain:
    """A column. With ``own`` a missing cell is a value like any other, ``""``, instead of sharing id 0."""

    column: str
    own: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """The raw columns it reads."""
        return (self.column,)

    def text(self, chunk: Chunk, *, exact: bool = True) -> pa.Array:
        """Values ``[rows]``, null where missing."""
        cells = chunk.text(self.column, exact=exact)
        return cells.fill_null("") if self.own else cells


@dataclass(frozen=True)
class Cross:
    """Several columns together: equal where all of them are. Missing where any is."""

    crossed: tuple[str, ...]

    @property
    def columns(self) -> tuple[str, ...]:
        """The raw columns it reads."""
        return self.crossed

    def text(self, chunk: Chunk, *, exact: bool = True) -> pa.Array:
        """Values ``[rows]``, null where missing: the cells with U+001F between them, which is escaped inside them."""
        cells = [chunk.text(column, exact=exact) for column in self.crossed]
        for mark, escaped in MARKS:
            cells = [pc.replace_substring(one, mark, escaped) for one in cells]
        return pc.binary_join_element_wise(*cells, MARKS[-1][0])


@dataclass(frozen=True)
class Buckets:
    """A numeric column as categories: bucket i holds ``edges[i - 1] <= x < edges[i]``.

    Without edges, the integer part of log(x)² for x > 2 and of x otherwise, as the winners of the Criteo challenge
    had it (Juan, Zhuang and Chin, 2014).
    """

    column: str
    edges: tuple[float, ...] | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """The raw columns it reads."""
        return (self.column,)

    def text(self, chunk: Chunk, *, exact: bool = True) -> pa.Array:
        """Values ``[rows]``, null where missing."""
        x = chunk.numbers(self.column)
        if self.edges is None:
            places = np.floor(np.where(x > 2, np.log(np.maximum(x, 2)) ** 2, x))
            number = np.clip(np.nan_to_num(places), -(2**62), 2**62).astype(np.int64)
        else:
            number = np.searchsorted(np.array(self.edges), x, side="right")
        return pc.if_else(pa.array(np.isnan(x)), None, pa.array(number, pa.int64()).cast(pa.string()))


Cells = Plain | Cross | Buckets
_KINDS: dict[str, type[Cells]] = {"plain": Plain, "cross": Cross, "buckets": Buckets}


def cells_tree(cells: Cells) -> dict[str, Any]:
    """As JSON."""
    kind = next(name for name, one in _KINDS.items() if isinstance(cells, one))
    return {"kind": kind, **asdict(cells)}


def cells_of(tree: dict[str, Any]) -> Cells:
    """What :func:`cells_tree` gave."""
    values: dict[str, Any] = {key: tuple(one) if isinstance(one, list) else one for key, one in tree.items()}
    return _KINDS[values.pop("kind")](**values)
