"""A night of a vocabulary, against plain Python."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from recsys_embed.config import GrowthConfig
from recsys_embed.data.history import History
from recsys_embed.data.renewal import Night, Renewal, renew, without
from recsys_embed.data.vocabulary import Vocabulary
from recsys_embed.errors import CheckpointError

WORDS = ["a", "b", "c", "d", "Ä", "é", "zz", ""]
DAY = st.fixed_dictionaries({word: st.sampled_from([0, 0, 1, 2, 3]) for word in WORDS})


def counted(day: dict[str, int]) -> pa.Table:
    return pa.table([pa.array(list(day), pa.large_string()), np.array([*day.values()], np.int64)], ["value", "count"])


@dataclass
class Plain:
    """A vocabulary with its history, by the rules as they are told."""

    born: int
    values: list[str | None]  # by id; of 0 there is none
    counts: list[int]
    admitted: list[int]
    seen: list[int]
    count: list[int]
    pending: dict[str, int] = field(default_factory=dict)

    def night(self, day: dict[str, int], missing: int, growth: GrowthConfig, number: int) -> dict[str, object]:
        day = {value: times for value, times in day.items() if times}
        before, ids = len(self.values), {v: i for i, v in enumerate(self.values) if v is not None}
        self.count[0] += missing
        for value, times in day.items():
            self.count[ids.get(value, 0)] += times
            if value in ids:
                self.seen[ids[value]] = number
        since = self.seen if growth.expire_by == "inactivity" else self.admitted

        def drop(id_: int) -> None:
            self.count[0] += self.count[id_]
            self.values[id_], self.count[id_], self.seen[id_], self.admitted[id_] = None, 0, 0, 0
            if id_ >= self.born:
                self.counts[id_] = 0

        expired = [
            i for i in ids.values() if growth.expire_after is not None and number - since[i] >= growth.expire_after
        ]
        for id_ in expired:
            drop(id_)
        ids = {v: i for i, v in enumerate(self.values) if v is not None}
        strangers = {value: times for value, times in day.items() if value not in ids}
        wanting = [v for v in strangers if strangers[v] + self.pending.get(v, 0) >= growth.admit_count]
        wanting.sort(key=lambda v: (-strangers[v], -strangers[v] - self.pending.get(v, 0), v.encode()))
        room = self.values[1:].count(None)
        if growth.max_ids is None:
            room = len(wanting)
        else:
            room += max(growth.max_ids - before, 0)
        admitted, evicted = wanting[:room], list[int]()
        for value in wanting[room:]:
            possible = [i for v, i in ids.items() if i not in evicted and day.get(v, 0) < day[value]]
            order = {i: (since[i] - number, day.get(v, 0), self.count[i], -i) for v, i in ids.items()}
            if possible:
                evicted.append(min(possible, key=order.__getitem__))
                admitted.append(value)
        back = {self.values[i]: day[self.values[i]] for i in evicted if self.values[i] in day}  # type: ignore[index]
        for id_ in evicted:
            drop(id_)
        totals = {v: n + self.pending.pop(v, 0) for v, n in strangers.items()}
        waiting = {**self.pending, **{v: n for v, n in totals.items() if v not in admitted}, **back}  # type: ignore[dict-item]
        reset = {*expired, *evicted}
        for value in admitted:
            id_ = next((i for i, v in enumerate(self.values) if i and v is None), len(self.values))
            if id_ == len(self.values):
                for numbers in (self.values, self.counts, self.admitted, self.seen, self.count):
                    numbers.append(0)  # type: ignore[attr-defined]
            elif id_ < before:
                reset.add(id_)
            self.values[id_], self.admitted[id_], self.seen[id_], self.count[id_] = value, number, number, totals[value]
            self.count[0] -= totals[value]
            if id_ >= self.born:
                self.counts[id_] = totals[value]
        kept = sorted(waiting, key=lambda v: (-waiting[v], v.encode()))[: growth.pending]
        self.pending = {v: waiting[v] for v in kept}
        return {
            "before": before,
            "after": len(self.values),
            "admitted": len(admitted),
            "expired": len(expired) + len(evicted),
            "evicted": len(evicted),
            "pending": len(kept),
            "dropped": len(waiting) - len(kept),
            "reset": sorted(reset),
        }


def same(plain: Plain, vocabulary: Vocabulary, history: History) -> None:
    assert [None, *vocabulary.values.to_pylist()] == plain.values
    assert vocabulary.counts.tolist() == plain.counts
    life = history.life
    assert [one.tolist() for one in (life.admitted, life.seen, life.count)] == [plain.admitted, plain.seen, plain.count]
    assert dict(zip(history.pending.values.to_pylist(), history.pending.counts.tolist(), strict=True)) == plain.pending
    assert list(plain.pending) == history.pending.values.to_pylist()


@settings(max_examples=100)
@example([{}, {"a": 1, "": 2}, {}, {"b": 1}], 2, 1, 1, "inactivity", 0, 1)  # born with nothing but id 0
@given(
    days=st.lists(DAY, min_size=5, max_size=8),
    missing=st.integers(0, 3),
    admit=st.sampled_from([1, 2, 4]),
    expire=st.sampled_from([None, 1, 2, 3]),
    by=st.sampled_from(["inactivity", "age"]),
    extra=st.sampled_from([None, 0, 1, 2]),
    pending=st.sampled_from([0, 1, 3]),
)
def test_nights_are_those_of_plain_python(
    days: list[dict[str, int]],
    missing: int,
    admit: int,
    expire: int | None,
    by: str,
    extra: int | None,
    pending: int,
) -> None:
    vocabulary = Vocabulary.of([counted({v: n for v, n in days[0].items() if n})], missing)
    size = vocabulary.cardinality
    most = None if extra is None else max(size + extra, 2)
    growth = GrowthConfig(admit_count=admit, expire_after=expire, expire_by=by, max_ids=most, pending=pending)  # type: ignore[arg-type]
    history, zeros = History.birth(vocabulary), [0] * size
    counts = vocabulary.counts.tolist()
    plain = Plain(size, [None, *vocabulary.values.to_pylist()], counts, zeros[:], zeros[:], counts[:])
    total = sum(counts)
    for number, day in enumerate(days[1:], 1):
        cut = [counted(dict(list(day.items())[start : start + 3])) for start in range(0, len(day), 3)]
        night = Night.of(vocabulary, cut, missing)
        old = vocabulary
        vocabulary, history, account = renew("v", vocabulary, history, night, growth, number)
        told = plain.night(day, missing, growth, number)
        same(plain, vocabulary, history)
        assert {name: account.tree().get(name, account.reset.tolist()) for name in told} == told
        assert account.born == size
        assert account.reset.dtype == np.int64
        assert most is None or vocabulary.cardinality <= most
        total += sum(day.values()) + missing
        assert history.life.count.sum() == total
        words = pa.array(WORDS)
        was, now = old.encode(words), vocabulary.encode(words)
        for one, other in zip(was, now, strict=True):
            assert one == other or one == 0 or one in account.reset  # an id keeps its value, or is reset


def weeks(*days: dict[str, int], **options: object) -> tuple[Vocabulary, History, list[Renewal]]:
    """Days, of which the first is the birth."""
    vocabulary = Vocabulary.of([counted(days[0])])
    history, accounts = History.birth(vocabulary), list[Renewal]()
    for number, day in enumerate(days[1:], 1):
        growth = GrowthConfig.model_validate(options)
        night = Night.of(vocabulary, [counted(day)])
        vocabulary, history, account = renew("v", vocabulary, history, night, growth, number)
        accounts.append(account)
    return vocabulary, history, accounts


def test_a_value_waits_until_it_was_counted_often_enough() -> None:
    vocabulary, history, accounts = weeks({"a": 9}, {"b": 2, "a": 1}, {"a": 1}, {"b": 1, "c": 1}, admit_count=3)
    assert [one.admitted for one in accounts] == [0, 0, 1]
    assert vocabulary.values.to_pylist() == ["a", "b"]
    assert vocabulary.counts.tolist() == [0, 9, 3]
    assert history.pending.values.to_pylist() == ["c"]
    assert history.life.count.tolist() == [1, 11, 3]


def test_who_is_not_seen_for_longest_makes_room() -> None:
    vocabulary, _, accounts = weeks({"a": 9, "b": 5, "c": 5}, {"a": 1}, {"c": 1}, {"n": 1}, {"a": 1, "m": 1}, max_ids=4)
    assert vocabulary.values.to_pylist() == ["a", "n", "m"]  # b was silent for longest, then c
    assert [one.reset.tolist() for one in accounts] == [[], [], [2], [3]]


def test_a_value_of_the_day_makes_room_for_more_frequent_ones_alone() -> None:
    for often, values in ((2, ["a", "b"]), (3, ["a", "n"])):
        vocabulary, history, _ = weeks({"a": 2, "b": 1}, {"a": 5, "b": 2, "n": often}, max_ids=3)
        assert vocabulary.values.to_pylist() == values
        assert history.pending.values.to_pylist() == [{"b", "n"}.difference(values).pop()]


def test_of_equals_the_rarest_of_the_day_makes_room() -> None:
    vocabulary, _, _ = weeks({"a": 9, "b": 3}, {"a": 1, "b": 2, "n": 3}, max_ids=3)
    assert vocabulary.values.to_pylist() == ["n", "b"]  # a is the rarest of the day, and b ever
    vocabulary, _, _ = weeks({"a": 3, "b": 9, "c": 3}, {"n": 1}, max_ids=4)
    assert vocabulary.values.to_pylist() == ["b", "a", "n"]  # nobody was seen: c is as rare as a, and has the larger id


def test_by_age_the_oldest_goes_and_is_new_where_it_comes_again() -> None:
    vocabulary, history, accounts = weeks({"a": 3, "b": 2}, {"a": 1}, {"b": 4}, expire_after=2, expire_by="age")
    assert vocabulary.values.to_pylist() == ["b", None]
    assert (accounts[1].expired, accounts[1].admitted, accounts[1].reset.tolist()) == (2, 1, [1, 2])
    assert (history.life.count.tolist(), history.life.admitted.tolist()) == ([6, 4, 0], [0, 2, 0])


def test_a_hole_is_nobodys_id(tmp_path: Path) -> None:
    vocabulary, history, _ = weeks({"a": 3, "": 2, "c": 1}, {"a": 1, "c": 1}, expire_after=1)
    assert vocabulary.values.to_pylist() == ["a", None, "c"]
    for one in (vocabulary, saved(vocabulary, tmp_path)):
        assert one.encode(pa.array(["", None, "a", "c"])).tolist() == [0, 0, 1, 3]
        assert one.known.tolist() == [False, True, False, True]
    history.save(tmp_path, 0)
    loaded = History.load(tmp_path, 0, history.born)
    assert [one.tolist() for one in vars(loaded.life).values()] == [one.tolist() for one in vars(history.life).values()]
    filled = Vocabulary(vocabulary.values.fill_null(""), vocabulary.counts)
    assert filled.digest() != vocabulary.digest() == saved(vocabulary, tmp_path).digest()
    for name in ("life-0.parquet", "pending-0.parquet"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[:-9])
        with pytest.raises(CheckpointError, match=name):
            History.load(tmp_path, 0, history.born)
        (tmp_path / name).write_bytes(whole)


def saved(vocabulary: Vocabulary, folder: Path) -> Vocabulary:
    vocabulary.save(folder / "v.parquet")
    return Vocabulary.load(folder / "v.parquet")


def test_what_is_forgotten_has_no_id_and_does_not_wait(tmp_path: Path) -> None:
    vocabulary, history, _ = weeks({"a": 3, "secret": 2}, {"a": 1, "hidden": 1, "b": 1}, admit_count=2)
    found, after, account = without("v", vocabulary, history, pa.array(["secret", "hidden", "stranger"]))
    assert after is not None
    assert (found.values.to_pylist(), after.pending.values.to_pylist()) == (["a", None], ["b"])
    assert (account.forgotten, account.reset.tolist(), account.before, account.after) == (1, [2], 3, 3)
    assert (after.life.count.tolist(), after.born) == ([4, 4, 0], 3)
    found.save(tmp_path / "v.parquet")
    after.save(tmp_path, 0)
    for file in tmp_path.iterdir():
        assert not any(word in file.read_bytes() for word in (b"secret", b"hidden"))
    bare, none, _ = without("v", Vocabulary.of([counted({"a": 3, "secret": 2})]), None, pa.array(["secret"]))
    assert (bare.values.to_pylist(), bare.counts.tolist(), none) == (["a", None], [0, 3, 2], None)
    assert History.birth(bare).life.count.tolist() == [2, 3, 0]
