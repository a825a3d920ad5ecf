"""ROBE: random offset block embedding, one flat array for all features (Desai et al., MLSys 2022, 2108.02191).

A vector is cut into blocks of Z consecutive coordinates. Block j of an id starts at a hashed place of the array and
takes the Z entries from there on, past the end from the beginning again: blocks lie anywhere, so they overlap in part.
A hashed sign on every coordinate lets what collides cancel on average (as in the sketches the paper starts from).

The array is a table of width 1: a back end sees nothing new. One float more or less is one row more or less, so a
budget is met to within four bytes.

DIFF: the paper hashes ((A e + B x + C j + D) mod P) mod M with e the table, x the id and j the block; here the
library's 64-bit mix takes the seed of (vocabulary, block). The table's coefficient is thus always on: equal ids of two
vocabularies are as independent as any two ids, which they are not in code that leaves it out.

DIFF: the paper's Z may exceed D, so that ids with neighbouring numbers share a block; here a block ends with its
vector, for neighbours in number have nothing in common, and gathers by id would gain no locality.

Z is the length of a block, as in the paper; some code calls the number of blocks so. By default it is 8: a block then
is one 32-byte sector of memory or two, where single floats are a sector each, and vectors of 8, 16, 32 or 64 are whole
blocks. Longer blocks have less variance in the paper's analysis, shorter ones share less with any one other id; on
planted data at a fiftieth of the bytes, lengths of 1, 4, 8 and 16 cannot be told apart.

DIFF: Adagrad keeps its sum per entry of the array, "row-wise" too: a row is one float.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from recsys_embed.config import RobeConfig
from recsys_embed.embeddings.base import Lookup, Strategy, TableSpec, rows_of_use
from recsys_embed.embeddings.index_maps import Blocks
from recsys_embed.features import Feature
from recsys_embed.hashing import MAX_ROWS, SIGNS, hash_signs
from recsys_embed.ids import Ids
from recsys_embed.seeds import seed_of


class Robe(Strategy):
    """One array ``[M, 1]``; D slots of every feature read its blocks of at most Z entries. Bytes: 4 M."""

    paper: ClassVar[str] = "2108.02191"
    use: ClassVar[str] = "a budget to be met to the float; every coordinate is a read of its own, so steps are slower"
    takes_hashed: ClassVar[bool] = True

    _sign_seeds: Tensor

    def __init__(
        self,
        features: Sequence[Feature],
        dim: int,
        *,
        entries: int,
        block: int,
        signs: bool,
        label: str,
        seed: int = 0,
    ) -> None:
        self.entries, self.label = entries, label
        length = min(block, dim)
        starts = [[seed_of(f.vocab, j, seed) for j in range(-(-dim // length))] for f in features]
        super().__init__(features, dim, {"entries": Blocks(starts, entries, length, dim)})
        # The sign depends on the id, so vectors with signs cannot be pooled in the read.
        self.linear = not signs
        words = [[seed_of(f.vocab, -1 - word, seed) for word in range(-(-dim // SIGNS))] for f in features]
        self.register_buffer("_sign_seeds", torch.tensor(words, dtype=torch.int64) if signs else None, persistent=False)

    @staticmethod
    def least(config: RobeConfig, features: Sequence[Feature], dim: int) -> int:
        """A whole vector: in less, the entries of one block repeat themselves."""
        return dim

    @staticmethod
    def most(config: RobeConfig, features: Sequence[Feature], dim: int) -> int:
        """As many weights as the full tables, and no more than can be addressed."""
        return min(MAX_ROWS, dim * sum(rows_of_use(features).values()))

    @classmethod
    def sized(cls, config: RobeConfig, features: Sequence[Feature], dim: int, rows: int, label: str, seed: int) -> Robe:
        """``rows`` entries, of one float each."""
        return cls(features, dim, entries=rows, block=config.block, signs=config.signs, label=label, seed=seed)

    def grow(self, features: Sequence[Feature]) -> None:
        """New ids are hashed to the entries there are."""
        self.features = tuple(features)

    def tables(self) -> list[TableSpec]:
        """The array, as rows of width 1."""
        return [TableSpec(self._name, self.entries, 1)]

    def reads(self) -> dict[str, list[list[str]]]:
        """A slot per coordinate."""
        return {"entries": [[self._name] * self.dim for _ in self.features]}

    def address(self, ids: Ids) -> Lookup:
        """The entries of every block and, in ``aux``, the signs ``[..., D]``."""
        lookup = super().address(ids)
        if self.linear:
            return lookup
        signs = hash_signs(ids.by_vector(ids.lanes()), ids.by_vector(ids.spread(self._sign_seeds)), self.dim)
        return replace(lookup, aux={"signs": signs})

    def combine(self, rows: Mapping[str, Tensor], lookup: Lookup) -> Tensor:
        """The entries side by side, with their signs; a view without signs."""
        vectors = rows["entries"].flatten(-2)
        return vectors if self.linear else vectors * lookup.aux["signs"]

    @property
    def _name(self) -> str:
        return f"{self.label}.array"
