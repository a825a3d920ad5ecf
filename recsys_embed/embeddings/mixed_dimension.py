"""Mixed dimension embeddings: narrower rows where a vocabulary is large (Ginart et al., 1909.11810).

Rows of a vocabulary, or of a block of its ids, have a width w; a matrix w x D of its own takes them to the common width
(section 3). Widths fall with cardinality by a power law (section 4): d = base · (n_min / n)^alpha, from alpha = 0, one
width for all, to alpha = 1, as many weights for every vocabulary.

Shapes: F features, V vocabularies, B samples, N id occurrences, n ids of a vocabulary, w width of a row, D of a vector.

Blocks of a vocabulary hold equally many ids of like frequency, see :mod:`recsys_embed.embeddings.blocks`; one with
fewer ids than blocks has a block for each id.

DIFF: the budget is bytes of all that is served, projections too, after rounding. The published solver counts the
weights of unrounded tables.
DIFF: rows are full wherever the narrower ones and their projection would take no fewer bytes.
DIFF: below alpha = 1 a smaller budget is met by narrowing the widest, where the authors stop. A vocabulary alone, which
no alpha makes narrower, can so be compressed too.
DIFF: rows begin as those of a full table, and projections so that a vector has the spread of a full one whatever its
width. The authors' Xavier initialisation starts narrow rows at smaller vectors.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from recsys_embed.config import MixedDimensionConfig
from recsys_embed.embeddings.base import Lookup, Strategy, TableSpec, vocabularies
from recsys_embed.embeddings.blocks import block_of, bounds_of, means_of
from recsys_embed.embeddings.index_maps import Identity, IndexMap, Stretch
from recsys_embed.errors import ConfigError
from recsys_embed.features import Feature
from recsys_embed.ids import Ids
from recsys_embed.seeds import seed_of

STEPS = 1 << 16
"""Settings of the knob from the narrowest widths to the base, and as many from alpha = 1 to alpha = 0."""


class MixedDimension(Strategy):
    """Table ``[n, w]`` of each vocabulary and a projection ``[w, D]``. Bytes: 4 n w + 4 w D each, or 4 n D where w = D.

    The features of one strategy have the same widths, one for each block: a read for every block that is not dropped.
    """

    paper: ClassVar[str] = "1909.11810"
    use: ClassVar[str] = "every id keeps a row of its own; large vocabularies, whose ids are rare, get narrow ones"
    fixed: ClassVar[str] = "widths follow from the size of the vocabulary, and from the ranks of its ids"

    _places: Tensor
    _vocabulary: Tensor
    _zeros: Tensor

    def __init__(self, features: Sequence[Feature], dim: int, *, widths: Sequence[int]) -> None:
        self.widths = tuple(widths)
        self._reads = {str(block): width for block, width in enumerate(self.widths) if width}
        bounds = {f.vocab: bounds_of(len(self.widths), f.size) for f in features}
        index_maps: dict[str, IndexMap] = {
            read: Identity()
            if len(self.widths) == 1
            else Stretch([(bounds[f.vocab][int(read)], bounds[f.vocab][int(read) + 1]) for f in features])
            for read in self._reads
        }
        super().__init__(features, dim, index_maps)
        self.absent = len(self.widths) > 1
        self.linear = bool(self._reads)  # without rows there is nothing to pool
        self._bounds = dict(sorted(bounds.items()))
        self.projections = nn.ParameterDict(
            {read: torch.zeros(len(bounds), width, dim) for read, width in self._reads.items() if width < dim}
        )
        names = list(self._bounds)
        self.register_buffer("_places", torch.arange(len(features)).unsqueeze(1), persistent=False)
        self.register_buffer("_vocabulary", torch.tensor([names.index(f.vocab) for f in features]), persistent=False)
        self.register_buffer("_zeros", torch.zeros(dim), persistent=False)

    # --- sizes -----------------------------------------------------------------------------------------------

    @staticmethod
    def least(config: MixedDimensionConfig, features: Sequence[Feature], dim: int) -> int:
        """Width 1 for every vocabulary, or the widths given."""
        return 0

    @staticmethod
    def most(config: MixedDimensionConfig, features: Sequence[Feature], dim: int) -> int:
        """Full width for all."""
        if config.width is not None:
            return 0
        return STEPS if config.alpha is not None else 2 * STEPS

    @classmethod
    def sized(
        cls, config: MixedDimensionConfig, features: Sequence[Feature], dim: int, rows: int, label: str, seed: int
    ) -> Strategy:
        """Of features that get the same widths; see :meth:`divided`."""
        (one,) = cls.divided(config, features, dim, rows, label, seed)
        return one

    @classmethod
    def divided(
        cls, config: MixedDimensionConfig, features: Sequence[Feature], dim: int, rows: int, label: str, seed: int
    ) -> tuple[Strategy, ...]:
        """A strategy for each width, or tuple of them; ``rows`` is the setting of the knob.

        Raises:
            ConfigError: a width is above D.
        """
        sizes = vocabularies(features)
        widths = _given(config.widths, sizes, dim) if config.width is not None else _found(config, sizes, dim, rows)
        alike: dict[tuple[int, ...], list[Feature]] = {}
        for feature in features:
            alike.setdefault(widths[feature.vocab], []).append(feature)
        return tuple(cls(members, dim, widths=one) for one, members in sorted(alike.items()))

    def _table(self, vocabulary: str, read: str) -> str:
        return vocabulary if len(self.widths) == 1 else f"{vocabulary}.{read}"

    def tables(self) -> list[TableSpec]:
        """One per vocabulary and block that is not dropped."""
        return [
            TableSpec(self._table(name, read), bounds[int(read) + 1] - bounds[int(read)], width)
            for name, bounds in self._bounds.items()
            for read, width in self._reads.items()
        ]

    def reads(self) -> dict[str, list[list[str]]]:
        """One slot for each block."""
        return {read: [[self._table(feature.vocab, read)] for feature in self.features] for read in self._reads}

    def vector_tables(self) -> dict[str, str]:
        """All, at full width."""
        return {name: name for name in self._bounds} if self.widths == (self.dim,) else {}

    def own_rows(self, vocabulary: str, ids: Tensor) -> Mapping[str, Tensor]:
        """The row in the table of the id's block, where it was not dropped."""
        bounds = self._bounds[vocabulary]
        here = {read: (ids >= bounds[int(read)]) & (ids < bounds[int(read) + 1]) for read in self._reads}
        return {self._table(vocabulary, read): ids[one] - bounds[int(read)] for read, one in here.items()}

    def settings(self) -> dict[str, object]:
        """The width of every vocabulary, or block."""
        return {
            f"{self._table(name, str(block))}.width": width
            for name in self._bounds
            for block, width in enumerate(self.widths)
        }

    def weights_per_id(self, blocks: int) -> dict[str, list[float]]:
        """The widths of their rows."""
        widths = torch.tensor(self.widths, device="cpu")
        return {
            name: means_of(widths.repeat_interleave(torch.tensor(bounds, device="cpu").diff()), blocks)
            for name, bounds in self._bounds.items()
        }

    # --- the forward pass ------------------------------------------------------------------------------------

    def initialise(self, seed: int) -> None:
        """Projections uniform of variance 1/w."""
        for read, projection in self.projections.items():
            width, dim = projection.shape[1:]
            for place, name in enumerate(self._bounds):
                own_seed = seed_of(f"{self._table(name, read)}.projection", 0, seed) % 2**63
                generator, bound = torch.Generator().manual_seed(own_seed), math.sqrt(3 / width)
                drawn = torch.empty(width, dim, device="cpu").uniform_(-bound, bound, generator=generator)
                projection.data[place].copy_(drawn)

    def address(self, ids: Ids) -> Lookup:
        """The row of each id, and the place of its feature."""
        feature = ids.by_vector(ids.spread(self._places).expand_as(ids.lanes())).squeeze(-1)
        return Lookup(super().address(ids).rows, ids, {"feature": feature})

    def combine(self, rows: Mapping[str, Tensor], lookup: Lookup) -> Tensor:
        """The row of its block, projected; zeros where it has none."""
        feature = lookup.aux["feature"]
        if not rows:
            return self._zeros.expand(*feature.shape, -1)
        first, *others = (self._widened(read, one.squeeze(-2), feature) for read, one in rows.items())
        for other in others:
            first = first + other
        return first

    def _widened(self, read: str, rows: Tensor, feature: Tensor) -> Tensor:
        """Vectors ``[..., D]`` of rows ``[..., w]``."""
        if read not in self.projections:
            return rows
        projection = self.projections[read].index_select(0, self._vocabulary).to(rows.dtype)  # [F, w, D]
        if rows.dim() == 3:
            return torch.einsum("bfw,fwd->bfd", rows, projection)
        # Per occurrence, which lie feature by feature: a matrix for each would take w times the memory of the vectors.
        counts = torch.bincount(feature.reshape(-1), minlength=len(projection)).tolist()
        parts = rows.reshape(-1, rows.shape[-1]).split(counts)
        wide = torch.cat([part @ one for part, one in zip(parts, projection, strict=True)])
        return wide.view(*rows.shape[:-1], -1)


