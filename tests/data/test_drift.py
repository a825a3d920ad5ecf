"""Distances of frequencies against plain sums, and the drift of planted days."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_embed.config import GrowthConfig
from recsys_embed.data import EncodedDataset, continue_data, prepare
from recsys_embed.data.distances import Distance, Drift, Frequencies, bands
from recsys_embed.data.drift import drift

COUNTS = st.dictionaries(st.integers(0, 9), st.integers(1, 50), min_size=1)


def frequencies(counts: dict[int, int]) -> Frequencies:
    return Frequencies.of(np.array([*counts], np.int64), np.array([*counts.values()], np.int64))


def plain_divergence(one: dict[int, int], other: dict[int, int]) -> float:
    def entropy(p: list[float]) -> float:
        return -math.fsum(x * math.log2(x) for x in p if x)

    p, q = ([counts.get(i, 0) / sum(counts.values()) for i in range(10)] for counts in (one, other))
    return entropy([(a + b) / 2 for a, b in zip(p, q, strict=True)]) - (entropy(p) + entropy(q)) / 2


def plain_bands(counts: dict[int, int]) -> dict[int, int]:
    """Of each id: where the middle one of the occurrences of all ids of its count falls."""
    seen = {i: n for i, n in counts.items() if i}
    order = sorted(seen.values(), reverse=True)
    drawn = [n for n in order for _ in range(n)]
    found = {}
    for id_, count in seen.items():
        places = [place for place, n in enumerate(drawn) if n == count]
        found[id_] = math.floor(3 * ((places[0] + places[-1] + 1) / 2) / len(drawn))
    return found


def plain_stability(one: dict[int, int], other: dict[int, int]) -> float:
    band = plain_bands(one)
    shares = []
    for counts in (one, other):
        sums = [0.5] * 4
        for id_, count in counts.items():
            sums[band.get(id_, 3)] += count
        shares.append([x / sum(sums) for x in sums])
    return math.fsum((q - p) * math.log(q / p) for p, q in zip(*shares, strict=True))


@given(COUNTS, COUNTS)
def test_distances_are_the_plain_sums(one: dict[int, int], other: dict[int, int]) -> None:
    found = Distance.between(frequencies(one), frequencies(other))
    assert found is not None
    assert found.divergence == pytest.approx(plain_divergence(one, other), abs=1e-12)
    assert found.stability == pytest.approx(plain_stability(one, other), abs=1e-12)
    ids = np.array(sorted(one))
    banded = bands(ids, np.array([one[i] for i in ids.tolist()]))
    assert {i: b for i, b in zip(ids.tolist(), banded.tolist(), strict=True) if b < 3} == plain_bands(one)


def test_known_distances() -> None:
    same = Distance.between(frequencies({1: 2, 2: 6}), frequencies({1: 1, 2: 3}))
    assert same is not None
    assert same.divergence == pytest.approx(0, abs=1e-15)
    apart = Distance.between(frequencies({1: 2}), frequencies({2: 6}))
    assert apart is not None
    assert apart.divergence == 1
    assert Distance.between(frequencies({1: 2}), frequencies({})) is None
    half = Distance.between(frequencies({1: 1}), frequencies({1: 1, 2: 1}))
    assert half is not None
    assert half.divergence == pytest.approx(1.5 - 0.75 * math.log2(3))


def rows(users: dict[str, list[str]], hashed: list[str]) -> pd.DataFrame:
    """Users by split, with a label of both classes and a feature that is hashed."""
    cells = [(split, user) for split, there in users.items() for user in there]
    return pd.DataFrame(
        {
            "clicked": [str(i % 2) for i in range(len(cells))],
            "part": [split for split, _ in cells],
            "user": [user for _, user in cells],
            "tags": ["|".join([user, user, "t"]) if user else "" for _, user in cells],
            "ip": np.resize(hashed, len(cells)),
        }
    )


@pytest.fixture(scope="module")
def days(kit: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> tuple[EncodedDataset, EncodedDataset]:
    """A day, and one that continues it, with an admission at the second occurrence."""
    folder = tmp_path_factory.mktemp("drift")
    schema = kit.config(
        "frame",
        categorical=["user", "ip"],
        multi_valued={"tags": "|"},
        numeric=[],
        columns={"ip": {"raw_hash": True}},
    )
    first = rows({"train": ["a"] * 6 + ["b"] * 3 + [""], "val": ["a", "c"], "test": ["b", "b"]}, ["x", "y"])
    one = prepare(schema, folder / "one", frame=first)
    second = rows({"train": ["a"] * 2 + ["n"] * 4 + ["m", ""], "val": ["n", "m", "a", "q"], "test": ["b"] * 2}, ["x"])
    growth = GrowthConfig(admit_count=2)
    two = continue_data(schema, one.path / "encoder", folder / "two", growth=growth, frame=second)
    return one, two


def test_the_drift_of_a_day_is_that_of_its_values(days: tuple[EncodedDataset, EncodedDataset]) -> None:
    _, two = days
    user = two.drift["user"]
    assert user.unseen == {"train": 2 / 8, "val": 2 / 4, "test": 0}
    assert user.new == {"train": 4 / 8, "val": 1 / 4, "test": 0}
    lived, day = {1: 6, 2: 3, 0: 1}, {1: 2, 0: 6}  # what is new tonight had no id
    assert user.from_life is not None
    assert user.from_life.divergence == pytest.approx(plain_divergence(lived, day))
    assert user.from_life.stability == pytest.approx(plain_stability(lived, day))
    train, val, test = {1: 2, 3: 4, 0: 2}, {3: 1, 0: 2, 1: 1}, {2: 2}
    for split, counts in (("val", val), ("test", test)):
        found = user.from_train[split]
        assert found is not None
        assert found.divergence == pytest.approx(plain_divergence(train, counts))
        assert found.stability == pytest.approx(plain_stability(train, counts))
    ip = two.drift["ip"]
    assert (ip.from_life, ip.unseen, ip.new) == (None, dict.fromkeys(two.schema["rows"], 0.0), ip.unseen)
    assert two.drift["tags"].new["train"] == 10 / (7 * 3)  # n, and m, which is there twice


def test_what_a_schema_says_is_what_is_counted(days: tuple[EncodedDataset, EncodedDataset]) -> None:
    one, two = days
    tree = json.loads((two.path / "schema.json").read_text())["drift"]
    assert tree == {name: found.tree() for name, found in two.drift.items()}
    assert one.drift == {}
    for name, found in drift(two).items():
        stored = two.drift[name]
        assert (found.unseen, found.new, found.from_train) == (stored.unseen, stored.new, stored.from_train)
        assert Drift.of(tree[name]) == stored


def test_two_data_sets_are_compared_by_values(
    days: tuple[EncodedDataset, EncodedDataset], kit: SimpleNamespace, tmp_path: Path
) -> None:
    one, _ = days
    schema = kit.config("frame", categorical=["user"], multi_valued={}, numeric=[])
    cells = {"train": ["b"] * 5 + ["a"] * 2 + ["z"] * 3, "val": ["a", "b"], "test": ["z", ""]}
    other = prepare(schema, tmp_path / "other", frame=rows(cells, ["x"]))
    assert list(drift(other, one)) == ["user"]
    found = drift(other, one)["user"]
    reference = Counter({1: 6, 2: 3, 0: 1})
    for split, counts in (("train", {2: 5, 1: 2, 0: 3}), ("val", {1: 1, 2: 1}), ("test", {0: 2})):
        distance = found.from_train[split]
        assert distance is not None
        assert distance.divergence == pytest.approx(plain_divergence(reference, counts))
        assert distance.stability == pytest.approx(plain_stability(reference, counts))
    assert found.unseen["test"] == 0.5
    hashed = drift(one, one)["ip"].from_train
    assert hashed["train"] == Distance(0.0, 0.0)


def test_shares_without_an_id_are_those_of_drift(tmp_path: Path) -> None:
    """Bags value by value."""
    draw = np.random.default_rng(0)
    frame = pd.DataFrame(
        {
            "label": draw.integers(0, 2, 600),
            "user": draw.integers(0, 300, 600).astype(str),
            "tags": ["|".join(str(one) for one in draw.integers(0, 200, draw.integers(0, 4))) for _ in range(600)],
        }
    )
    schema = {"label": "label", "categorical": ["user"], "multi_valued": {"tags": "|"}}
    dataset = prepare(frame, schema, tmp_path / "out")
    for split in ("train", "val", "test"):
        assert dataset.unseen[split] == {name: one.unseen[split] for name, one in drift(dataset).items()}
    assert dataset.unseen["train"] == {"user": 0, "tags": 0}
    assert all(0 < share < 1 for share in dataset.unseen["test"].values())
