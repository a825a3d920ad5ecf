"""CAFE: rows of their own for the ids that matter most, hashed ones for the rest (Zhang et al., 2312.03256, section 3).

What an id matters is the sum of the norms of its gradients, kept for few ids by a sketch in training
(:mod:`recsys_embed.embeddings.hot_sketch`). An id whose score reaches the threshold gets a row of a private table,
which begins as a copy of the hashed row that it shared (section 3.2). Scores decay, and who falls below the threshold
gives its row back: so the private rows follow a distribution that drifts.

DIFF: gradients are normalised over the occurrences of a feature in a batch, as in the authors' code, but maintenance
runs every few steps for all features and ranks together, and not after every batch for one field after another. The
ids with the highest scores are promoted first, where the authors' code takes them in order of arrival.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, cast

import torch
from torch import Tensor

from recsys_embed.config import CafeConfig
from recsys_embed.embeddings import hot_sketch
from recsys_embed.embeddings.base import Lookup, Strategy, TableAccess, TableSpec, apportion, starts_of, vocabularies
from recsys_embed.embeddings.index_maps import Hash as HashMap
from recsys_embed.embeddings.index_maps import Sketch
from recsys_embed.embeddings.tally import UNIT, Tally
from recsys_embed.features import Feature
from recsys_embed.hashing import hash_rows
from recsys_embed.ids import Ids
from recsys_embed.seeds import seed_of

CELLS = 4
"""c, the cells of a bucket. There are as many buckets as private rows."""

DECAY_AFTER = 10
"""Scores decay whenever so many thresholds of importance for each bucket have been seen, as in the authors' code."""

TUNED = (
    (5e-4, 500.0, 0.1),
    (2e-3, 500.0, 0.2),
    (5e-3, 200.0, 0.2),
    (1e-2, 100.0, 0.3),
    (2e-2, 50.0, 0.3),
    (5e-2, 30.0, 0.5),
    (0.1, 20.0, 0.5),
    (0.2, 10.0, 0.5),
    (1.0, 10.0, 0.7),
)
"""Kept fractions up to which the authors tuned a threshold and a hash rate (on Criteo, in one epoch)."""


