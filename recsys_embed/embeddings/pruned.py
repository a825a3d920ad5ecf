"""Pruning to the byte budget: full tables while training, and as many single weights shipped as bytes allow.

What differs between strategies is what they learn beside the rows, in which stages, and by what the weights are judged
that stay: :meth:`Pruned.shaped`, :meth:`Pruned.worth`, ``stages`` and ``prunes_after``.

Shapes: n ids of a vocabulary, R rows of all, D width, L blocks of all, K weights kept.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor

from recsys_embed.embeddings.base import Lookup, Rows, Strategy, TableAccess, TableSpec, starts_of, vocabularies
from recsys_embed.embeddings.bits import count_bits, pack_bits, unpack_bits
from recsys_embed.embeddings.blocks import block_of, blocks_of, means_of
from recsys_embed.embeddings.index_maps import Identity
from recsys_embed.embeddings.largest import keep_largest
from recsys_embed.embeddings.packed import MOST, PackedRows
from recsys_embed.errors import ConfigError
from recsys_embed.features import Feature
from recsys_embed.ids import Ids

_CHUNK = 65_536  # rows that are looked at together, outside training


class Pruned(Strategy):
    """Table ``[n, D]`` of each vocabulary while training; shipped as K weights, a bit for each weight and row starts.

    A vector is ``shaped(e, block of the id) * mask[id]``. Bytes shipped: 4 K + R ceil(D / 8) + 4 ceil(R / 32), where
    the budget sets K; what :meth:`shaped` needs is folded into the weights. Training takes the full tables.

    Args:
        features: the features.
        dim: D.
        kept: K.
        config: the strategy's node.
        label: unique in the layer.
        blocks: the most blocks of a vocabulary; see :mod:`~recsys_embed.embeddings.blocks`.
    """

    linear = False
    fixed: ClassVar[str] = "what is shipped of it are the weights that a budget left of the ids there were"

    prunes_after: ClassVar[str]
    """The stage at whose end all but K weights are dropped."""

    mask: Tensor
    _first_row: Tensor
    _first_block: Tensor
    _blocks: Tensor
    _ids: Tensor

    def __init__(
        self, features: Sequence[Feature], dim: int, *, kept: int, config: Any, label: str, blocks: int = 1
    ) -> None:
        super().__init__(features, dim, {"rows": Identity()})
        self.kept, self.config, self.label = kept, config, label
        self._sizes = vocabularies(features)
        self._block_counts = blocks_of(self._sizes, blocks)
        self.register_buffer("mask", pack_bits(torch.ones(1, dim, dtype=torch.bool)).repeat(self._rows, 1))
        constants = {
            "_first_row": starts_of(self._sizes),
            "_first_block": starts_of(self._block_counts),
            "_blocks": self._block_counts,
            "_ids": self._sizes,
        }
        for name, by_vocabulary in constants.items():
            values = [[by_vocabulary[feature.vocab]] for feature in features]
            self.register_buffer(name, torch.tensor(values), persistent=False)

    # --- what differs ----------------------------------------------------------------------------------------

    @abstractmethod
    def shaped(self, rows: Tensor, block: Tensor) -> Tensor:
        """Weights ``[..., D]`` as the model sees them while nothing is dropped, of rows ``[..., D]`` and their blocks
        ``[...]``, numbered over all vocabularies; differentiable."""

    def worth(self, rows: Tensor, block: Tensor) -> Tensor:
        """By what the K weights that stay are chosen, the largest first; float32, not negative."""
        return self.shaped(rows, block).abs()

    def settle(self, tables: TableAccess) -> None:
        """The K weights have been chosen: change what retraining shall begin with."""

    # --- bytes -----------------------------------------------------------------------------------------------

    @staticmethod
    def least(config: Any, features: Sequence[Feature], dim: int) -> int:
        """One weight: the mask takes most of the smallest size."""
        return 1

    @staticmethod
    def most(config: Any, features: Sequence[Feature], dim: int) -> int:
        """Every weight."""
        return min(sum(vocabularies(features).values()) * dim, MOST)

    @classmethod
    def sized(cls, config: Any, features: Sequence[Feature], dim: int, rows: int, label: str, seed: int) -> Self:
        """``rows`` is the number of weights kept."""
        return cls(features, dim, kept=rows, config=config, label=label)

    def tables(self) -> list[TableSpec]:
        """One per vocabulary."""
        return [TableSpec(name, rows, self.dim) for name, rows in self._sizes.items()]

    def reads(self) -> dict[str, list[list[str]]]:
        """One slot: the vocabulary's table."""
        return {"rows": [[feature.vocab] for feature in self.features]}

    def settings(self) -> dict[str, object]:
        """The number of weights that are kept."""
        return {f"{self.label}.kept": self.kept}

    def serving(self) -> dict[str, int]:
        """The packed form; ``mask`` is the buffer of that name."""
        sizes = PackedRows.sizes(self._rows, self.dim, self.kept)
        return {name if name == "mask" else f"{self.label}.{name}": size for name, size in sizes.items()}

    def weights_per_id(self, blocks: int) -> dict[str, list[float]]:
        """Those that are kept; before pruning, all."""
        return {name: means_of(count_bits(self._mask_of(name)), blocks) for name in self._sizes}

    # --- the forward pass ------------------------------------------------------------------------------------

    def address(self, ids: Ids) -> Lookup:
        """The row of each id; beside it, its row in the mask and its block."""
        lanes = ids.lanes().to(torch.int64)
        block = block_of(lanes, ids.spread(self._blocks), ids.spread(self._ids))
        aux = {"row": lanes + ids.spread(self._first_row), "block": block + ids.spread(self._first_block)}
        rows = super().address(ids).rows
        return Lookup(rows, ids, {name: ids.by_vector(numbers).squeeze(-1) for name, numbers in aux.items()})

    def combine(self, rows: Mapping[str, Tensor], lookup: Lookup) -> Tensor:
        """The row as the model sees it, without the weights that were dropped."""
        kept = unpack_bits(self.mask[lookup.aux["row"]], self.dim)
        return self.shaped(rows["rows"].squeeze(-2), lookup.aux["block"]) * kept

    # --- training --------------------------------------------------------------------------------------------

    def finish(self, stage: str, tables: TableAccess) -> None:
        """After ``prunes_after``: the K weights that are worth most stay."""
        if stage != self.prunes_after:
            return
        with torch.no_grad():
            kept = keep_largest(
                lambda: (self.worth(rows.weights.detach(), block) for *_, rows, block in self.parts(tables)), self.kept
            )
            self.mask.copy_(torch.cat([pack_bits(keep) for keep in kept]))
            self.settle(tables)

    def parts(self, tables: TableAccess) -> Iterator[tuple[str, Tensor, Rows, Tensor]]:
        """All rows in parts, vocabulary after vocabulary: table, ids ``[n]``, copies of their rows, blocks ``[n]``."""
        first_block = starts_of(self._block_counts)
        for name, size in self._sizes.items():
            for ids in torch.arange(size, device=self.mask.device).split(_CHUNK):
                block = block_of(ids, self._block_counts[name], size) + first_block[name]
                yield name, ids, tables.get_rows(name, ids), block

    # --- what is shipped -------------------------------------------------------------------------------------

    def serve(self, tables: TableAccess | None) -> PackedRows:
        """The packed form of the weights as the model sees them.

        Raises:
            ConfigError: ``prunes_after`` has not ended yet, so that every weight is still kept.
        """
        first_rows = self._first_row.flatten().tolist()
        if tables is None:
            return PackedRows(self.features, first_rows, self._rows, self.dim, self.kept)
        found = int(count_bits(self.mask).sum())
        if found != self.kept:
            raise ConfigError(
                f"strategy {type(self).__name__} ({self.label}) is to keep {self.kept} weights and still has {found}: "
                f"it is pruned at the end of its stage {self.prunes_after!r}, and can be shipped after that"
            )
        masks = (unpack_bits(part, self.dim) for name in self._sizes for part in self._mask_of(name).split(_CHUNK))
        with torch.no_grad():
            shaped = (self.shaped(rows.weights.detach(), block) for *_, rows, block in self.parts(tables))
            return PackedRows.of(self.features, first_rows, self.dim, shaped, masks)

    @property
    def _rows(self) -> int:
        return sum(self._sizes.values())

    def _mask_of(self, name: str) -> Tensor:
        return self.mask[starts_of(self._sizes)[name] :][: self._sizes[name]]
