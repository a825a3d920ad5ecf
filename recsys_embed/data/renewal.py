"""What a night does to a vocabulary: who gets an id, who loses one, who waits.

An id is never given away while its value is there, and the largest id never becomes smaller: a value that is taken away
leaves a hole, and the next one that is admitted gets the smallest.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_embed.config import GrowthConfig
from recsys_embed.data.checked import read_checked
from recsys_embed.data.history import History, Life, Pending
from recsys_embed.data.vocabulary import LARGEST, Vocabulary, narrowed

_SCHEMA = pa.schema([("value", pa.large_string()), ("tonight", pa.int64()), ("total", pa.int64())])
_RANKED = [("tonight", "descending"), ("total", "descending"), ("value", "ascending")]
_WAITING = [("total", "descending"), ("value", "ascending")]


@dataclass(frozen=True)
class Renewal:
    """The account of one vocabulary's night.

    Cardinalities, id 0 included: ``born`` when the model was first trained, ``before`` and ``after`` this night.
    Values: ``known`` had an id before; ``admitted`` got one; ``expired`` lost theirs, ``evicted`` of these to make
    room; ``forgotten`` were removed by request; ``pending`` wait, and ``dropped`` did until there were too many.

    ``reset [n]`` int64: the ids below ``before``, in rising order, whose row stands for another value now, or for none,
    and has to be as if it had never been seen.
    """

    vocabulary: str
    born: int
    before: int
    after: int
    admitted: int
    expired: int
    forgotten: int
    pending: int
    reset: np.ndarray = field(compare=False)
    known: int = 0
    evicted: int = 0
    dropped: int = 0

    def tree(self) -> dict[str, Any]:
        """As JSON: all but which ids are reset."""
        return {name: value for name, value in asdict(self).items() if name != "reset"}


def reset_file(place: int) -> str:
    """The name of the file of the ids that are reset, of the vocabulary at a place in their order."""
    return f"reset-{place}.parquet"


def load_reset(path: Path) -> np.ndarray:
    """The ids ``[n]`` int64 of such a file.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    return np.asarray(read_checked(path, ["id"])["id"].to_numpy())


@dataclass(frozen=True)
class Night:
    """What was counted in the training rows of a day: ``counts [cardinality]`` int64 by the ids that there are, where 0
    is all that has none, and of this, by value, what is not missing: ``strangers``, tables of value and count."""

    counts: np.ndarray
    strangers: pa.Table

    @classmethod
    def of(cls, vocabulary: Vocabulary, counted: Iterable[pa.Table], missing: int = 0) -> Night:
        """``counted`` are tables of value and count, in which no value is twice."""
        counts, strangers = np.zeros(vocabulary.cardinality, np.int64), [_SCHEMA.empty_table()]
        counts[0] = missing
        for table in counted:
            there = table.filter(pc.greater(table["count"], 0)).combine_chunks()
            values, times = narrowed(there["value"]), there["count"].to_numpy()
            ids = vocabulary.ids(values)
            np.add.at(counts, ids, times)
            strangers.append(_table(values, times, times).filter(pa.array(ids == 0)))
        return cls(counts, pa.concat_tables(strangers))


def renew(
    name: str, old: Vocabulary, history: History, night: Night, growth: GrowthConfig, number: int
) -> tuple[Vocabulary, History, Renewal]:
    """The vocabulary after a night, the ``number``-th, with its history and the account of it.

    First values expire. One that is in the day's rows all the same, as happens by age, is then like one that was never
    there. Of the day's values without an id those that were counted often enough are admitted, the most frequent of the
    day first, ties by the counts of all nights, then by their bytes. They get the holes, smallest first, then new ids,
    and where ``growth.max_ids`` leaves too few of these, some make room. The others wait.
    """
    size, known, life = old.cardinality, old.known, history.life
    seen = np.where(known & (night.counts > 0), np.int32(number), life.seen)
    since = number - (seen if growth.expire_by == "inactivity" else life.admitted)
    leaves = known & (since >= (growth.expire_after or np.inf))

    strangers = _with_waiting(pa.concat_tables([night.strangers, _leaving(old, night, leaves)]), history.pending)
    strangers = strangers.sort_by(_RANKED)
    fit = pc.greater_equal(strangers["total"], growth.admit_count)
    wanting, waiting = strangers.filter(fit), strangers.filter(pc.invert(fit))

    free, most = int((~known | leaves)[1:].sum()), min(growth.max_ids or LARGEST, LARGEST)
    room = free + max(most - size, 0)
    evicted = _evicted(since, night.counts, life.count, known & ~leaves, wanting["tonight"].to_numpy()[room:])
    admitted = wanting.slice(0, room + len(evicted))
    waiting = pa.concat_tables([waiting, wanting.slice(len(admitted))])

    gone = leaves.copy()
    gone[evicted] = True
    holes = np.flatnonzero(~known | gone)[1:]  # 0 is none
    after = size + max(0, len(admitted) - len(holes))
    places = np.append(holes, np.arange(size, after))[: len(admitted)]
    pending, dropped = _pending(history.pending, strangers, waiting, _leaving(old, night, gone & ~leaves), growth)

    totals = admitted["total"].to_numpy()
    occurred = life.count + night.counts
    occurred[0] += occurred[gone].sum() - totals.sum()
    counts = _put(old.counts, gone, places, totals)
    counts[: history.born] = old.counts[: history.born]
    now = Life(
        _put(life.admitted, gone, places, number),
        _put(seen, gone, places, number),
        _put(occurred, gone, places, totals),
    )
    account = Renewal(
        vocabulary=name,
        born=history.born,
        before=size,
        after=after,
        admitted=len(admitted),
        expired=int(gone.sum()),
        forgotten=0,
        pending=len(pending.counts),
        reset=np.union1d(np.flatnonzero(gone), places[places < size]).astype(np.int64),
        known=int(known.sum()),
        evicted=len(evicted),
        dropped=dropped,
    )
    found = Vocabulary(_replaced(old.values, gone, places, admitted["value"]), counts)
    return found, History(history.born, now, pending), account


