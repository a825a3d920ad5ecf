"""The steps of a preparation that are others where its rows continue an encoder that there is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from recsys_embed.data.cells import Buckets
from recsys_embed.data.counting import VOCABULARIES, counted_runs, finish, result
from recsys_embed.data.dataset import EncodedDataset
from recsys_embed.data.distances import Distance, Frequencies
from recsys_embed.data.drift import drift
from recsys_embed.data.encoder import Encoder, vocabulary_file, with_counts
from recsys_embed.data.encoding import DATA, ENCODER
from recsys_embed.data.history import History
from recsys_embed.data.renewal import Night, renew, reset_file
from recsys_embed.data.rows import Before, Job
from recsys_embed.data.tally import merge
from recsys_embed.data.vocabulary import Vocabulary


def edges_of(encoder: Encoder) -> tuple[tuple[str, tuple[float, ...]], ...]:
    """The quantiles of each column in buckets, as a job has them."""
    buckets = [(name, one.edges) for name, one in encoder.cells.items() if isinstance(one, Buckets)]
    return tuple((name, edges) for name, edges in buckets if edges is not None)


def renew_vocabulary(job: Job, before: Before, index: int) -> int:
    """Write one of the vocabularies after the night, with its history and what is to be reset; returns its size."""
    name, old, data = job.vocabularies[index], Path(before.folder), Path(job.work) / DATA
    vocabulary = Vocabulary.load(old / vocabulary_file(index))
    lived = bool(before.encoder.night)
    history = History.load(old, index, before.born(name)) if lived else History.birth(vocabulary)
    runs, missing = counted_runs(job, name)
    night = Night.of(vocabulary, merge(runs), missing)
    found, now, account = renew(name, vocabulary, history, night, before.growth, before.encoder.night + 1)
    found.save(data / ENCODER / vocabulary_file(index))
    now.save(data / ENCODER, index)
    pq.write_table(pa.table({"id": account.reset}), data / reset_file(index), write_page_checksum=True)
    distance = Distance.between(Frequencies.of_counts(history.life.count), Frequencies.of_counts(night.counts))
    tree = {"account": account.tree(), "from_life": None if distance is None else vars(distance)}
    finish(job, VOCABULARIES, index, tree)
    return len(found.values)


def continued(job: Job, before: Before) -> Encoder:
    """The encoder after the night: all but its vocabularies is as it was."""
    folder, vocabularies, histories = Path(job.work) / DATA / ENCODER, {}, {}
    for place, name in enumerate(job.vocabularies):
        vocabularies[name] = Vocabulary.load(folder / vocabulary_file(place))
        histories[name] = History.load(folder, place, before.born(name))
    return replace(
        before.encoder,
        features=with_counts(before.encoder.features, vocabularies, histories),
        vocabularies=vocabularies,
        histories=histories,
        night=before.encoder.night + 1,
    )


def accounts(job: Job) -> dict[str, Any]:
    """What the night did to each vocabulary, as JSON."""
    return {name: tree["account"] for name, tree in _renewed(job).items()}


def drift_of(job: Job, dataset: EncodedDataset) -> dict[str, Any]:
    """How the day differs from those before, and its splits from each other, by feature, as JSON."""
    lives = {
        name: None if tree["from_life"] is None else Distance(**tree["from_life"])
        for name, tree in _renewed(job).items()
    }
    return {
        feature.name: replace(one, from_life=lives.get(feature.vocab)).tree()
        for feature, one in zip(dataset.features, drift(dataset).values(), strict=True)
    }


def _renewed(job: Job) -> dict[str, dict[str, Any]]:
    files = [result(job, VOCABULARIES, place) for place in range(len(job.vocabularies))]
    trees = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    return dict(zip(job.vocabularies, trees, strict=True))
