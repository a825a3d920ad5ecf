"""Categorical features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

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
