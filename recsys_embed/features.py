"""Features and the batch of ids that all strategies read.

Shapes: F features, B samples, N id occurrences, S slots of a feature (chunks, probes, partitions).

A batch is feature-major. With single-valued features only it is a matrix ``[F, B]``; with a multi-valued
feature among them it is jagged, ``values [N]`` cut by ``offsets [F*B + 1]``::

    features user, tags; samples 0, 1, 2     values   u0 u1 u2 | t7 t9 |  | t3
                                             offsets  0  1  2    3       5  5  6
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from recsys_embed.errors import ConfigError

HASHED_IDS = 2**63 - 1
"""The ids of hashed features are below this, as the largest integer there is stands for no id."""


@dataclass(frozen=True)
class Feature:
    """A categorical feature: ids in ``[0, cardinality)``.

    Features of the same ``vocabulary`` (by default the feature's own name) share rows. The cardinality may be left
    out where another feature of the layer is the one that the vocabulary is named after. ``counts [cardinality]``
    are training frequencies, for strategies that need them.

    A ``hashed`` feature has no vocabulary and no cardinality: its ids are hashes of raw values, in ``[0, HASHED_IDS)``,
    and nobody knows how many there are. So are all features of its ``vocabulary``.

    ``born`` is the cardinality that its vocabulary had when the model was first trained, where it has grown since.
    """

    name: str
    cardinality: int | None = None
    multi_valued: bool = False
    pooling: Literal["sum", "mean"] = "sum"
    vocabulary: str | None = None
    counts: np.ndarray | None = field(default=None, compare=False, repr=False)
    hashed: bool = False
    born: int | None = None

    @property
    def size(self) -> int:
        """The cardinality, known once :func:`resolve` has run.

        Raises:
            ConfigError: the feature is hashed.
        """
        if self.hashed:
            raise ConfigError(f"feature {self.name!r} is hashed: nobody knows how many ids it has")
        assert self.cardinality is not None
        return self.cardinality

    @property
    def limit(self) -> int:
        """Its ids are below this."""
        return HASHED_IDS if self.hashed else self.size

    @property
    def vocab(self) -> str:
        """The vocabulary's name."""
        return self.vocabulary or self.name


def resolve(features: Sequence[Feature]) -> tuple[Feature, ...]:
    """Fill in vocabularies and the cardinalities they imply.

    Raises:
        ConfigError: no feature, a name twice, no cardinality, or two for one vocabulary.
    """
    if not features:
        raise ConfigError("an embedding layer needs at least one feature")
    names = [feature.name for feature in features]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"feature {name!r} is given twice")
    hashed = {feature.vocab for feature in features if feature.hashed}
    sizes: dict[str, int] = {}
    for feature in features:
        if feature.pooling not in ("sum", "mean"):
            raise ConfigError(f"feature {feature.name!r}: pooling is 'sum' or 'mean', got {feature.pooling!r}")
        if feature.cardinality is None:
            continue
        if feature.vocab in hashed:
            raise ConfigError(
                f"feature {feature.name!r} has cardinality {feature.cardinality}, but its vocabulary {feature.vocab!r} "
                "is hashed, and has none"
            )
        if feature.cardinality < 1:
            raise ConfigError(f"feature {feature.name!r}: cardinality must be at least 1, got {feature.cardinality}")
        if feature.born is not None and not 1 <= feature.born <= feature.cardinality:
            raise ConfigError(
                f"feature {feature.name!r} was born with {feature.born} ids, and has {feature.cardinality}: no id "
                "is taken away"
            )
        if sizes.setdefault(feature.vocab, feature.cardinality) != feature.cardinality:
            raise ConfigError(
                f"vocabulary {feature.vocab!r} has cardinality {sizes[feature.vocab]} and, by feature "
                f"{feature.name!r}, {feature.cardinality}"
            )
    for feature in features:
        if feature.vocab not in sizes and feature.vocab not in hashed:
            raise ConfigError(
                f"feature {feature.name!r} has no cardinality, and no feature gives {feature.vocab!r} one"
            )
    return tuple(
        replace(f, vocabulary=f.vocab, cardinality=sizes.get(f.vocab), hashed=f.vocab in hashed) for f in features
    )


