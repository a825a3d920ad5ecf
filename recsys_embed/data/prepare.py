"""From raw rows to an encoded data set, in two passes over the input.

The first pass counts: vocabularies and scalers, from training rows alone, and how many rows each split has. The
second encodes. Memory depends on the number of distinct values, not on the number of rows.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, cast, overload

import numpy as np
import pandas as pd
import xxhash

from recsys_embed.config import DataConfig, parse_config
from recsys_embed.data.bags import split_cells
from recsys_embed.data.chunks import Chunk
from recsys_embed.data.dataset import EncodedDataset, read_schema
from recsys_embed.data.encoder import Encoder, feature_tree, with_counts
from recsys_embed.data.labels import LabelRule
from recsys_embed.data.numeric import Moments
from recsys_embed.data.planted import LABEL, SEPARATOR, Planted, bayes
from recsys_embed.data.readers import CHUNK_ROWS
from recsys_embed.data.sources import Source, open_source
from recsys_embed.data.split import SPLITS, split_of
from recsys_embed.data.storage import SplitWriter
from recsys_embed.data.vocabulary import Tally, Vocabulary
from recsys_embed.errors import CheckpointError, ConfigError, DataError
from recsys_embed.features import Feature
from recsys_embed.files import MANIFEST, atomic_folder, write_manifest

FORMAT = 1
_MOST_ROWS = 1_048_576


@overload
def prepare(source: DataConfig, schema: str | Path, /, *, frame: pd.DataFrame | None = None) -> EncodedDataset: ...
@overload
def prepare(
    source: pd.DataFrame | str | Path, schema: DataConfig | Mapping[str, Any], out: str | Path | None = None
) -> EncodedDataset: ...
def prepare(
    source: DataConfig | pd.DataFrame | str | Path,
    schema: DataConfig | Mapping[str, Any] | str | Path,
    out: str | Path | None = None,
    *,
    frame: pd.DataFrame | None = None,
) -> EncodedDataset:
    """Encode raw rows into a folder: ``prepare(rows, schema, out)``, or ``prepare(config, out)``.

    ``rows`` is a data frame or a path (file, folder, glob), and ``schema`` the keys of ``data`` in a config, without
    ``path``. Without ``out`` the folder is temporary and goes with the data set. Where ``out`` already holds the
    same rows, encoded by the same config, nothing is done.

    Raises:
        ConfigError: an impossible schema.
        DataError: rows that do not fit the schema, with file, column, row and value; a split that is empty or has
            one class; or ``out`` is a folder that holds something else.
    """
    if isinstance(source, DataConfig):
        assert isinstance(schema, (str, Path))
        return _prepare(source, Path(schema), frame)
    assert isinstance(schema, (DataConfig, Mapping))
    if isinstance(source, pd.DataFrame):
        frame, source = source, "frame"
    tree = schema.model_dump(exclude={"planted"}) if isinstance(schema, DataConfig) else dict(schema)
    config = parse_config({"data": {**tree, "path": str(source)}}, source="schema").data
    if out is not None:
        return _prepare(config, Path(out), frame)
    folder = tempfile.mkdtemp(prefix="recsys-embed-")
    try:
        dataset = _prepare(config, Path(folder) / "data", frame)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(dataset, shutil.rmtree, folder, ignore_errors=True)
    return dataset


def _prepare(config: DataConfig, out: Path, frame: pd.DataFrame | None) -> EncodedDataset:
    config = complete(config)
    source = open_source(config, frame)
    settings = _settings(config)
    if out.is_dir() and any(out.iterdir()):
        with contextlib.suppress(CheckpointError, KeyError):
            inputs = read_schema(out)["inputs"]
            if inputs["config"] == settings and inputs["format"] == FORMAT and source.matches(inputs["rows"]):
                return EncodedDataset.open(out)
        if not (out / MANIFEST).is_file() or not (out / "schema.json").is_file():
            raise DataError("the folder holds something that is not an encoded data set", file=str(out))
    inputs = {"format": FORMAT, "config": settings, "rows": source.describe()}
    scan = _Scan(config, source)
    encoder = scan.encoder()
    with atomic_folder(out) as folder:
        fingerprint = _encode(scan, encoder, folder)
        encoder.save(folder / "encoder")
        schema = {
            "name": source.name,
            "fingerprint": fingerprint,
            "features": [feature_tree(f, encoder.separators.get(f.name)) for f in encoder.features],
            "dense": list(encoder.dense),
            "rows": dict(zip(SPLITS, scan.rows, strict=True)),
            "positives": dict(zip(SPLITS, scan.positives, strict=True)),
            "dropped": {"rows": scan.dropped.total(), "values": dict(scan.dropped.most_common(20))},
            "bayes": scan.bayes(),
            "inputs": inputs,
        }
        text = json.dumps(schema, indent=1, ensure_ascii=False)
        (folder / "schema.json").write_text(text + "\n", encoding="utf-8")
        write_manifest(folder)
    return EncodedDataset.open(out)


def complete(config: DataConfig) -> DataConfig:
    """Check that columns and their roles fit together; planted data without columns named get all there are.

    Raises:
        ConfigError: names the key.
    """
    if config.planted is not None and not (config.categorical or config.multi_valued or config.numeric):
        planted = Planted(config.planted)
        update = {
            "categorical": planted.categorical,
            "multi_valued": dict.fromkeys(planted.multi_valued, SEPARATOR),
            "numeric": planted.numeric,
            "label": LABEL if config.label == "label" else config.label,
        }
        config = config.model_copy(update=update)
    features = [*config.categorical, *config.multi_valued]
    if not features:
        raise ConfigError("name at least one categorical or multi-valued column", path="data.categorical")
    for key, names in (("categorical", features), ("numeric", list(config.scalings))):
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ConfigError(f"column {twice!r} is a feature twice", path=f"data.{key}")
        if config.labels.column in names:
            raise ConfigError(f"the label {config.labels.column!r} is among the inputs", path=f"data.{key}")
    for name, separator in config.multi_valued.items():
        if not separator:
            raise ConfigError(f"{name!r} needs a separator", path=f"data.multi_valued.{name}")
    for name in config.vocabulary:
        if name not in features:
            raise ConfigError(f"{name!r} is not a feature; there are {features}", path=f"data.vocabulary.{name}")
    if config.separator is not None and len(config.separator) != 1:
        raise ConfigError(f"a separator is one character, got {config.separator!r}", path="data.separator")
    return config


class _Scan:
    """The first pass: all that must be known before a row can be encoded."""

    def __init__(self, config: DataConfig, source: Source) -> None:
        self.config, self.source = config, source
        self.label = LabelRule.of(config)
        self.features = [*config.categorical, *config.multi_valued]
        self.tallies = {self._vocabulary(name): Tally() for name in self.features}
        self.moments = {
            name: Moments(name, cast(Literal["standard", "log"], scaling)) for name, scaling in config.scalings.items()
        }
        self.rows, self.positives = [0, 0, 0], [0, 0, 0]
        self.bags = {name: [0, 0, 0] for name in config.multi_valued}
        self.dropped: Counter[str] = Counter()
        self._truth: list[tuple[np.ndarray, np.ndarray]] = []
        for chunk, splits, labels in self.chunks(CHUNK_ROWS):
            self._count(chunk, splits, labels)
        self._check()

    def chunks(self, rows: int) -> Iterator[tuple[Chunk, np.ndarray, np.ndarray]]:
        """Rows with their splits ``[rows]`` int8 (−1: dropped) and labels ``[rows]`` float32."""
        names = [self.label.column, *self.features, *self.moments]
        if self.config.split.column is not None:
            names.append(self.config.split.column)
        first = 0
        self.dropped.clear()
        for chunk in self.source.chunks(list(dict.fromkeys(names)), rows):
            labels = self.label.check(chunk, self.dropped)
            splits = split_of(chunk, self.config.split, first)
            splits[np.isnan(labels)] = -1
            first += len(chunk)
            yield chunk, splits, labels

    def encoder(self) -> Encoder:
        """The encoder that the training rows give."""
        vocabularies = {name: Vocabulary.of(tally, self.config.min_count) for name, tally in self.tallies.items()}
        features = tuple(
            Feature(
                name,
                multi_valued=name in self.config.multi_valued,
                pooling=self.config.pooling,
                vocabulary=self._vocabulary(name),
            )
            for name in self.features
        )
        scalers = tuple(moments.scaler() for moments in self.moments.values())
        separators = dict(self.config.multi_valued)
        return Encoder(with_counts(features, vocabularies), separators, scalers, self.label, vocabularies)

    def bayes(self) -> dict[str, float] | None:
        """AUC and logloss of the true probabilities on the test split, where they are known."""
        if not self._truth:
            return None
        labels, probability = (np.concatenate(parts) for parts in zip(*self._truth, strict=True))
        return bayes(labels, probability)

    def _vocabulary(self, feature: str) -> str:
        return self.config.vocabulary.get(feature, feature)

    def _count(self, chunk: Chunk, splits: np.ndarray, labels: np.ndarray) -> None:
        for split in range(3):
            here = splits == split
            self.rows[split] += int(here.sum())
            self.positives[split] += int(labels[here].sum())
        train = splits == 0
        for name in self.features:
            cells, tally = chunk.text(name), self.tallies[self._vocabulary(name)]
            if name in self.bags:
                values, offsets = split_cells(cells, self.config.multi_valued[name])
                lengths = np.diff(offsets)
                for split in range(3):
                    self.bags[name][split] += int(lengths[splits == split].sum())
                tally.add(values.filter(np.repeat(train, lengths)))
            else:
                tally.add(cells.filter(train))
        for name, moments in self.moments.items():
            moments.add(chunk.numbers(name)[train])
        if chunk.probability is not None:
            test = splits == 2
            self._truth.append((labels[test], chunk.probability[test]))

    def _check(self) -> None:
        dropped = f" ({self.dropped.total()} rows were dropped for their label)" if self.dropped else ""
        if not sum(self.rows):
            raise DataError(f"there are no rows{dropped}", file=self.config.path, column=self.label.column)
        for split, rows, positives in zip(SPLITS, self.rows, self.positives, strict=True):
            what = "no rows" if not rows else "positive labels only" if positives == rows else "negative labels only"
            if positives in (0, rows):
                file = self.config.split.files[split] if self.config.split.files else self.config.path  # type: ignore[index]
                raise DataError(f"split {split!r} has {what}{dropped}", file=file, column=self.label.column)


def _encode(scan: _Scan, encoder: Encoder, folder: Path) -> str:
    """The second pass; returns the fingerprint of the encoded content."""
    names = [
        *(feature.name for feature in encoder.features),
        *(f"dense:{name}" for name in encoder.dense),
        f"label:{encoder.label.column}",
    ]
    writers = [
        SplitWriter(
            folder / f"{split}.arrow",
            scan.rows[i],
            names,
            [scan.bags[f.name][i] if f.multi_valued else None for f in encoder.features],
            len(encoder.dense),
        )
        for i, split in enumerate(SPLITS)
    ]
    # Arrow builds a vocabulary's hash table once a chunk: chunks grow with the largest vocabulary to spread that.
    largest = max(vocabulary.cardinality for vocabulary in encoder.vocabularies.values())
    for chunk, splits, labels in scan.chunks(min(max(CHUNK_ROWS, largest), _MOST_ROWS)):
        columns = encoder.read(chunk, labels)
        for split, writer in enumerate(writers):
            writer.write(columns.take(np.flatnonzero(splits == split)))
    described = [feature_tree(f, encoder.separators.get(f.name)) for f in encoder.features]
    digest = xxhash.xxh3_128(json.dumps([FORMAT, names, described]).encode())
    for vocabulary in encoder.vocabularies.values():
        digest.update(json.dumps(vocabulary.values.to_pylist()).encode())
        digest.update(vocabulary.counts.tobytes())
    for writer in writers:
        writer.close(digest)
    return digest.hexdigest()


def _settings(config: DataConfig) -> dict[str, Any]:
    """The config as JSON, without the places of the files: they are compared by content."""
    tree = config.model_dump(mode="json", exclude={"path"})
    if tree["split"]["files"] is not None:
        tree["split"]["files"] = sorted(tree["split"]["files"])
    result: dict[str, Any] = json.loads(json.dumps(tree))
    return result
