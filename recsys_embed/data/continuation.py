"""The rows of a new day, encoded by an encoder that there is, whose vocabularies grow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pandas as pd

from recsys_embed.config import DataConfig, GrowthConfig
from recsys_embed.data.cells import Buckets
from recsys_embed.data.dataset import EncodedDataset
from recsys_embed.data.encoder import Encoder
from recsys_embed.data.prepare import complete, encoded
from recsys_embed.data.renewing import edges_of
from recsys_embed.data.rows import Before, Job
from recsys_embed.data.sources import open_source
from recsys_embed.errors import ConfigError


def continue_data(
    config: DataConfig,
    encoder_folder: str | Path,
    out: str | Path,
    *,
    growth: GrowthConfig,
    workers: int | None = None,
    progress: bool = False,
    frame: pd.DataFrame | None = None,
) -> EncodedDataset:
    """Encode the rows of a new day into the folder ``out``, by the encoder of a data set or of a model.

    Ids keep their values. New values are counted in the day's training rows and get an id as ``growth`` says; what
    that did to each vocabulary is in :attr:`EncodedDataset.renewals`, and how the day differs from those before in its
    schema, as ``drift``. Scalers, the edges of buckets and the seeds of hashes stay; ``min_count`` and
    ``max_vocabulary`` were for the birth, and say nothing any more. Frequencies of hashed features are the day's.

    The same call again does nothing, and work that was cut off goes on, as with :func:`prepare`; another encoder or
    ``growth`` is another night. The bytes are the same for any number of ``workers``.

    Raises:
        CheckpointError: the encoder is missing or damaged.
        ConfigError: the config asks for other features, numbers or labels than the encoder has; a vocabulary has more
            ids than ``growth.max_ids``; ``out`` holds the encoder.
        DataError: see :func:`prepare`.
    """
    folder, config = Path(encoder_folder), complete(config)
    if Path(out).resolve() in [folder.resolve(), *folder.resolve().parents]:
        raise ConfigError(f"the encoder to continue is in the folder to be written, {out}: take another one")
    old = Encoder.load(folder)
    _check_cap(old, growth)
    bare = replace(
        old, features=tuple(replace(f, counts=None) for f in old.features), vocabularies={}, histories={}
    )  # what processes are sent
    before = Before(str(folder.resolve()), bare, growth)
    _check_same(Job(config, open_source(config, frame), (), "", edges=edges_of(old)), old, folder)
    del old
    return encoded(config, Path(out), frame, before=before, workers=workers, executor=None, progress=progress)


def _check_cap(old: Encoder, growth: GrowthConfig) -> None:
    for name, vocabulary in old.vocabularies.items():
        if growth.max_ids is not None and vocabulary.cardinality > growth.max_ids:
            raise ConfigError(
                f"vocabulary {name!r} has {vocabulary.cardinality:,} ids, and growth.max_ids = {growth.max_ids:,}: no "
                "id is taken away",
                path="growth.max_ids",
            )


def _check_same(job: Job, old: Encoder, folder: Path) -> None:
    for key, asked, there in _frozen(job, old):
        if asked != there:
            raise ConfigError(
                f"data.{key} is {asked} here, and {there} in the encoder to continue ({folder}), which keeps it",
                path=f"data.{key}",
            )


def _frozen(job: Job, old: Encoder) -> Iterator[tuple[str, object, object]]:
    """What an encoder keeps: the key of it, what the config asks for and what there is."""
    yield "categorical", [f.name for f in job.features()], [f.name for f in old.features]
    yield "multi_valued", dict(job.config.multi_valued), dict(old.separators)
    for key in ("vocabulary", "pooling", "hashed"):
        named = "raw_hash" if key == "hashed" else key
        asked, kept = ({f.name: getattr(f, key) for f in features} for features in (job.features(), old.features))
        yield named, asked, kept
    for name, kind in job.config.buckets.items():
        there = old.cells.get(name)
        if isinstance(there, Buckets):  # how many quantiles there are is kept, and not asked
            squares = "log_square" if there.edges is None else "quantiles"
            yield f"buckets.{name}", kind if kind == "log_square" else "quantiles", squares
    yield "columns", job.cells(), dict(old.cells)
    yield "hash_seed", job.hashes, dict(old.hashes)
    yield "numeric", job.config.scalings, {one.column: one.scaling for one in old.scalers}
    yield "label", job.label, old.label
