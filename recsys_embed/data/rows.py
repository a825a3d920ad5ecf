"""Raw rows with their splits and labels, part by part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from recsys_embed.config import DataConfig
from recsys_embed.data.cells import Buckets, Cells, Cross, Plain
from recsys_embed.data.chunks import Chunk
from recsys_embed.data.labels import LabelRule
from recsys_embed.data.parts import Part
from recsys_embed.data.raw_hash import RawHash
from recsys_embed.data.sources import Source
from recsys_embed.data.split import Cuts, split_columns, split_of

CHUNK_ROWS = 65_536


@dataclass(frozen=True)
class Job:
    """What is to be encoded, for a process that encodes a part of it.

    ``cuts`` are those of a split by time, ``edges`` those of buckets by quantiles, once they are known.
    """

    config: DataConfig
    source: Source
    parts: tuple[Part, ...]
    work: str
    cuts: Cuts | None = None
    edges: tuple[tuple[str, tuple[float, ...]], ...] = ()

    @property
    def label(self) -> LabelRule:
        """The rule that the config asks for."""
        return LabelRule.of(self.config)

    def cells(self) -> dict[str, Cells]:
        """Where each feature's values come from; categorical features, then multi-valued ones."""
        config, edges = self.config, dict(self.edges)
        return {
            **{name: Plain(name, config.missing_of(name) == "own") for name in config.categorical},
            **{name: Cross(columns) for name, columns in config.crosses.items()},
            **{name: Buckets(name, edges.get(name)) for name in config.buckets},
            **{name: Plain(name) for name in config.multi_valued},
        }

    def vocabulary(self, feature: str) -> str:
        """The name of a feature's vocabulary."""
        return self.config.vocabulary.get(feature, feature)

    @property
    def vocabularies(self) -> tuple[str, ...]:
        """The names of all that are no hash, in the order of the features."""
        return tuple(dict.fromkeys(self.vocabulary(name) for name in self.cells() if not self.config.hashes(name)))

    @property
    def hashes(self) -> dict[str, RawHash]:
        """Those that are, by name, in the order of the features."""
        names = dict.fromkeys(self.vocabulary(name) for name in self.cells() if self.config.hashes(name))
        return {name: RawHash.of(name, self.config.hash_seed) for name in names}

    def rows(
        self, index: int, dropped: Counter[str] | None = None, columns: list[str] | None = None
    ) -> Iterator[tuple[Chunk, np.ndarray, np.ndarray]]:
        """A part's rows with their splits ``[rows]`` int8 (−1: dropped) and labels ``[rows]`` float32, chunk by chunk.

        ``columns`` are those to read beside split and label, by default all that features, numbers and weights need;
        values of labels that are neither are counted in ``dropped``.
        """
        label, counted = self.label, Counter[str]() if dropped is None else dropped
        if columns is None:
            columns = [name for cells in self.cells().values() for name in cells.columns]
            columns += [*self.config.scalings, *([] if self.config.weight is None else [self.config.weight])]
        names = dict.fromkeys([label.column, *columns, *split_columns(self.config.split)])
        for chunk in self.source.chunks(self.parts[index], list(names), CHUNK_ROWS):
            labels = label.check(chunk, counted)
            splits = split_of(chunk, self.config.split, self.cuts)
            splits[np.isnan(labels)] = -1
            yield chunk, splits, labels
