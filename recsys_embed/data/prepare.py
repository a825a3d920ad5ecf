"""From raw rows to an encoded data set, in passes over the input.

The first counts: vocabularies and scalers, from training rows alone, and how many rows each split has. The last
encodes. A split by time, and buckets by quantiles, are found by passes before them. Each is a function of a part of
the input, so that processes share the work and what is done survives a kill; the same bytes come out however many
parts and processes there are. Memory depends on the number of distinct values, not on the number of rows.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import tempfile
import weakref
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast, overload

import numpy as np
import pandas as pd
import xxhash

from recsys_embed.config import DataConfig, parse_config
from recsys_embed.data import counting
from recsys_embed.data.dataset import EncodedDataset, read_schema
from recsys_embed.data.encoder import Encoder, feature_tree, vocabulary_file, with_counts
from recsys_embed.data.encoding import DATA, ENCODER, LAYOUT, Layout, encode, split_path
from recsys_embed.data.numeric import Moments
from recsys_embed.data.planted import LABEL, SEPARATOR, Planted, bayes
from recsys_embed.data.progress import Progress, progress_bar
from recsys_embed.data.renewing import accounts, continued, drift_of, edges_of, renew_vocabulary
from recsys_embed.data.rows import Before, Job
from recsys_embed.data.screening import Skipped, left_out
from recsys_embed.data.sketch import described, sketch_file
from recsys_embed.data.sources import open_source
from recsys_embed.data.split import SPLITS, Cuts, split_columns
from recsys_embed.data.vocabulary import Vocabulary
from recsys_embed.data.weights import check_weighted
from recsys_embed.data.workshop import Crew, crew, discard, workshop
from recsys_embed.errors import CheckpointError, ConfigError, DataError
from recsys_embed.files import MANIFEST, publish, write_manifest

FORMAT = 2
_LOG = logging.getLogger("recsys_embed")


@overload
def prepare(
    source: DataConfig,
    schema: str | Path,
    /,
    *,
    frame: pd.DataFrame | None = None,
    workers: int | None = None,
    executor: Executor | None = None,
    progress: bool = False,
) -> EncodedDataset: ...
@overload
def prepare(
    source: pd.DataFrame | str | Path,
    schema: DataConfig | Mapping[str, Any],
    out: str | Path | None = None,
    *,
    workers: int | None = None,
    executor: Executor | None = None,
    progress: bool = False,
) -> EncodedDataset: ...
def prepare(
    source: DataConfig | pd.DataFrame | str | Path,
    schema: DataConfig | Mapping[str, Any] | str | Path,
    out: str | Path | None = None,
    *,
    frame: pd.DataFrame | None = None,
    workers: int | None = None,
    executor: Executor | None = None,
    progress: bool = False,
) -> EncodedDataset:
    """Encode raw rows into a folder: ``prepare(rows, schema, out)``, or ``prepare(config, out)``.

    ``rows`` is a data frame or a path (file, folder, glob), and ``schema`` the keys of ``data`` in a config, without
    ``path``. Without ``out`` the folder is temporary and goes with the data set. Where ``out`` already holds the
    same rows, encoded by the same config, nothing is done; work that was cut off, by a kill or a full disk, goes on.

    ``workers`` processes share the work, by default one a core; or those of an ``executor``, which must see the same
    files (Dask's or Ray's on a cluster). The bytes are the same for any number of them.

    Raises:
        ConfigError: an impossible schema.
        DataError: rows that do not fit the schema, with file, column, row and value; a split that is empty or has
            one class; or ``out`` is a folder that holds something else.
    """

    def run(config: DataConfig, out: Path, frame: pd.DataFrame | None) -> EncodedDataset:
        return encoded(config, out, frame, workers=workers, executor=executor, progress=progress)

    if isinstance(source, DataConfig):
        assert isinstance(schema, (str, Path))
        return run(source, Path(schema), frame)
    assert isinstance(schema, (DataConfig, Mapping))
    if isinstance(source, pd.DataFrame):
        frame, source = source, "frame"
    tree = schema.model_dump(exclude={"planted"}) if isinstance(schema, DataConfig) else dict(schema)
    config = parse_config({"data": {**tree, "path": str(source)}}, source="schema").data
    if out is not None:
        return run(config, Path(out), frame)
    folder = tempfile.mkdtemp(prefix="recsys-embed-")
    try:
        dataset = run(config, Path(folder) / "data", frame)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    weakref.finalize(dataset, shutil.rmtree, folder, ignore_errors=True)
    return dataset


def encoded(
    config: DataConfig,
    out: Path,
    frame: pd.DataFrame | None,
    *,
    before: Before | None = None,
    workers: int | None,
    executor: Executor | None,
    progress: bool,
) -> EncodedDataset:
    """What :func:`prepare` does once it knows what it was given; with ``before``, :func:`continue_data`."""
    config = complete(config)
    source = open_source(config, frame)
    inputs: dict[str, Any] = {"format": FORMAT, "config": _settings(config)}
    if before is not None:
        inputs["continued"] = before.describe()
    if out.is_dir() and any(out.iterdir()):
        with contextlib.suppress(CheckpointError, KeyError):
            known = dict(read_schema(out)["inputs"])
            if source.matches(known.pop("rows")) and known == inputs:
                dataset = EncodedDataset.open(out)
                discard(out)
                _tell(dataset)
                return dataset
        if not (out / MANIFEST).is_file() or not (out / "schema.json").is_file():
            raise DataError("the folder holds something that is not an encoded data set", file=str(out))
    inputs["rows"] = source.describe()
    parts = tuple(source.parts())
    with (
        workshop(out, {**inputs, "parts": [str(part) for part in parts]}) as work,
        progress_bar(shown=progress) as bar,
    ):
        job = Job(config, source, parts, str(work), before=before)
        with crew(job, workers, executor) as hands:
            job = known_first(job, hands, bar)
            schema = {"name": source.name, **_encoded(job, hands, bar), "inputs": inputs}
        if job.before is not None:
            schema["drift"] = drift_of(job, EncodedDataset(work / DATA, schema))
        if not source.matches(inputs["rows"]):
            raise DataError("the input has changed while it was being read", file=config.path)
        text = json.dumps(schema, indent=1, ensure_ascii=False)
        (work / DATA / "schema.json").write_text(text + "\n", encoding="utf-8")
        write_manifest(work / DATA)
        publish(work / DATA, out)
    dataset = EncodedDataset.open(out)
    _tell(dataset)
    return dataset


def _tell(dataset: EncodedDataset) -> None:
    for told in left_out(dataset.schema):
        _LOG.warning("%s", told)


def known_first(job: Job, hands: Crew, bar: Progress) -> Job:
    """The job with all that must be known before its rows can be counted."""
    time = job.config.split.time
    if time is not None and time.fractions is not None:
        hands.run("times", counting.count_times, job, bar)
        job = replace(job, cuts=counting.cuts(job))
    elif time is not None:
        job = replace(job, cuts=cast(Cuts, (time.val, time.test)))
    if job.before is not None:
        return replace(job, edges=edges_of(job.before.encoder))
    if any(kind != "log_square" for kind in job.config.buckets.values()):
        hands.run("edges", counting.sample_edges, job, bar)
        job = replace(job, edges=counting.edges(job))
    return job


def _encoded(job: Job, hands: Crew, bar: Progress) -> dict[str, Any]:
    """Count and encode; what the schema says of it."""
    work = Path(job.work)
    counting.recount_damaged(job)
    hands.run(counting.COUNTS, counting.count, job, bar)
    counted = counting.results(job, counting.COUNTS)
    dropped, skipped = Counter[str](), Skipped()
    for one in counted:
        dropped.update(one["dropped"])
        skipped.merge(one["skipped"])
    rows, positives = ([sum(one[key][s] for one in counted) for s in range(3)] for key in ("rows", "positives"))
    _check(job, rows, positives, dropped.total(), skipped.rows)
    if job.config.weight is not None:
        check_weighted(job.config, np.sum([one["weighted"] for one in counted], axis=0))
    if (work / LAYOUT).is_file():
        encoder, layout = Encoder.load(work / DATA / ENCODER), Layout.load(work / LAYOUT)
    else:
        hands.run(counting.VOCABULARIES, build_vocabulary, job, bar, len(job.vocabularies))
        hands.run("sketches", build_sketch, job, bar, len(job.hashes))
        encoder = encoder_of(job, counted)
        encoder.describe(work / DATA / ENCODER)
        layout = Layout.create(job, encoder, counted)
        layout.save(work / LAYOUT)
    hands.run(counting.ENCODED, encode, job, bar)
    truth = counting.truth(job, counted)
    zeros = np.sum([one["zeros"] for one in counting.results(job, counting.ENCODED)], axis=0)
    return {
        "fingerprint": _fingerprint(job, encoder, layout),
        "features": [feature_tree(f, encoder.separators.get(f.name)) for f in encoder.features],
        "dense": list(encoder.dense),
        "rows": dict(zip(SPLITS, rows, strict=True)),
        "positives": dict(zip(SPLITS, positives, strict=True)),
        "dropped": {"rows": dropped.total(), "values": dict(dropped.most_common(20))},
        "unseen": {
            split: {
                feature.name: float(count / max(file.rows if total is None else total, 1))
                for feature, count, total in zip(encoder.features, zeros[s], file.values, strict=True)
            }
            for s, (split, file) in enumerate(zip(SPLITS, layout.files, strict=True))
        },
        "hashed": described(work / DATA, encoder.hashes),
        "skipped": {"rows": skipped.rows, "reasons": skipped.tree()},
        "cuts": None if job.cuts is None else list(job.cuts),
        "bayes": None if truth is None else bayes(*truth),
        **({} if job.before is None else {"renewals": accounts(job)}),
    }


def build_vocabulary(job: Job, index: int) -> int:
    """Put together one of the vocabularies; returns its size."""
    folder = Path(job.work) / DATA / ENCODER
    folder.mkdir(parents=True, exist_ok=True)
    if job.before is not None:
        return renew_vocabulary(job, job.before, index)
    found = counting.vocabulary(job, job.vocabularies[index])
    found.save(folder / vocabulary_file(index))
    counting.finish(job, counting.VOCABULARIES, index, {})
    return len(found.values)


def build_sketch(job: Job, index: int) -> int:
    """Put together one of the sketches of hashed values; returns how many it counts."""
    (Path(job.work) / DATA).mkdir(parents=True, exist_ok=True)
    found = counting.sketch(job, list(job.hashes)[index])
    found.save(Path(job.work) / DATA / sketch_file(index))
    counting.finish(job, "sketches", index, {})
    return found.occurrences


def encoder_of(job: Job, counted: list[dict[str, Any]]) -> Encoder:
    """The encoder that the training rows give."""
    if job.before is not None:
        return continued(job, job.before)
    config, cells = job.config, job.cells()
    folder = Path(job.work) / DATA / ENCODER
    vocabularies = {
        name: Vocabulary.load(folder / vocabulary_file(place)) for place, name in enumerate(job.vocabularies)
    }
    scalers = []
    for place, (name, scaling) in enumerate(config.scalings.items()):
        moments = Moments(name, cast(Literal["standard", "log"], scaling))
        for one in counted:
            moments.merge(one["moments"][place])
        scalers.append(moments.scaler())
    known, separators = with_counts(job.features(), vocabularies, {}), dict(config.multi_valued)
    return Encoder(known, separators, tuple(scalers), job.label, vocabularies, cells, job.hashes)


def _check(job: Job, rows: list[int], positives: list[int], count: int, skipped: int) -> None:
    config, dropped = job.config, f" ({count} rows were dropped for their label)" if count else ""
    dropped += f" ({skipped} rows could not be used and were skipped)" if skipped else ""
    if not sum(rows):
        raise DataError(f"there are no rows{dropped}", file=config.path, column=job.label.column)
    for split, there, positive in zip(SPLITS, rows, positives, strict=True):
        what = "no rows" if not there else "positive labels only" if positive == there else "negative labels only"
        if positive in (0, there):
            file = config.split.files[split] if config.split.files else config.path  # type: ignore[index]
            raise DataError(f"split {split!r} has {what}{dropped}", file=file, column=job.label.column)


def _fingerprint(job: Job, encoder: Encoder, layout: Layout) -> str:
    """Of the encoded content: equal for equal rows, whatever files they came from."""
    described = [feature_tree(f, encoder.separators.get(f.name)) for f in encoder.features]
    columns = [list(encoder.dense), encoder.label.column, job.config.weight]
    digest = xxhash.xxh3_128(json.dumps([FORMAT, *columns, described]).encode())
    for name in encoder.vocabularies:
        digest.update(encoder.vocabularies[name].digest())
    for split, file in zip(SPLITS, layout.files, strict=True):
        for block in file.blocks(split_path(job, split)):
            digest.update(block)
    return digest.hexdigest()


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
    features = config.feature_names
    if not features:
        raise ConfigError("name at least one categorical or multi-valued column", path="data.categorical")
    for key, names in (("categorical", features), ("numeric", list(config.scalings))):
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ConfigError(f"column {twice!r} is a feature twice", path=f"data.{key}")
        if config.labels.column in names:
            raise ConfigError(f"the label {config.labels.column!r} is among the inputs", path=f"data.{key}")
        if config.weight in names:
            raise ConfigError(f"the weight {config.weight!r} is among the inputs", path=f"data.{key}")
    if config.weight in (config.labels.column, *split_columns(config.split)):
        raise ConfigError(f"column {config.weight!r} is the label or the split, too", path="data.weight")
    for name, columns in config.crosses.items():
        if config.labels.column in columns:
            raise ConfigError(f"the label {config.labels.column!r} is among the inputs", path=f"data.crosses.{name}")
        if config.weight in columns:
            raise ConfigError(f"the weight {config.weight!r} is among the inputs", path=f"data.crosses.{name}")
        if len(set(columns)) < len(columns):
            raise ConfigError(f"a cross has each column once, got {list(columns)}", path=f"data.crosses.{name}")
    for name, separator in config.multi_valued.items():
        if not separator:
            raise ConfigError(f"{name!r} needs a separator", path=f"data.multi_valued.{name}")
    for name in config.vocabulary:
        if name not in features:
            raise ConfigError(f"{name!r} is not a feature; there are {features}", path=f"data.vocabulary.{name}")
    for name, column in config.columns.items():
        if name not in features:
            raise ConfigError(f"{name!r} is not a feature; there are {features}", path=f"data.columns.{name}")
        if column.missing is not None and name not in config.categorical:
            raise ConfigError(f"{name!r} is not a categorical column", path=f"data.columns.{name}.missing")
        limited = column.min_count or column.max_vocabulary
        if config.vocabulary.get(name, name) != name and (limited or column.raw_hash is not None):
            raise ConfigError(
                f"{name!r} has the vocabulary of {config.vocabulary[name]!r}: set this there",
                path=f"data.columns.{name}",
            )
        if limited and config.hashes(name):
            raise ConfigError(f"{name!r} has no vocabulary to limit (raw_hash)", path=f"data.columns.{name}")
    if all(map(config.hashes, features)) and (config.min_count > 1 or config.max_vocabulary is not None):
        key = "min_count" if config.min_count > 1 else "max_vocabulary"
        raise ConfigError("no feature has a vocabulary to limit (raw_hash)", path=f"data.{key}")
    if config.separator is not None and len(config.separator) != 1:
        raise ConfigError(f"a separator is one character, got {config.separator!r}", path="data.separator")
    return config


def _settings(config: DataConfig) -> dict[str, Any]:
    """The config as JSON, without the places of the files: they are compared by content; and without
    ``negative_rate``, which changes no row."""
    tree = config.model_dump(mode="json", exclude={"path", "negative_rate"})
    if tree["split"]["files"] is not None:
        tree["split"]["files"] = sorted(tree["split"]["files"])
    result: dict[str, Any] = json.loads(json.dumps(tree))
    return result
