"""DNIS: which dimensions matter for ids of which frequency, found by gradient on the validation split.

Cheng et al., "Differentiable Neural Input Search for Recommender Systems", 2020 (2006.04466), later AutoSrh. The choice
of a width for every id is relaxed to importances alpha in [0, 1], one for each dimension of each block of ids of like
frequency (section 3.2); weights and alpha take turns, a step on a training batch and one on a validation batch
(section 3.3); then the weights with the smallest |alpha e| are dropped and what is left is trained again.

Shapes: n ids of a vocabulary, R rows of all, D width, L blocks of all, P = ceil(D / 8), K weights kept.

Ids are taken as ranked by falling training frequency, as ``prepare`` ranks them: block of an id = floor(id · blocks /
n), so that blocks of a vocabulary hold equally many ids (the paper's choice on MovieLens) and no side array is needed.
``Feature.counts`` are not looked at. Id 0 (missing, unseen, rare) is in the first block.

DIFF: alpha's update is of first order; the paper's second-order term, off by default in the authors' code too, is not
built.
DIFF: the L1 penalty falls on the blocks that a batch has read. The authors' falls on all; since a gradient is divided
by its own block's mean, a block that is not read would then shrink by the full rate at every step.
DIFF: K is exact over all vocabularies of the strategy, by |alpha e|. The authors threshold |e|, or alpha.
DIFF: weights are trained on after pruning from where they were, with alpha fixed and until validation stops improving;
the authors fine-tune before pruning.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from recsys_embed.config import DnisConfig
from recsys_embed.embeddings.base import Lookup, Strategy, TableAccess, TableSpec, starts_of, vocabularies
from recsys_embed.embeddings.bits import count_bits, pack_bits, unpack_bits
from recsys_embed.embeddings.index_maps import Identity
from recsys_embed.embeddings.largest import keep_largest
from recsys_embed.embeddings.packed import MOST, PackedRows
from recsys_embed.errors import ConfigError
from recsys_embed.features import Feature, Ids
from recsys_embed.stages import TABLES, SmallOptimizer, Stage, Step

_CHUNK = 65_536  # rows that are looked at together, outside training


class Dnis(Strategy):
    """Table ``[n, D]`` of each vocabulary while training; shipped as K weights, a bit for each weight and row starts.

    A vector is ``e * alpha[block] * mask[id]``. Bytes shipped: 4 K + R ceil(D / 8) + 4 ceil(R / 32), where the budget
    sets K; alpha is folded into the weights. Training takes the full tables.
    """

    paper: ClassVar[str] = "2006.04466"
    use: ClassVar[str] = "the served size is what matters: training takes full tables, and a search before pruning"
    linear = False

    mask: Tensor
    _first_row: Tensor
    _first_block: Tensor
    _blocks: Tensor
    _ids: Tensor

    def __init__(
        self, features: Sequence[Feature], dim: int, *, kept: int, config: DnisConfig, label: str = "dnis"
    ) -> None:
        super().__init__(features, dim, {"rows": Identity()})
        self.kept, self.config, self.label = kept, config, label
        sizes = vocabularies(features)
        blocks = {name: min(config.blocks, size) for name, size in sizes.items()}
        first_row, first_block = starts_of(sizes), starts_of(blocks)
        self.alpha = nn.Parameter(torch.ones(sum(blocks.values()), dim))
        self.register_buffer("mask", pack_bits(torch.ones(1, dim, dtype=torch.bool)).repeat(sum(sizes.values()), 1))
        constants = {"_first_row": first_row, "_first_block": first_block, "_blocks": blocks, "_ids": sizes}
        for name, by_vocabulary in constants.items():
            values = [[by_vocabulary[feature.vocab]] for feature in features]
            self.register_buffer(name, torch.tensor(values), persistent=False)

    # --- bytes -----------------------------------------------------------------------------------------------

    @staticmethod
    def least(config: DnisConfig, features: Sequence[Feature], dim: int) -> int:
        """One weight: the mask takes most of the smallest size."""
        return 1

    @staticmethod
    def most(config: DnisConfig, features: Sequence[Feature], dim: int) -> int:
        """Every weight."""
        return min(sum(vocabularies(features).values()) * dim, MOST)

    @classmethod
    def sized(cls, config: DnisConfig, features: Sequence[Feature], dim: int, rows: int, label: str, seed: int) -> Dnis:
        """``rows`` is the number of weights kept."""
        return cls(features, dim, kept=rows, config=config, label=label)

    def tables(self) -> list[TableSpec]:
        """One per vocabulary."""
        return [TableSpec(name, rows, self.dim) for name, rows in vocabularies(self.features).items()]

    def reads(self) -> dict[str, list[list[str]]]:
        """One slot: the vocabulary's table."""
        return {"rows": [[feature.vocab] for feature in self.features]}

    def settings(self) -> dict[str, object]:
        """The number of weights that are kept."""
        return {f"{self.label}.kept": self.kept}

    def serving(self) -> dict[str, int]:
        """The packed form; ``mask`` is the buffer of that name."""
        sizes = PackedRows.sizes(self.mask.shape[0], self.dim, self.kept)
        return {name if name == "mask" else f"{self.label}.{name}": size for name, size in sizes.items()}

    # --- the forward pass ------------------------------------------------------------------------------------

    def address(self, ids: Ids) -> Lookup:
        """The row of each id; beside it, its row in the mask and its block."""
        lanes = ids.lanes().to(torch.int64)
        block = torch.div(lanes * ids.spread(self._blocks), ids.spread(self._ids), rounding_mode="floor")
        aux = {"row": lanes + ids.spread(self._first_row), "block": block + ids.spread(self._first_block)}
        rows = super().address(ids).rows
        return Lookup(rows, ids, {name: ids.by_vector(numbers).squeeze(-1) for name, numbers in aux.items()})

    def combine(self, rows: Mapping[str, Tensor], lookup: Lookup) -> Tensor:
        """The row, times the importances of its block, without the weights that were dropped."""
        kept = unpack_bits(self.mask[lookup.aux["row"]], self.dim)
        return rows["rows"].squeeze(-2) * self.alpha[lookup.aux["block"]] * kept

    def penalty(self, rows: Mapping[str, Tensor], lookup: Lookup) -> Tensor | None:
        """L1 on alpha, of the blocks that were read."""
        if not self.config.alpha_l1:
            return None
        read = torch.zeros(self.alpha.shape[0], dtype=self.alpha.dtype, device=self.alpha.device)
        read[lookup.aux["block"].flatten()] = 1
        return self.config.alpha_l1 * (self.alpha.abs().sum(1) @ read)

    # --- training --------------------------------------------------------------------------------------------

    def stages(self) -> tuple[Stage, ...]:
        """Warm up everything; search, with the model as it is; retrain what was kept."""
        search = (Step("train", frozenset({TABLES})), Step("val", frozenset({"alpha"})))
        return (
            Stage("warm_up", epochs=self.config.warm_up_epochs),
            Stage("search", search, epochs=self.config.search_epochs),
            Stage("retrain"),
        )

    def small_optimizers(self) -> dict[str, SmallOptimizer]:
        """Alpha by SGD, in [0, 1]; moved by the validation loss alone."""
        return {"alpha": SmallOptimizer(self.config.alpha_lr, "sgd", bounds=(0.0, 1.0))}

    def normalise(self, name: str, gradient: Tensor) -> Tensor:
        """Divided by its block's mean, so that rarely read blocks move as fast as frequent ones."""
        return gradient / (gradient.abs().mean(dim=1, keepdim=True) + 1e-8)

    def finish(self, stage: str, tables: TableAccess) -> None:
        """After the search: the K largest |alpha e| stay."""
        if stage != "search":
            return
        scores = keep_largest(lambda: (rows.abs() for rows in self._scaled(tables)), self.kept)
        self.mask.copy_(torch.cat([pack_bits(keep) for keep in scores]))

    # --- what is shipped -------------------------------------------------------------------------------------

    def serve(self, tables: TableAccess | None) -> PackedRows:
        """The packed form, alpha folded in.

        Raises:
            ConfigError: the search has not ended yet, so that every weight is still kept.
        """
        first_rows = self._first_row.flatten().tolist()
        if tables is None:
            return PackedRows(self.features, first_rows, self.mask.shape[0], self.dim, self.kept)
        found = int(count_bits(self.mask).sum())
        if found != self.kept:
            raise ConfigError(
                f"strategy Dnis ({self.label}) is to keep {self.kept} weights and still has {found}: it is pruned at "
                "the end of its stage 'search', and can be shipped after that"
            )
        masks = (unpack_bits(part, self.dim) for name in self._sizes for part in self._mask_of(name).split(_CHUNK))
        return PackedRows.of(self.features, first_rows, self.dim, self._scaled(tables), masks)

    @property
    def _sizes(self) -> dict[str, int]:
        return vocabularies(self.features)

    def _mask_of(self, name: str) -> Tensor:
        return self.mask[starts_of(self._sizes)[name] :][: self._sizes[name]]

    def _scaled(self, tables: TableAccess) -> Iterator[Tensor]:
        """``alpha e`` of all rows in parts ``[n, D]``, vocabulary after vocabulary."""
        first_block = starts_of({name: min(self.config.blocks, size) for name, size in self._sizes.items()})
        alpha = self.alpha.detach()
        for name, size in self._sizes.items():
            for ids in torch.arange(size, device=alpha.device).split(_CHUNK):
                block = ids * min(self.config.blocks, size) // size + first_block[name]
                yield tables.get_rows(name, ids).weights.detach() * alpha[block]
