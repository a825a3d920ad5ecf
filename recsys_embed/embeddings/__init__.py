"""Embedding strategies, one file each; :mod:`recsys_embed.config` lists them as a union."""

from __future__ import annotations

from recsys_embed.config import (
    CafeConfig,
    CompositionalConfig,
    DnisConfig,
    FullConfig,
    HashConfig,
    MagnitudeConfig,
    MixedDimensionConfig,
    PepConfig,
    RobeConfig,
    StrategyNode,
    UnifiedConfig,
)
from recsys_embed.embeddings.base import Lookup, Strategy, TableSpec
from recsys_embed.embeddings.cafe import Cafe
from recsys_embed.embeddings.compositional import Compositional
from recsys_embed.embeddings.dnis import Dnis
from recsys_embed.embeddings.full import Full
from recsys_embed.embeddings.hash import Hash
from recsys_embed.embeddings.magnitude import Magnitude
from recsys_embed.embeddings.mixed_dimension import MixedDimension
from recsys_embed.embeddings.pep import Pep
from recsys_embed.embeddings.robe import Robe
from recsys_embed.embeddings.unified import Unified

CLASSES: dict[type[StrategyNode], type[Strategy]] = {
    FullConfig: Full,
    HashConfig: Hash,
    UnifiedConfig: Unified,
    CompositionalConfig: Compositional,
    RobeConfig: Robe,
    CafeConfig: Cafe,
    DnisConfig: Dnis,
    MixedDimensionConfig: MixedDimension,
    MagnitudeConfig: Magnitude,
    PepConfig: Pep,
}
"""The strategy that each config node builds."""

__all__ = [
    "CLASSES",
    "Cafe",
    "Compositional",
    "Dnis",
    "Full",
    "Hash",
    "Lookup",
    "Magnitude",
    "MixedDimension",
    "Pep",
    "Robe",
    "Strategy",
    "TableSpec",
    "Unified",
]
