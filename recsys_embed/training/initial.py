"""Initial vectors of features from files, in the rows of their tables.

Only a strategy whose rows are vectors as they are can take them: see :meth:`Strategy.vector_tables`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from recsys_embed import ranks
from recsys_embed.data.vectors import Vectors, read_vectors, width_of
from recsys_embed.data.vocabulary import Vocabulary
from recsys_embed.embeddings.base import Rows, Strategy, TableSpec, name_of
from recsys_embed.errors import ConfigError, DataError
from recsys_embed.features import Feature
from recsys_embed.layer import EmbeddingLayer
from recsys_embed.tables.rounding import TORCH_TYPES

_LOG = logging.getLogger("recsys_embed")


@dataclass(frozen=True)
class Found:
    """What a file had: ids of the vocabulary that begin with its vectors, those that keep the weights that were drawn
    (the unseen id 0 among them), and ids of the file that are not in the vocabulary."""

    begun: int
    drawn: int
    unknown: int


def check(strategies: Iterable[nn.Module], files: Mapping[str, str]) -> None:
    """Whether features can begin with the vectors of these files, as far as the first vector of each tells.

    Raises:
        ConfigError: there is no such feature, or its strategy's rows are no vectors; names the key.
        DataError: a file cannot be read, or its vectors have another width.
    """
    for name, spec in _tables(strategies, files).items():
        _check_width(files[name], width_of(files[name]), name, spec)


def begin_with(
    layer: EmbeddingLayer, files: Mapping[str, str], vocabularies: Mapping[str, Vocabulary]
) -> dict[str, Found]:
    """Put the vectors of the files in place of the weights that were drawn; a collective call. What each file had is
    logged.

    Optimizer state stays; where tables are stored in fewer bits, vectors are rounded to nearest.

    Raises:
        ConfigError: see :func:`check`.
        DataError: see :func:`~recsys_embed.data.vectors.read_vectors`; an id of the vocabulary that stands twice, a
            number that the table cannot store, or no id in the vocabulary.
    """
    found = {}
    for name, spec in _tables(layer.plan.strategies, files).items():
        feature = next(one for one in layer.features if one.name == name)
        found[name] = one = _put(layer, files[name], feature, vocabularies[feature.vocab], spec)
        if ranks.own() == 0:
            told = "embedding.initial.%s: %d ids begin with vectors of %s, %d do not; %d of its ids are not in the data"
            _LOG.info(told, name, one.begun, files[name], one.drawn, one.unknown)
    return found


def _tables(strategies: Iterable[nn.Module], files: Mapping[str, str]) -> dict[str, TableSpec]:
    """The table of each feature that is named."""
    owners = {feature.name: one for one in strategies if isinstance(one, Strategy) for feature in one.features}
    vocabularies: dict[str, str] = {}
    tables = {}
    for name in files:
        path = f"embedding.initial.{name}"
        if name not in owners:
            raise ConfigError(f"{path}: no such feature; there are {', '.join(owners)}", path=path)
        strategy = owners[name]
        vocabulary = next(feature.vocab for feature in strategy.features if feature.name == name)
        other = vocabularies.setdefault(vocabulary, name)
        if other != name:
            raise ConfigError(f"{path}: {name!r} shares its rows with {other!r}, which has vectors already", path=path)
        table = strategy.vector_tables().get(vocabulary)
        if table is None:
            raise ConfigError(
                f"{path}: the rows of strategy {name_of(strategy)!r} are no vectors of {name!r}; those of 'full' are",
                path=path,
            )
        tables[name] = next(spec for spec in strategy.stored_tables() if spec.name == table)
    return tables


def _check_width(file: str, width: int, name: str, spec: TableSpec) -> None:
    if width != spec.width:
        raise DataError(f"the vectors of {name!r} have width {spec.width}, and these another", file=file, value=width)


def _put(layer: EmbeddingLayer, file: str, feature: Feature, vocabulary: Vocabulary, spec: TableSpec) -> Found:
    tables, unknown = layer.tables, 0
    seen = np.zeros(feature.size, bool)
    for block in read_vectors(file):
        _check_width(file, block.values.shape[1], feature.name, spec)
        ids = vocabulary.encode(block.ids)
        places = np.flatnonzero(ids > 0)
        unknown += len(ids) - len(places)
        _check_once(block, ids[places], places, seen)
        _check_range(block, places, spec)
        if len(places):
            rows = torch.from_numpy(ids[places].astype(np.int64)).to(tables.device)
            state = tables.get_rows(spec.name, rows).state
            tables.put_rows(spec.name, rows, Rows(torch.from_numpy(block.values[places]).to(tables.device), state))
    if not seen.any():
        raise DataError(f"none of its ids is a value of {feature.name!r} in the training split", file=file)
    return Found(int(seen.sum()), int(feature.size - seen.sum()), unknown)


def _check_once(block: Vectors, ids: np.ndarray, places: np.ndarray, seen: np.ndarray) -> None:
    """That no id was there before; then they all were."""
    again = seen[ids]
    _, first = np.unique(ids, return_index=True)
    again[np.setdiff1d(np.arange(len(ids)), first)] = True
    if again.any():
        index = int(places[again.argmax()])
        raise block.error("an id has a vector already", index, block.ids[index].as_py())
    seen[ids] = True


def _check_range(block: Vectors, places: np.ndarray, spec: TableSpec) -> None:
    storage = spec.storage
    if storage.integer:
        low, high = (limit * storage.scale + storage.midpoint for limit in storage.limits)
    else:
        low, high = (getattr(torch.finfo(TORCH_TYPES[storage.dtype]), name) for name in ("min", "max"))
    values = block.values[places]
    beyond = ((values < low) | (values > high)).any(axis=1)
    if beyond.any():
        index = int(places[beyond.argmax()])
        largest = max(block.values[index].tolist(), key=abs)
        told = f"a number is beyond what {storage.dtype} stores, {low:g} to {high:g}"
        raise block.error(told, index, largest)