class Cafe(Strategy):
    """Tables ``[m_f, D]`` of hashed rows, one ``[p, D]`` of private rows, p buckets of 4 cells; an id reads one row.

    Bytes: 4 D (sum(m_f) + p) + 48 p, and 64 p for the sketch beyond 2^31 ids.
    """

    paper: ClassVar[str] = "2312.03256"
    use: ClassVar[str] = "tight budgets with a few ids that matter most and change over time; learns which they are"
    fixed: ClassVar[str] = "its sketch knows an id by its place among those of all vocabularies"
    absent = True

    def __init__(
        self,
        features: Sequence[Feature],
        dim: int,
        *,
        shared: Mapping[str, int],
        private: int,
        threshold: float,
        decay: float,
        every: int,
        label: str,
        seed: int = 0,
    ) -> None:
        self.shared, self.private, self.label = dict(shared), private, label
        self.threshold, self.decay, self.maintain_every = threshold, decay, every
        self._sizes = vocabularies(features)
        self._firsts = starts_of(self._sizes)
        sketch = Sketch(
            [self._firsts[f.vocab] for f in features],
            sum(self._sizes.values()),
            private,
            CELLS,
            seed_of(f"{label}.sketch", 0, seed),
        )
        hashed = HashMap([[seed_of(f.vocab, 0, seed)] for f in features], [[self.shared[f.vocab]] for f in features])
        super().__init__(features, dim, {"shared": hashed, "private": sketch})
        self.tally = Tally()
        self.register_buffer("seen", torch.zeros(1, dtype=torch.int64))

    seen: Tensor
    """Importance seen since the last decay, in units of the tally."""

    training_only: ClassVar[frozenset[str]] = frozenset({f"tally.{Tally.STATE}", "seen"})

    # --- sizes -----------------------------------------------------------------------------------------------

    @staticmethod
    def least(config: CafeConfig, features: Sequence[Feature], dim: int) -> int:
        """A hashed row per vocabulary, and a private one with its bucket."""
        sizes = vocabularies(features)
        return len(sizes) + _rows_of(1, sizes, dim)

    @staticmethod
    def most(config: CafeConfig, features: Sequence[Feature], dim: int) -> int:
        """As many as ids: with a row for each, there is nothing to share."""
        return max(sum(vocabularies(features).values()), Cafe.least(config, features, dim))

    @classmethod
    def sized(cls, config: CafeConfig, features: Sequence[Feature], dim: int, rows: int, label: str, seed: int) -> Cafe:
        """The bytes of ``rows`` rows: a share of ``hash_rate`` for hashed rows by cardinality, the rest for private
        rows and their sketch.

        DIFF: what rounding leaves of the private share goes to hashed rows, so that no setting is coarse.
        """
        sizes = vocabularies(features)
        total = sum(sizes.values())
        threshold, hash_rate = next(
            (threshold, rate) for kept, threshold, rate in TUNED if rows / total <= kept or kept == 1.0
        )
        hash_rate = hash_rate if config.hash_rate is None else config.hash_rate
        for_private = min(int((1 - hash_rate) * rows), rows - len(sizes))
        row_bytes = 4 * dim
        private = max(1, for_private * row_bytes // (row_bytes + CELLS * Sketch.cell_bytes(total)))
        shared = apportion(rows - _rows_of(private, sizes, dim), sizes, dict.fromkeys(sizes, 1))
        return cls(
            features,
            dim,
            shared=shared,
            private=private,
            threshold=threshold if config.threshold is None else config.threshold,
            decay=config.decay,
            every=config.every,
            label=label,
            seed=seed,
        )

    def settings(self) -> dict[str, object]:
        """Rows, and the threshold."""
        return {**super().settings(), f"{self.label}.threshold": self.threshold}

    # --- reading ---------------------------------------------------------------------------------------------

    def tables(self) -> list[TableSpec]:
        """Hashed rows per vocabulary, and the private rows of all."""
        hashed = [TableSpec(name, self.shared[name], self.dim) for name in self._sizes]
        return [*hashed, TableSpec(self._private, self.private, self.dim)]

    def reads(self) -> dict[str, list[list[str]]]:
        """A slot each; one of the two is absent."""
        return {"shared": [[f.vocab] for f in self.features], "private": [[self._private] for _ in self.features]}

    def address(self, ids: Ids) -> Lookup:
        """The private row of an id that has one, the hashed row of any other."""
        private = self.sketch(ids)
        shared = self._hashed(ids).masked_fill_(private >= 0, -1)
        return Lookup({"shared": shared, "private": private}, ids)

    def combine(self, rows: Mapping[str, Tensor], lookup: Lookup) -> Tensor:
        """Their sum: the row that is there."""
        return (rows["shared"] + rows["private"]).squeeze(-2)

    # --- learning which ids matter ---------------------------------------------------------------------------

    def observe(self, lookup: Lookup, gradients: Mapping[str, Tensor]) -> None:
        """Importance of every occurrence: the norm of its gradient over the mean norm of its feature in the batch."""
        ids = lookup.ids
        norms = gradients["shared"].norm(dim=-1).reshape(-1)  # of a sum, both terms have the same gradient
        places = torch.arange(ids.features, device=norms.device).unsqueeze(1)
        feature = ids.by_vector(ids.spread(places).expand_as(ids.lanes())).reshape(-1)
        sums = norms.new_zeros(ids.features, dtype=torch.float64).index_add_(0, feature, norms.double())
        scores = norms * (torch.bincount(feature, minlength=ids.features) / sums)[feature]
        keys = ids.by_vector(self.sketch.keys_of(ids)).reshape(-1)
        some = norms > 0
        self.tally.add(keys[some], scores[some])

    def maintain(self, tables: TableAccess) -> None:
        """Decay and demote, insert what all ranks have seen, promote."""
        span = round(DECAY_AFTER * self.private * self.threshold / UNIT)
        times = int(self.seen) // span
        if times:
            hot_sketch.decay(self.sketch, self.decay**times, self.threshold)
            self.seen -= times * span
        keys, sums = self.tally.take()
        self.seen += sums.sum()
        hit = hot_sketch.insert(self.sketch, keys, (sums * UNIT).float())
        # As in the authors' code an id is promoted when it is seen again: not on a score it took over with its cell.
        eligible = hit & (self.sketch.scores >= self.threshold)
        promoted = hot_sketch.promote(self.sketch, eligible, self.private)
        self._copy_shared_rows(promoted, tables)

    def _copy_shared_rows(self, keys: Tensor, tables: TableAccess) -> None:
        """Begin the private rows of ``keys [m]`` as their hashed rows are, optimizer state included."""
        private = self.sketch.pointers_of(keys)
        vocabularies_of = [feature.vocab for feature in self.features]
        for name, size in self._sizes.items():
            ids, place = keys - self._firsts[name], vocabularies_of.index(name)
            own = (ids >= 0) & (ids < size)
            if own.any():
                shared = hash_rows(ids[own], self._hashed.seeds[place, 0], self._hashed.rows[place, 0])
                tables.put_rows(self._private, private[own], tables.get_rows(name, shared))

    @property
    def sketch(self) -> Sketch:
        """The private read's index map."""
        return cast(Sketch, self.index_maps["private"])

    @property
    def _hashed(self) -> HashMap:
        return cast(HashMap, self.index_maps["shared"])

    @property
    def _private(self) -> str:
        return f"{self.label}.private"


def _rows_of(private: int, sizes: Mapping[str, int], dim: int) -> int:
    """The bytes of private rows and their buckets, in rows of a table, rounded up."""
    bucket = CELLS * Sketch.cell_bytes(sum(sizes.values()))
    return private - (-private * bucket // (4 * dim))
