"""Values that an encoder is to know no longer: their ids become holes, and their text is in no file it writes.

A value that comes again on a later day is one that was never there: nothing is kept to know it by.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_embed.data.cells import MARKS, Cross
from recsys_embed.data.encoder import Encoder, with_counts
from recsys_embed.data.renewal import Renewal, without
from recsys_embed.errors import DataError


@dataclass(frozen=True)
class Removal:
    """What became of one value that was asked for by the name of a feature, vocabulary or raw column.

    ``was``: ``known`` by an ``id`` of the ``vocabulary``; ``pending``; ``crossed``, by a column that has no vocabulary
    of its own; ``absent``; or ``hashed``: there is no vocabulary that could have it. ``count`` is how often it
    occurred, as far as is known. ``crossed``: how many values of crosses it was a part of, which were removed as well.
    """

    name: str
    value: str
    vocabulary: str | None
    was: Literal["known", "pending", "crossed", "absent", "hashed"]
    id: int | None
    count: int
    crossed: int


@dataclass(frozen=True)
class Forgotten:
    """The ``encoder`` without the values; what ``became`` of each, in the order they were asked for; and the account of
    each vocabulary that has lost some, whose ``reset`` are the ids of the rows to reset."""

    encoder: Encoder
    became: tuple[Removal, ...]
    renewals: Mapping[str, Renewal]


def forget(encoder: Encoder, ids: Iterable[tuple[str, str]]) -> Forgotten:
    """Remove values from the vocabularies, from what waits for an id, and from crosses that they are a part of.

    ``ids`` are pairs of a name, that of a feature, a vocabulary or a raw column, and the value as text.

    Raises:
        DataError: there is no such name.
    """
    asked = list(dict.fromkeys(ids))
    became, gone = [], dict[str, set[str]]()
    for name, value in asked:
        vocabulary, columns = _named(encoder, name)
        crossed = {cross: _crossed(encoder, cross, columns, value) for cross in _crosses(encoder, columns)}
        for cross, values in crossed.items():
            gone.setdefault(cross, set()).update(values)
        if vocabulary is not None and vocabulary not in encoder.hashes:
            gone.setdefault(vocabulary, set()).add(value)
        became.append(_became(encoder, name, value, vocabulary, sum(map(len, crossed.values()))))
    vocabularies, histories, renewals = dict(encoder.vocabularies), dict(encoder.histories), dict[str, Renewal]()
    for name, values in gone.items():
        words, history = pa.array(sorted(values), pa.string()), histories.get(name)
        waiting = 0 if history is None else len(history.pending.counts)
        vocabulary_, history, account = without(name, vocabularies[name], history, words)
        if account.forgotten or account.pending < waiting:
            renewals[name], vocabularies[name] = account, vocabulary_
        if history is not None:
            histories[name] = history
    after = replace(
        encoder,
        features=with_counts(encoder.features, vocabularies, histories),
        vocabularies=vocabularies,
        histories=histories,
    )
    return Forgotten(after, tuple(became), renewals)


def _named(encoder: Encoder, name: str) -> tuple[str | None, set[str]]:
    """The vocabulary of a name, if it has one, and the raw columns whose cells are its values."""
    owners = {feature.name: feature.vocab for feature in encoder.features}
    known = name in owners or name in owners.values()
    vocabulary = owners.get(name, name) if known else None
    plain = {feature: cells.columns[0] for feature, cells in encoder.cells.items() if len(cells.columns) == 1}
    columns = {column for feature, column in plain.items() if owners[feature] == vocabulary}
    if not known:
        columns = {column for cells in encoder.cells.values() if isinstance(cells, Cross) for column in cells.columns}
        columns &= {name}
        if not columns:
            names = ", ".join(dict.fromkeys([*owners, *owners.values()]))
            raise DataError(f"there is no such feature; there are {names}", column="feature", value=name)
    return vocabulary, columns


def _crosses(encoder: Encoder, columns: set[str]) -> list[str]:
    """The vocabularies of crosses of some columns."""
    crosses = {name for name, cells in encoder.cells.items() if isinstance(cells, Cross) and columns & {*cells.columns}}
    found = dict.fromkeys(feature.vocab for feature in encoder.features if feature.name in crosses)
    return [name for name in found if name in encoder.vocabularies]


def _crossed(encoder: Encoder, vocabulary: str, columns: set[str], value: str) -> set[str]:
    """The values of a vocabulary that are crosses of ``value`` in one of the columns."""
    for mark, escaped in MARKS:
        value = value.replace(mark, escaped)
    found: set[str] = set()
    texts = [encoder.vocabularies[vocabulary].values]
    if vocabulary in encoder.histories:
        texts.append(encoder.histories[vocabulary].pending.values)
    for feature in encoder.features:
        cells = encoder.cells[feature.name]
        if feature.vocab != vocabulary or not isinstance(cells, Cross):
            continue
        for text in texts:
            joined = text.filter(pc.equal(pc.count_substring(text, MARKS[-1][0]), len(cells.columns) - 1))
            parts = pc.split_pattern(joined, MARKS[-1][0])
            for place, column in enumerate(cells.columns):
                if column in columns and len(joined):
                    same = pc.equal(pc.list_element(parts, place), value)
                    found.update(joined.filter(same).to_pylist())
    return found


def _became(encoder: Encoder, name: str, value: str, vocabulary: str | None, crossed: int) -> Removal:
    if vocabulary is None:
        return Removal(name, value, None, "crossed" if crossed else "absent", None, 0, crossed)
    if vocabulary in encoder.hashes:
        return Removal(name, value, vocabulary, "hashed", None, 0, crossed)
    known, history = encoder.vocabularies[vocabulary], encoder.histories.get(vocabulary)
    id_ = int(known.encode(pa.array([value], pa.string()))[0])
    if id_:
        counts = known.counts if history is None else history.life.count
        return Removal(name, value, vocabulary, "known", id_, int(counts[id_]), crossed)
    if history is not None:
        place = np.flatnonzero(pc.equal(history.pending.values, value).to_numpy(zero_copy_only=False))
        if len(place):
            return Removal(name, value, vocabulary, "pending", None, int(history.pending.counts[place[0]]), crossed)
    return Removal(name, value, vocabulary, "absent", None, 0, crossed)
