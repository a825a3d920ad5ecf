"""Raw rows with their splits and labels, part by part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np

from recsys_embed.config import DataConfig, GrowthConfig
from recsys_embed.data.cells import Buckets, Cells, Cross, Plain
from recsys_embed.data.chunks import Chunk
from recsys_embed.data.encoder import Encoder
from recsys_embed.data.labels import LabelRule
from recsys_embed.data.numeric import numbers_of
from recsys_embed.data.parts import Part
from recsys_embed.data.raw_hash import RawHash
from recsys_embed.data.screening import Check, Skipped, screen
from recsys_embed.data.sources import Source
from recsys_embed.data.split import Cuts, split_columns, split_of, times_of
from recsys_embed.data.weights import read_weights
from recsys_embed.errors import DataError
from recsys_embed.features import Feature
from recsys_embed.files import checksum

CHUNK_ROWS = 65_536


@dataclass(frozen=True)
class Before:
    """What the rows of a day continue: an encoder, here without its vocabularies, which are in its ``folder``."""

    folder: str
    encoder: Encoder
    growth: GrowthConfig

    def describe(self) -> dict[str, Any]:
        """What identifies it, as JSON: the encoder's files by their contents, and how it grows."""
        files = {file.name: checksum(file) for file in sorted(Path(self.folder).iterdir()) if file.is_file()}
        return {"encoder": files, "growth": self.growth.model_dump(mode="json")}

    def born(self, vocabulary: str) -> int:
        """The cardinality of a vocabulary at birth."""
        return next(f.born or f.size for f in self.encoder.features if f.vocab == vocabulary)


@dataclass(frozen=True)
class Job:
    """What is to be encoded, for a process that encodes a part of it.

    ``cuts`` are those of a split by time, ``edges`` those of buckets by quantiles, once they are known. ``before``:
    the encoder to continue, where there is one.
    """

    config: DataConfig
    source: Source
    parts: tuple[Part, ...]
    work: str
    cuts: Cuts | None = None
    edges: tuple[tuple[str, tuple[float, ...]], ...] = ()
    before: Before | None = None

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

    def features(self) -> tuple[Feature, ...]:
        """The features, whose cardinalities are not known yet."""
        return tuple(
            Feature(
                name,
                multi_valued=name in self.config.multi_valued,
                pooling=self.config.pooling,
                vocabulary=self.vocabulary(name),
                hashed=self.config.hashes(name),
            )
            for name in self.cells()
        )

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
        self,
        index: int,
        dropped: Counter[str] | None = None,
        columns: list[str] | None = None,
        skipped: Skipped | None = None,
    ) -> Iterator[tuple[Chunk, np.ndarray, np.ndarray]]:
        """A part's rows with their splits ``[rows]`` int8 (−1: dropped) and labels ``[rows]`` float32, chunk by chunk.

        ``columns`` are those to read beside split and label, by default all that features, numbers and weights need;
        values of labels that are neither are counted in ``dropped``, and rows that cannot be used in ``skipped``.
        """
        label, counted = self.label, Counter[str]() if dropped is None else dropped
        names = self._columns() if columns is None else columns
        for chunk, bad in self.chunks(index, [label.column, *names, *split_columns(self.config.split)], skipped):
            labels = label.check(chunk, counted, bad)
            splits = split_of(chunk, self.config.split, self.cuts)
            splits[np.isnan(labels) if bad is None else np.isnan(labels) | bad] = -1
            yield chunk, splits, labels

    def chunks(
        self, index: int, columns: list[str], skipped: Skipped | None = None
    ) -> Iterator[tuple[Chunk, np.ndarray | None]]:
        """A part's rows, and which of them are bad; see :func:`screen`. A row that is bad for one pass is for all."""
        part, skip = self.parts[index], self.config.on_bad_rows == "skip"
        if not skip:
            for chunk in self.source.chunks(part, list(dict.fromkeys(columns)), CHUNK_ROWS):
                yield chunk, None
            return
        counted, checks = Skipped() if skipped is None else skipped, list(self._checks())
        names = dict.fromkeys([*columns, *self._columns(), *(column for column, _ in checks)])
        for chunk in self.source.chunks(part, list(names), CHUNK_ROWS):
            screened = screen(chunk, checks, counted)
            if screened is not None:
                yield screened

    def first(
        self, parts: Iterable[int], column: str, message: str, met: Callable[[Chunk], np.ndarray], value: object
    ) -> DataError:
        """An error about the first row of some parts that is ``met [rows]``; read again, on the way to an error."""
        for index in parts:
            for chunk, _ in self.chunks(index, [column]):
                places = np.flatnonzero(met(chunk))
                if len(places):
                    return chunk.error(message, column, int(places[0]), value)
        return DataError(message, column=column, value=value)

    def _columns(self) -> list[str]:
        """All that features, numbers and weights need."""
        names = [name for cells in self.cells().values() for name in cells.columns]
        return [*names, *self.config.scalings, *([] if self.config.weight is None else [self.config.weight])]

    def _checks(self) -> Iterator[Check]:
        """All that is asked of a row; what has been checked once gives no error in any pass."""
        label, split = self.label, self.config.split
        if split.column is not None:
            yield split.column, lambda chunk: split_of(chunk, split)
        if split.group is not None:
            yield split.group, partial(Chunk.text, column=split.group)
        if split.time is not None:
            yield split.time.column, partial(times_of, column=split.time.column)
            if split.time.val is not None:
                cuts = cast(Cuts, (split.time.val, split.time.test))
                yield split.time.column, partial(split_of, config=split, cuts=cuts)
        yield label.column, lambda chunk: label.check(chunk, Counter())
        for cells in self.cells().values():
            read = Chunk.numbers if isinstance(cells, Buckets) else Chunk.text
            for column in cells.columns:
                yield column, partial(read, column=column)
        for column, scaling in self.config.scalings.items():
            yield column, partial(numbers_of, column=column, scaling=scaling)
        if self.config.weight is not None:
            yield self.config.weight, partial(read_weights, column=self.config.weight)