def _table(values: pa.Array, tonight: np.ndarray, total: np.ndarray) -> pa.Table:
    return pa.table([values.cast(pa.large_string()), tonight, total], schema=_SCHEMA)


def _leaving(old: Vocabulary, night: Night, leaves: np.ndarray) -> pa.Table:
    """Those of the day's values that lose their id, as values that never had one."""
    ids = np.flatnonzero(leaves & (night.counts > 0))
    return _table(old.values.take(pa.array(ids - 1)), night.counts[ids], night.counts[ids])


def _with_waiting(strangers: pa.Table, pending: Pending) -> pa.Table:
    """The day's values with what they were counted before."""
    before = _places(strangers, pending)
    total = strangers["tonight"].to_numpy() + np.append(0, pending.counts)[before]
    return strangers.set_column(2, "total", pa.array(total))


def _places(strangers: pa.Table, pending: Pending) -> np.ndarray:
    """The place of each of the day's values among those that wait, from 1; 0 where it is new."""
    return Vocabulary(pending.values, pending.counts).ids(narrowed(strangers["value"]))


def _evicted(
    since: np.ndarray, tonight: np.ndarray, total: np.ndarray, possible: np.ndarray, wanting: np.ndarray
) -> np.ndarray:
    """The ids ``[n]`` that make room for values which occur ``wanting`` times, in falling order.

    Who may stand aside is asked once, in order, by the value whose turn it is: one that is too frequent for it is for
    all after it.
    """
    if not len(wanting):
        return np.zeros(0, np.intp)
    ids = np.flatnonzero(possible & (tonight < wanting[0]))
    order = ids[np.lexsort((-ids, total[ids], tonight[ids], -since[ids]))]
    found: list[int] = []
    turns = wanting.tolist()
    for id_, often in zip(order.tolist(), tonight[order].tolist(), strict=True):
        if len(found) == len(turns):
            break
        if often < turns[len(found)]:
            found.append(id_)
    return np.array(found, np.intp)


def _pending(
    old: Pending, strangers: pa.Table, waiting: pa.Table, made_room: pa.Table, growth: GrowthConfig
) -> tuple[Pending, int]:
    """Who waits after a night, and how many are too many."""
    silent = np.ones(len(old.counts) + 1, bool)
    silent[0] = False
    silent[_places(strangers, old)] = False
    ids = np.flatnonzero(silent) - 1
    rest = _table(old.values.take(pa.array(ids)), np.zeros(len(ids), np.int64), old.counts[ids])
    whole = pa.concat_tables([waiting, made_room, rest]).sort_by(_WAITING)
    kept = whole.slice(0, growth.pending).combine_chunks()
    return Pending(narrowed(kept["value"]), kept["total"].to_numpy()), len(whole) - len(kept)


def _put(old: np.ndarray, gone: np.ndarray, places: np.ndarray, new: np.ndarray | int) -> np.ndarray:
    """Numbers by id: zeros where some are ``gone``, then ``new`` ones at their ``places``, of which the largest may be
    beyond what there was."""
    numbers = np.append(old, np.zeros(max(0, int(places.max(initial=0)) + 1 - len(old)), old.dtype))
    numbers[: len(gone)][gone] = 0
    numbers[places] = new
    return numbers


def _replaced(old: pa.Array, gone: np.ndarray, places: np.ndarray, new: pa.ChunkedArray) -> pa.Array:
    """Values by id from 1, as :func:`_put` has numbers: a null is where one is gone."""
    source = _put(np.arange(len(gone)), gone, places, len(gone) + np.arange(len(places)))[1:]
    values = pa.chunked_array([old.cast(pa.large_string()), *new.chunks], pa.large_string())
    return narrowed(values.take(pa.array(source - 1, mask=source == 0)))


def without(
    name: str, old: Vocabulary, history: History | None, values: pa.Array
) -> tuple[Vocabulary, History | None, Renewal]:
    """The vocabulary without ``values``, of which it may not have all, and a history in which they do not wait."""
    known, none = old.known, np.zeros(0, np.intp)
    gone = np.zeros(old.cardinality, bool)
    gone[old.ids(values)] = True
    gone[0] = False
    born, counts = old.cardinality if history is None else history.born, _put(old.counts, gone, none, 0)
    counts[:born] = old.counts[:born]
    found = Vocabulary(_replaced(old.values, gone, none, pa.chunked_array([], pa.large_string())), counts)
    if history is not None:
        life, pending = history.life, history.pending
        count = life.count.copy()
        count[0] += count[gone].sum()
        stays = pc.invert(pc.is_in(pending.values, values.cast(pending.values.type)))
        history = History(
            born,
            Life(*(_put(one, gone, none, 0) for one in (life.admitted, life.seen, count))),
            Pending(pending.values.filter(stays), pending.counts[stays.to_numpy(zero_copy_only=False)]),
        )
    account = Renewal(
        vocabulary=name,
        born=born,
        before=old.cardinality,
        after=old.cardinality,
        admitted=0,
        expired=0,
        forgotten=int(gone.sum()),
        pending=0 if history is None else len(history.pending.counts),
        reset=np.flatnonzero(gone).astype(np.int64),
        known=int(known.sum()),
    )
    return found, history, account