def grown_features(features: Sequence[Feature], cardinalities: Mapping[str, int]) -> tuple[Feature, ...]:
    """The features with larger vocabularies; frequencies of new ids are 0.

    Raises:
        ConfigError: there is no such vocabulary, it is hashed, or it has more ids already.
    """
    known = {feature.vocab: feature for feature in features}
    for name, size in cardinalities.items():
        if name not in known:
            raise ConfigError(f"no vocabulary {name!r}; there are {', '.join(known)}")
        if size < known[name].size:
            raise ConfigError(f"vocabulary {name!r} has {known[name].size} ids already, and cannot have {size}")
    return tuple(
        feature
        if cardinalities.get(feature.vocab, feature.cardinality) == feature.cardinality
        else _grown(feature, cardinalities[feature.vocab])
        for feature in features
    )


def _grown(feature: Feature, size: int) -> Feature:
    counts = feature.counts
    if counts is not None:
        counts = np.concatenate([counts, np.zeros(size - len(counts), counts.dtype)])
    return replace(feature, cardinality=size, born=feature.born or feature.size, counts=counts)


@dataclass(frozen=True)
class Ids:
    """A batch of ids: ``values [F, B]``, or ``values [N]`` with ``offsets [F*B + 1]`` and, perhaps, ``weights [N]``."""

    values: Tensor
    features: int
    offsets: Tensor | None = None
    weights: Tensor | None = None

    @property
    def batch(self) -> int:
        """B, the number of samples."""
        return self.values.shape[1] if self.offsets is None else (self.offsets.numel() - 1) // self.features

    def bounds(self) -> list[int]:
        """Where each feature's occurrences begin in jagged ``values``, and the end: F + 1 numbers."""
        assert self.offsets is not None
        return self.offsets[:: self.batch].tolist() if self.batch else [0] * (self.features + 1)

    def lanes(self) -> Tensor:
        """The ids with an axis for slots: ``[F, 1, B]``, or ``[1, N]`` where jagged."""
        return self.values.unsqueeze(1) if self.offsets is None else self.values.unsqueeze(0)

    def by_vector(self, lanes: Tensor) -> Tensor:
        """Numbers in the order of :meth:`lanes`, ``[F, S, B]`` or ``[S, N]``, as ``[B, F, S]``, ``[N, S]``; a view."""
        return lanes.permute(2, 0, 1) if self.offsets is None else lanes.t()

    def spread(self, constants: Tensor) -> Tensor:
        """Constants ``[F, S]`` per feature and slot, broadcastable to :meth:`lanes`: ``[F, S, 1]`` or ``[S, N]``."""
        if self.offsets is None:
            return constants.unsqueeze(2)
        bounds = torch.tensor(self.bounds(), device=constants.device)
        return constants.repeat_interleave(bounds.diff(), dim=0, output_size=self.values.numel()).t()

    def to(self, device: torch.device) -> Ids:
        """The same batch on a device."""
        move = [None if one is None else one.to(device) for one in (self.offsets, self.weights)]
        return Ids(self.values.to(device), self.features, *move)

    def jagged(self) -> Ids:
        """The same batch with offsets, also where every bag holds one id."""
        if self.offsets is not None:
            return self
        flat = self.values.reshape(-1)
        return Ids(flat, self.features, torch.arange(flat.numel() + 1, device=flat.device))

    def select(self, features: Sequence[int]) -> Ids:
        """The batch of some of the features, in the order given; a matrix again where none is jagged."""
        wanted = list(features)
        if wanted == list(range(self.features)):
            return self
        if self.offsets is None:
            first, last = wanted[0], wanted[-1]
            if wanted == list(range(first, last + 1)):
                return Ids(self.values[first : last + 1], len(wanted))
            return Ids(self.values[wanted], len(wanted))
        bounds, batch = self.bounds(), self.batch
        lengths = self.offsets.diff().view(self.features, batch)[wanted]
        parts = [slice(bounds[f], bounds[f + 1]) for f in wanted]
        values = torch.cat([self.values[part] for part in parts])
        weights = None if self.weights is None else torch.cat([self.weights[part] for part in parts])
        if weights is None and all(bounds[f + 1] - bounds[f] == batch for f in wanted) and bool((lengths == 1).all()):
            return Ids(values.view(len(wanted), batch), len(wanted))
        return Ids(values, len(wanted), offsets_of(lengths), weights)


def offsets_of(lengths: Tensor) -> Tensor:
    """Offsets ``[n + 1]`` of bags with these lengths, in their flat order."""
    offsets = torch.zeros(lengths.numel() + 1, dtype=torch.int64, device=lengths.device)
    torch.cumsum(lengths.reshape(-1), 0, out=offsets[1:])
    return offsets
