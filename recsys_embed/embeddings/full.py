"""Full embedding: one row per id, no compression. The reference that every other strategy is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from recsys_embed.config import FullConfig
from recsys_embed.embeddings.base import Lookup, Strategy, TableSpec, vocabularies
from recsys_embed.embeddings.index_maps import Identity
from recsys_embed.features import Feature


class Full(Strategy):
    """Table ``[n_f, D]`` of each vocabulary, read at the id. Bytes: 4 D sum(n_f)."""

    paper: ClassVar[str] = "-"
    use: ClassVar[str] = "when it fits: the quality that compression is measured against"

    def __init__(self, features: Sequence[Feature], dim: int) -> None:
        super().__init__(features, dim, {"rows": Identity()})

    @staticmethod
    def least(config: FullConfig, features: Sequence[Feature], dim: int) -> int:
        """All rows: it has one size."""
        return Full.most(config, features, dim)

    @staticmethod
    def most(config: FullConfig, features: Sequence[Feature], dim: int) -> int:
        """All rows."""
        return sum(vocabularies(features).values())

    @classmethod
    def sized(cls, config: FullConfig, features: Sequence[Feature], dim: int, rows: int, label: str, seed: int) -> Full:
        """See :mod:`recsys_embed.budget`."""
        return cls(features, dim)

    def grow(self, features: Sequence[Feature]) -> None:
        """Append a row for each new id."""
        self.features = tuple(features)

    def tables(self) -> list[TableSpec]:
        """One per vocabulary."""
        return [TableSpec(name, rows, self.dim) for name, rows in vocabularies(self.features).items()]

    def reads(self) -> dict[str, list[list[str]]]:
        """One slot: the vocabulary's table."""
        return {"rows": [[feature.vocab] for feature in self.features]}

    def vector_tables(self) -> dict[str, str]:
        """All of them."""
        return {name: name for name in vocabularies(self.features)}

    def combine(self, rows: Mapping[str, Tensor], lookup: Lookup) -> Tensor:
        """The row itself; a view."""
        return rows["rows"].squeeze(-2)