# --- widths --------------------------------------------------------------------------------------------------


def closed_form(
    sizes: Mapping[str, int], dim: int, *, alpha: float, base: float, power_of_two: bool = True
) -> dict[str, int]:
    """Widths base · (n_min / n)^alpha of vocabularies, between 1 and D: rounded, then to a power of two.

    >>> closed_form({"user": 1_000_000, "item": 10_000, "city": 100}, 16, alpha=0.3, base=16)
    {'user': 1, 'item': 4, 'city': 16}
    """
    smallest = min(sizes.values())

    def width(size: int) -> int:
        found: int = max(1, round(base * (smallest / size) ** alpha))
        return min(dim, 1 << round(math.log2(found)) if power_of_two and found < dim else found)

    return {name: width(size) for name, size in sizes.items()}


def _found(config: MixedDimensionConfig, sizes: Mapping[str, int], dim: int, step: int) -> dict[str, tuple[int, ...]]:
    """By the closed form, at a setting of the knob."""
    if config.alpha is None:
        base, alpha = dim ** min(1.0, step / STEPS), min(1.0, 2 - step / STEPS)
    else:
        alpha = config.alpha
        # At the end even the largest vocabulary is as wide as D.
        base = (dim * (max(sizes.values()) / min(sizes.values())) ** alpha) ** (step / STEPS)
    widths = closed_form(sizes, dim, alpha=alpha, base=base, power_of_two=config.power_of_two)
    weight = config.table_storage().bytes

    def worth_it(width: int, size: int) -> bool:
        return size * width * weight + 4 * width * dim < size * dim * weight

    return {name: (width if worth_it(width, sizes[name]) else dim,) for name, width in widths.items()}


def _given(asked: Sequence[int], sizes: Mapping[str, int], dim: int) -> dict[str, tuple[int, ...]]:
    """The widths of the blocks that each vocabulary has."""
    for width in asked:
        if width > dim:
            raise ConfigError(
                f"mixed_dimension: width {width} of {', '.join(map(repr, sizes))} is above dim = {dim}, the width of "
                "every vector",
                path="embedding.strategy",
            )

    def of(size: int) -> tuple[int, ...]:
        if size >= len(asked):
            return tuple(asked)
        return tuple(asked[block] for block in block_of(torch.arange(size, device="cpu"), len(asked), size).tolist())

    return {name: of(size) for name, size in sizes.items()}
