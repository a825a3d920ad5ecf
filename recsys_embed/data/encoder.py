"""Raw rows to ids and scaled numbers: all that prediction needs of the training data."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from recsys_embed.data.bags import Bag, split_cells
from recsys_embed.data.batches import Batch, Columns, gather
from recsys_embed.data.blocks import Block
from recsys_embed.data.cells import Cells, cells_of, cells_tree
from recsys_embed.data.chunks import Chunk, frame_chunks
from recsys_embed.data.history import History
from recsys_embed.data.labels import LabelRule
from recsys_embed.data.numeric import TOO_FAR, Scaler, numbers_of
from recsys_embed.data.raw_hash import RawHash
from recsys_embed.data.vocabulary import Vocabulary
from recsys_embed.errors import CheckpointError
from recsys_embed.features import Feature, resolve

FORMAT = 2


@dataclass(frozen=True)
class Encoder:
    """Vocabularies and scalers of the training split. ``cells`` says where each feature's values come from;
    ``separators`` cut the cells of multi-valued features. Hashed features have a hash instead of a vocabulary, under
    the same name.

    Where rows of later days have continued it, ``night`` says how many times, and ``histories`` has one for each
    vocabulary.
    """

    features: tuple[Feature, ...]
    separators: Mapping[str, str]
    scalers: tuple[Scaler, ...]
    label: LabelRule
    vocabularies: Mapping[str, Vocabulary]
    cells: Mapping[str, Cells]
    hashes: Mapping[str, RawHash]
    night: int = 0
    histories: Mapping[str, History] = field(default_factory=dict)

    @property
    def columns(self) -> tuple[str, ...]:
        """The raw columns that :meth:`encode` reads; the label's is not among them."""
        inputs = [column for f in self.features for column in self.cells[f.name].columns]
        return tuple(dict.fromkeys(inputs + [s.column for s in self.scalers]))

    @property
    def dense(self) -> tuple[str, ...]:
        """The dense columns: scaled numbers, then a flag for those that are sometimes missing."""
        return (*(s.column for s in self.scalers), *(f"{s.column}:missing" for s in self.scalers if s.flag))

    @property
    def files(self) -> dict[str, str]:
        """The name of each vocabulary's file in the folder that :meth:`save` writes; a history's are beside it."""
        return {name: vocabulary_file(i) for i, name in enumerate(self.vocabularies)}

    def encode(self, frame: pd.DataFrame) -> Batch:
        """Raw rows as one batch, in their order. Values not in the vocabulary become id 0.

        Columns may be in any order and more than needed. Labels are zeros where their column is absent, and NaN in
        rows whose value is neither positive nor negative.

        Raises:
            DataError: a missing column, or a numeric cell that is not a number.
        """
        labelled = self.label.column in frame.columns
        wanted = list(dict.fromkeys([*self.columns, *([self.label.column] if labelled else [])]))
        chunk = next(frame_chunks(frame, wanted, max(len(frame), 1)), None)
        if chunk is None:
            chunk = Chunk(pa.table({name: pa.array([], pa.string()) for name in wanted}))
        labels = self.label.read(chunk) if labelled else np.zeros(len(chunk), np.float32)
        return next(gather(self.read(chunk, labels), np.arange(len(chunk)), 1))

    def read(self, chunk: Chunk, labels: np.ndarray) -> Columns:
        """Encode a chunk of raw rows; ``labels [rows]`` float32 are passed on."""
        numbers = [numbers_of(chunk, scaler.column, scaler.scaling) for scaler in self.scalers]
        dense = self._scaled(numbers)
        if (far := self.too_far(numbers, dense)) is not None:
            raise chunk.error(TOO_FAR, *far)
        return Columns(tuple(self._ids(feature, chunk) for feature in self.features), dense, labels)

    def columns_of(self, block: Block) -> Columns:
        """Encode rows that counting kept, but for their weights."""
        ids: list[np.ndarray | Bag] = []
        for feature, words, codes in zip(self.features, block.words, block.codes, strict=True):
            if feature.hashed:
                known = self.hashes[feature.vocab].ids(words["value"])
            else:
                known = self.vocabularies[feature.vocab].ids(words["value"], words["hash"].to_numpy())
            table = np.append(known, known.dtype.type(0))
            ids.append(Bag(table[codes.values], codes.offsets) if isinstance(codes, Bag) else table[codes])
        return Columns(tuple(ids), self._scaled(block.numbers[: len(self.scalers)]), block.labels)

    def _scaled(self, numbers: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        flags = [np.isnan(x).astype(np.float32) for x, s in zip(numbers, self.scalers, strict=True) if s.flag]
        return (*(s.transform(x) for x, s in zip(numbers, self.scalers, strict=True)), *flags)

    def too_far(self, numbers: Sequence[np.ndarray], dense: Sequence[np.ndarray]) -> tuple[str, int, float] | None:
        """The first number that float32 cannot hold once it is scaled: its column, place and value."""
        for scaler, x, y in zip(self.scalers, numbers, dense, strict=False):
            if np.isinf(y).any():
                index = int(np.isinf(y).argmax())
                return scaler.column, index, float(x[index])
        return None

    def _ids(self, feature: Feature, chunk: Chunk) -> np.ndarray | Bag:
        ids = self.hashes[feature.vocab] if feature.hashed else self.vocabularies[feature.vocab]
        cells = self.cells[feature.name].text(chunk, exact=False)
        if not feature.multi_valued:
            return ids.encode(cells)
        values, offsets = split_cells(cells, self.separators[feature.name])
        return Bag(ids.encode(values), offsets)

    def save(self, folder: Path) -> None:
        """Write ``encoder.json``, and Parquet files of each vocabulary, into a folder, which is made if needed."""
        self.describe(folder)
        for place, (name, vocabulary) in enumerate(self.vocabularies.items()):
            vocabulary.save(folder / vocabulary_file(place))
            if name in self.histories:
                self.histories[name].save(folder, place)

    def describe(self, folder: Path) -> None:
        """Write ``encoder.json`` into the folder of the vocabularies, which is made if needed."""
        folder.mkdir(parents=True, exist_ok=True)
        tree = {
            "format": FORMAT,
            "label": asdict(self.label),
            "features": [feature_tree(feature, self.separators.get(feature.name)) for feature in self.features],
            "cells": {name: cells_tree(cells) for name, cells in self.cells.items()},
            "scalers": [asdict(scaler) for scaler in self.scalers],
            "vocabularies": self.files,
            "hashes": {name: one.seed for name, one in self.hashes.items()},
        }
        if self.night:
            tree |= {"night": self.night, "born": {name: one.born for name, one in self.histories.items()}}
        (folder / "encoder.json").write_text(json.dumps(tree, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Encoder:
        """Read what :meth:`save` wrote.

        Raises:
            CheckpointError: a file is missing or damaged; it is named.
        """
        path = Path(folder) / "encoder.json"
        try:
            tree = json.loads(path.read_text(encoding="utf-8"))
            if tree["format"] != FORMAT:
                raise CheckpointError(
                    f"{path}: has format {tree['format']}, this version reads {FORMAT}", file=str(path)
                )
            label: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in tree["label"].items()}
            scalers = tuple(Scaler(**scaler) for scaler in tree["scalers"])
            rule, described, files = LabelRule(**label), tree["features"], dict(tree["vocabularies"])
            separators = {one["name"]: one.pop("separator") for one in described}
            features = tuple(Feature(**one) for one in described)
            vocabularies = {name: Vocabulary.load(path.parent / Path(file).name) for name, file in files.items()}
            hashes = {name: RawHash(int(seed)) for name, seed in tree.get("hashes", {}).items()}
            histories = {
                name: History.load(path.parent, list(files).index(name), int(born))
                for name, born in tree.get("born", {}).items()
            }
            apart = [name for name, one in histories.items() if len(one.life.count) != vocabularies[name].cardinality]
            if apart:
                raise ValueError(f"vocabulary {apart[0]!r} and its history are of two nights")
            unknown = [f.name for f in features if f.vocab not in (hashes if f.hashed else vocabularies)]
            if unknown:
                raise ValueError(f"feature {unknown[0]!r} has neither a vocabulary nor a hash")
            return cls(
                with_counts(features, vocabularies, histories),
                {name: separator for name, separator in separators.items() if separator is not None},
                scalers,
                rule,
                vocabularies,
                {name: cells_of(one) for name, one in tree["cells"].items()},
                hashes,
                int(tree.get("night", 0)),
                histories,
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path}: cannot be read: {error}", file=str(path)) from error


def vocabulary_file(place: int) -> str:
    """The name of the file of the vocabulary at a place in their order."""
    return f"vocabulary-{place}.parquet"


def feature_tree(feature: Feature, separator: str | None) -> dict[str, Any]:
    """A feature as JSON: all but its counts, which are in the vocabulary's file."""
    tree = {key: getattr(feature, key) for key in ("name", "cardinality", "multi_valued", "pooling", "vocabulary")}
    hashed = {"hashed": True} if feature.hashed else {}
    born = {} if feature.born is None else {"born": feature.born}
    return {**tree, "separator": separator, **hashed, **born}


def with_counts(
    features: tuple[Feature, ...], vocabularies: Mapping[str, Vocabulary], histories: Mapping[str, History]
) -> tuple[Feature, ...]:
    """Fill in cardinality, also at birth, and training frequencies, where there is a vocabulary."""

    def filled(feature: Feature) -> Feature:
        if feature.hashed:
            return feature
        vocabulary, history = vocabularies[feature.vocab], histories.get(feature.vocab)
        born = None if history is None or history.born == vocabulary.cardinality else history.born
        return replace(feature, cardinality=vocabulary.cardinality, counts=vocabulary.counts, born=born)

    return resolve([filled(feature) for feature in features])
