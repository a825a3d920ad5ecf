"""How the values of a data set differ from those of its training rows, or of another data set."""

from __future__ import annotations

import numpy as np

from recsys_embed.data.bags import Bag
from recsys_embed.data.dataset import EncodedDataset
from recsys_embed.data.distances import Distance, Drift, Frequencies
from recsys_embed.data.encoder import Encoder
from recsys_embed.data.split import SPLITS
from recsys_embed.features import Feature

_ROWS = 1 << 18  # read at once


def drift(dataset: EncodedDataset, reference: EncodedDataset | None = None) -> dict[str, Drift]:
    """Of each feature that both have, by its name. The reference is a data set of other rows; by default the data set
    is its own, and its other splits are compared with its training rows.

    Values are compared, whatever ids each of the data sets gives them; one that the reference has no id for is unseen.
    """
    own = {split: frequencies(dataset, split) for split in SPLITS}
    trained = own["train"] if reference is None else frequencies(reference, "train")
    found = {}
    for feature in dataset.features:
        if feature.name not in trained:
            continue
        mine, train = {split: one[feature.name] for split, one in own.items()}, trained[feature.name]
        if reference is None:
            theirs = {split: mine[split] for split in SPLITS[1:]}
        else:
            theirs = {split: _translated(one, feature, dataset.encoder, reference) for split, one in mine.items()}
        new = _new(feature, dataset.encoder)
        found[feature.name] = Drift(
            {split: _share(one, one.ids == 0) for split, one in mine.items()},
            {split: _share(one, np.isin(one.ids, new)) for split, one in mine.items()},
            {split: Distance.between(train, one) for split, one in theirs.items()},
        )
    return found


def frequencies(dataset: EncodedDataset, split: str) -> dict[str, Frequencies]:
    """How often the ids of each feature occur in a split."""
    rows = dataset.rows_of(split)
    sums: list[np.ndarray | Frequencies] = [
        Frequencies.of_counts(np.zeros(0, np.int64)) if feature.hashed else np.zeros(feature.size, np.int64)
        for feature in dataset.features
    ]
    for begin in range(0, len(rows), _ROWS):
        for place, ids in enumerate(rows.read(begin, min(begin + _ROWS, len(rows))).ids):
            flat, so_far = ids.values if isinstance(ids, Bag) else ids, sums[place]
            if isinstance(so_far, Frequencies):
                ones = np.ones(len(flat), np.int64)
                both = np.concatenate([so_far.ids, flat]), np.concatenate([so_far.counts, ones])
                sums[place] = Frequencies.of(*both)
            else:
                np.add.at(so_far, flat, 1)
    named = zip(dataset.features, sums, strict=True)
    return {f.name: one if isinstance(one, Frequencies) else Frequencies.of_counts(one) for f, one in named}


def _share(of: Frequencies, which: np.ndarray) -> float | None:
    return int(of.counts[which].sum()) / of.total if of.total else None


def _new(feature: Feature, encoder: Encoder) -> np.ndarray:
    """The ids that were given on the encoder's last night."""
    history = encoder.histories.get(feature.vocab)
    return np.zeros(0, np.int64) if history is None else np.flatnonzero(history.life.admitted == encoder.night)


def _translated(of: Frequencies, feature: Feature, encoder: Encoder, reference: EncodedDataset) -> Frequencies:
    """By the ids of the reference; hashes are the same everywhere."""
    if feature.hashed:
        return of
    other = next(one for one in reference.features if one.name == feature.name)
    ids = encoder.vocabularies[feature.vocab].ids_in(reference.encoder.vocabularies[other.vocab])
    return Frequencies.of(ids[of.ids], of.counts)
