"""Unified (multiplexed) embedding: all features share one table (Coleman et al., 2305.12102, sections 3 and 4).

Each feature reads k rows of width D/k at k independent hashes, seeded by its vocabulary's name, and concatenates
them. Collisions between features are harmless where the model reads features in different directions, and there are
far fewer collisions within a feature than in a small table of its own.

DIFF: hash seeds come from names, not from the order in which features were added, so that a new feature changes no
other feature's rows; every feature has the same number of chunks, so that vectors have one width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from recsys_embed.config import UnifiedConfig
from recsys_embed.embeddings.base import Lookup, Strategy, TableSpec, rows_of_use
from recsys_embed.embeddings.index_maps import Hash as HashMap
from recsys_embed.errors import ConfigError
from recsys_embed.features import Feature
from recsys_embed.hashing import MAX_ROWS
from recsys_embed.seeds import seed_of


class Unified(Strategy):
    """T tables ``[M, D/k]`` for everybody; chunk j of a feature lies in table (a hash of its name + j) mod T.

    Bytes: 4 (D/k) sum of the tables' rows.
    """

    paper: ClassVar[str] = "2305.12102"
    use: ClassVar[str] = "the strongest simple choice under a tight budget; nothing to tune but the number of chunks"
    takes_hashed: ClassVar[bool] = True

    def __init__(
        self, features: Sequence[Feature], dim: int, *, rows: Sequence[int], chunks: int, label: str, seed: int = 0
    ) -> None:
        if dim % chunks:
            raise ConfigError(f"unified: dim {dim} is not a multiple of chunks = {chunks}")
        self.rows, self.chunks, self.label = list(rows), chunks, label
        self._homes = [
            [(seed_of(f.vocab, -1, seed) + chunk) % len(self.rows) for chunk in range(chunks)] for f in features
        ]
        index_map = HashMap(
            [[seed_of(f.vocab, chunk, seed) for chunk in range(chunks)] for f in features],
            [[self.rows[home] for home in homes] for homes in self._homes],
        )
        super().__init__(features, dim, {"rows": index_map})

    @staticmethod
    def least(config: UnifiedConfig, features: Sequence[Feature], dim: int) -> int:
        """A row per table."""
        return config.tables

    @staticmethod
    def most(config: UnifiedConfig, features: Sequence[Feature], dim: int) -> int:
        """As many weights as the full tables, and a row per table; as many rows as can be addressed at most."""
        rows = max(config.tables, config.chunks * sum(rows_of_use(features).values()))
        return min(config.tables * MAX_ROWS, rows)

    @classmethod
    def sized(
        cls, config: UnifiedConfig, features: Sequence[Feature], dim: int, rows: int, label: str, seed: int
    ) -> Unified:
        """``rows`` over the shared tables, evenly."""
        count = config.tables
        sizes = [(rows + place) // count for place in range(count)]
        return cls(features, dim, rows=sizes, chunks=config.chunks, label=label, seed=seed)

    def grow(self, features: Sequence[Feature]) -> None:
        """New ids are hashed to the rows there are."""
        self.features = tuple(features)

    def tables(self) -> list[TableSpec]:
        """The shared tables."""
        return [TableSpec(self._name(home), rows, self.dim // self.chunks) for home, rows in enumerate(self.rows)]

    def reads(self) -> dict[str, list[list[str]]]:
        """A slot per chunk."""
        return {"rows": [[self._name(home) for home in homes] for homes in self._homes]}

    def combine(self, rows: Mapping[str, Tensor], lookup: Lookup) -> Tensor:
        """The chunks, concatenated; a view."""
        return rows["rows"].flatten(-2)

    def _name(self, home: int) -> str:
        return f"{self.label}.{home}"
