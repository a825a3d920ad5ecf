"""The hashing trick: a smaller table per feature, ids hashed to its rows (Weinberger et al., 0902.2206).

Rows are divided in proportion to cardinality, as the baseline of Unified Embedding does (2305.12102, section 5); where
a feature is hashed, and has none, in equal parts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from recsys_embed.config import HashConfig
from recsys_embed.embeddings.base import Lookup, Strategy, TableSpec, apportion, evenly, rows_of_use, vocabularies
from recsys_embed.embeddings.index_maps import Hash as HashMap
from recsys_embed.features import Feature
from recsys_embed.seeds import seed_of


class Hash(Strategy):
    """Table ``[m_f, D]`` of each vocabulary, read at ``hash(id)``. Bytes: 4 D sum(m_f)."""

    paper: ClassVar[str] = "0902.2206"
    use: ClassVar[str] = "the simplest baseline; ids of one feature that share a row cannot be told apart"
    takes_hashed: ClassVar[bool] = True

    def __init__(self, features: Sequence[Feature], dim: int, *, rows: Mapping[str, int], seed: int = 0) -> None:
        self.rows = dict(rows)
        index_map = HashMap([[seed_of(f.vocab, 0, seed)] for f in features], [[self.rows[f.vocab]] for f in features])
        super().__init__(features, dim, {"rows": index_map})

    @staticmethod
    def least(config: HashConfig, features: Sequence[Feature], dim: int) -> int:
        """A row per vocabulary."""
        return len(rows_of_use(features))

    @staticmethod
    def most(config: HashConfig, features: Sequence[Feature], dim: int) -> int:
        """As many rows as ids."""
        return sum(rows_of_use(features).values())

    @classmethod
    def sized(cls, config: HashConfig, features: Sequence[Feature], dim: int, rows: int, label: str, seed: int) -> Hash:
        """``rows`` over all vocabularies, by cardinality, or evenly where one is unknown."""
        if any(feature.hashed for feature in features):
            return cls(features, dim, rows=evenly(rows, rows_of_use(features)), seed=seed)
        sizes = vocabularies(features)
        return cls(features, dim, rows=apportion(rows, sizes, dict.fromkeys(sizes, 1)), seed=seed)

    def grow(self, features: Sequence[Feature]) -> None:
        """New ids are hashed to the rows there are."""
        self.features = tuple(features)

    def tables(self) -> list[TableSpec]:
        """One per vocabulary."""
        return [TableSpec(name, self.rows[name], self.dim) for name in rows_of_use(self.features)]

    def reads(self) -> dict[str, list[list[str]]]:
        """One slot: the vocabulary's table."""
        return {"rows": [[feature.vocab] for feature in self.features]}

    def combine(self, rows: Mapping[str, Tensor], lookup: Lookup) -> Tensor:
        """The row itself; a view."""
        return rows["rows"].squeeze(-2)
