"""Split, label, vocabulary, scaler: each against a plain computation."""

from __future__ import annotations

import itertools
import math
import tempfile
from collections import Counter
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import recsys_embed.data.vocabulary as vocabulary_module
from recsys_embed.config import DataConfig, SplitConfig
from recsys_embed.data.bags import offsets_of, spans, split_cells
from recsys_embed.data.blocks import _narrowed
from recsys_embed.data.chunks import Chunk
from recsys_embed.data.labels import LabelRule
from recsys_embed.data.numeric import Moments, signed_log
from recsys_embed.data.split import split_of, uniform
from recsys_embed.data.tally import Tally, merge
from recsys_embed.data.text_hash import hash_one, hash_text
from recsys_embed.data.vocabulary import Vocabulary
from recsys_embed.errors import ConfigError, DataError

WORDS = st.lists(st.one_of(st.none(), st.sampled_from(["a", "b", "c", "Ä", "é", "aa", "z"])), max_size=60)


def cut(cells: list[str | None], size: int) -> list[pa.Array]:
    return [pa.array(cells[i : i + size], pa.string()) for i in range(0, len(cells), size)]


def vocabulary_of(parts: list[pa.Array], min_count: int = 1) -> Vocabulary:
    """Of the cells of all parts, each counted by itself."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "runs.arrow"
        tally = Tally(path)
        missing = sum(int((tally.add([part]) < 0).sum()) for part in parts)
        tally.close()
        return Vocabulary.of(merge([(path, run) for run in range(tally.runs)]), missing, min_count=min_count)


@given(WORDS, st.integers(1, 20), st.integers(1, 4))
def test_ids_are_ranked_by_frequency_then_bytes(cells: list[str | None], size: int, min_count: int) -> None:
    vocabulary = vocabulary_of(cut(cells, size), min_count)
    counted = Counter(cell for cell in cells if cell is not None)
    ranked = sorted(counted, key=lambda value: (-counted[value], value.encode()))
    kept = [value for value in ranked if counted[value] >= min_count]
    assert vocabulary.values.to_pylist() == kept
    assert vocabulary.counts.tolist() == [len(cells) - sum(counted[v] for v in kept), *(counted[v] for v in kept)]
    ids = {value: i + 1 for i, value in enumerate(kept)}
    sought = [*cells, "unseen"]
    expected = [0 if cell is None else ids.get(cell, 0) for cell in sought]
    assert vocabulary.encode(pa.array(sought, pa.string())).tolist() == expected
    assert [vocabulary.encode(pa.array([cell], pa.string())).item() for cell in sought] == expected


def test_values_of_equal_hash_stay_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """By hashes of two bits: no value is taken for another, and a seed by which they differ is found."""
    values = pa.array(["a", "b", "c"])
    monkeypatch.setattr(vocabulary_module, "hash_text", lambda cells, seed: hash_text(cells, seed) >> np.uint64(62))
    monkeypatch.setattr(vocabulary_module, "hash_one", lambda value, seed: hash_one(value, seed) >> 62)
    vocabulary = Vocabulary(values, np.zeros(4, np.int64))
    cells = ["c", None, "a", *(f"other {i}" for i in range(50)), "b"]
    assert vocabulary.encode(pa.array(cells)).tolist() == [3, 0, 1, *[0] * 50, 2]
    assert [vocabulary.encode(pa.array([cell], pa.string())).item() for cell in cells] == [3, 0, 1, *[0] * 50, 2]


def test_the_most_frequent_values_are_kept() -> None:
    table = pa.table({"value": pa.array(["a", "b", "c", "d"], pa.large_string()), "count": [5, 7, 5, 1]})
    kept = Vocabulary.of([table.slice(0, 1), table.slice(1)], 2, max_size=2)
    assert (kept.values.to_pylist(), kept.counts.tolist()) == (["b", "a"], [8, 7, 5])
    one_by_one = Vocabulary.of([table.slice(i, 1) for i in range(4)], 2, max_size=1)
    assert (one_by_one.values.to_pylist(), one_by_one.counts.tolist()) == (["b"], [13, 7])


def test_vocabulary_survives_the_disk(tmp_path: Path) -> None:
    saved = vocabulary_of([pa.array(["b", None, "a", "b", "rare"])])
    saved.save(tmp_path / "v.parquet")
    table = pd.read_parquet(tmp_path / "v.parquet")
    assert table["count"].tolist() == [1, 2, 1, 1]
    assert table["value"].tolist()[1:] == ["b", "a", "rare"]
    loaded = Vocabulary.load(tmp_path / "v.parquet")
    assert loaded.values.equals(saved.values)
    assert loaded.counts.tolist() == saved.counts.tolist()


@given(st.integers(0, 2**40), st.integers(0, 2**40), st.integers(0, 50), st.integers(0, 50))
def test_a_rows_chance_is_a_function_of_seed_and_row(seed: int, first: int, one: int, other: int) -> None:
    whole = uniform(seed, first, one + other)
    np.testing.assert_array_equal(whole, np.concatenate([uniform(seed, first, one), uniform(seed, first + one, other)]))


def test_random_split_has_its_fractions_and_seeds_differ() -> None:
    chance = uniform(0, 0, 200_000)
    assert 0 <= chance.min() < chance.max() < 1
    np.testing.assert_allclose(np.histogram(chance, 10, (0, 1))[0], 20_000, atol=600)
    assert abs(np.corrcoef(chance, uniform(1, 0, 200_000))[0, 1]) < 0.01
    chunk = Chunk(pa.table({"x": pa.nulls(200_000)}))
    splits = split_of(chunk, SplitConfig(random=(0.7, 0.2, 0.1)))
    np.testing.assert_allclose(np.bincount(splits) / 200_000, [0.7, 0.2, 0.1], atol=0.005)


def test_a_split_column_says_three_things_only() -> None:
    chunk = Chunk(pa.table({"part": ["train", "test", "valid"]}), "f.csv", 11)
    with pytest.raises(DataError, match="train, val or test") as caught:
        split_of(chunk, SplitConfig(column="part"))
    assert (caught.value.file, caught.value.column, caught.value.row, caught.value.value) == (
        "f.csv",
        "part",
        13,
        "valid",
    )


def label(config: object) -> LabelRule:
    return LabelRule.of(DataConfig.model_validate({"path": "x", "label": config}))


@pytest.mark.parametrize("cells", [[1, 0], [1.0, 0.0], [True, False], ["1", "0"], ["1.0", "0.0"], ["true", "FALSE"]])
def test_the_plain_label_is_one_or_zero_in_any_dress(cells: list[object]) -> None:
    assert label("y").check(Chunk(pa.table({"y": cells})), Counter()).tolist() == [1, 0]


@pytest.mark.parametrize(("cell", "shown"), [("2", "2"), (None, ""), ("", ""), ("nan", "nan"), ("yes", "yes")])
def test_any_other_plain_label_is_an_error(cell: str | None, shown: str) -> None:
    with pytest.raises(DataError) as caught:
        label("y").check(Chunk(pa.table({"y": ["1", "0", cell]}), "f.csv", 5), Counter())
    assert (caught.value.file, caught.value.column, caught.value.row, caught.value.value) == ("f.csv", "y", 7, shown)


def test_declared_labels_drop_and_count_the_rest() -> None:
    rule, dropped = label({"column": "y", "positive": [4, 5], "negative": [1, 2]}), Counter[str]()
    labels = rule.check(Chunk(pa.table({"y": ["5", "4.0", "3", "1", None, "3"]})), dropped)
    np.testing.assert_array_equal(labels, np.array([1, 1, np.nan, 0, np.nan, np.nan], np.float32))
    assert dropped == {"3": 2, "": 1}
    with pytest.raises(ConfigError, match="positive or negative"):
        label({"column": "y", "positive": [1, "2"], "negative": ["2.0"]})


@given(st.lists(st.floats(-1e6, 1e6) | st.just(float("nan")), min_size=1, max_size=300), st.integers(1, 50))
def test_moments_are_those_of_all_cells(cells: list[float], size: int) -> None:
    moments = Moments("x", "log")
    for i in range(0, len(cells), size):
        moments.add(np.array(cells[i : i + size]))
    scaler = moments.scaler()
    there = signed_log(np.array([x for x in cells if x == x]))
    assert scaler.flag == (len(there) < len(cells))
    if len(there) and there.std() > 1e-9:
        np.testing.assert_allclose([scaler.mean, scaler.deviation], [there.mean(), there.std()], rtol=1e-9, atol=1e-9)
    assert np.isfinite(scaler.transform(np.array(cells))).all()
    whole = Moments("x", "log")
    whole.add(np.array(cells))
    assert whole.scaler() == scaler  # bit for bit, whatever the chunks


def test_constant_and_huge_columns() -> None:
    moments = Moments("x", "standard")
    moments.add(np.full(100_000, 1e9 + 0.1))
    assert moments.scaler().transform(np.array([1e9 + 0.1, np.nan])).tolist() == [0, 0]
    with pytest.raises(DataError, match="too large"):
        Moments("x", "standard").add(np.array([1e200, -1e200]))


@given(st.lists(st.floats(-1e150, 1e150), min_size=1, max_size=40), st.integers(0, 40))
def test_moments_are_exact(cells: list[float], cut: int) -> None:
    """Against fractions: the mean is the nearest float to the true one; so are merged ones, in any order."""
    one, other = Moments("x", "standard"), Moments("x", "standard")
    one.add(np.array(cells[cut:]))
    other.add(np.array(cells[:cut]))
    one.merge(other.tree())
    exact = [Fraction(x) for x in cells]
    mean = sum(exact) / len(exact)
    variance = sum((x - mean) ** 2 for x in exact) / len(exact)
    scaler = one.scaler()
    assert scaler.mean == float(mean)
    if variance > 1e-300:
        np.testing.assert_allclose(scaler.deviation, math.sqrt(variance), rtol=1e-12)


def test_signed_log_is_odd_and_log1p_for_counts() -> None:
    x = np.array([0.0, 1, 9, -9])
    np.testing.assert_allclose(signed_log(x), [0, np.log(2), np.log(10), -np.log(10)])


@given(
    st.lists(st.none() | st.lists(st.sampled_from(["a", "b", ""]), max_size=4), max_size=12),
    st.sampled_from(["|", "::"]),
)
def test_cells_are_cut_at_the_separator(bags: list[list[str] | None], separator: str) -> None:
    cells = pa.array([None if bag is None else separator.join(bag) for bag in bags], pa.string())
    values, offsets = split_cells(cells, separator)
    found = [values[a:b].to_pylist() for a, b in itertools.pairwise(offsets)]
    assert found == [[value for value in bag or [] if value] for bag in bags]


def test_spans() -> None:
    lengths = np.array([2, 0, 3])
    assert spans(np.array([10, 50, 20]), lengths).tolist() == [10, 11, 20, 21, 22]
    assert offsets_of(lengths).tolist() == [0, 2, 2, 5]


@given(
    st.one_of(
        st.lists(st.floats(width=32), max_size=20).map(np.array),
        st.lists(st.floats(), max_size=20).map(np.array),
        st.lists(st.integers(-1, 2**31 - 1), max_size=20).map(lambda codes: np.array(codes, np.int32)),
        st.integers(-1, 300).map(lambda code: np.full(3, code, np.int32)),
    )
)
def test_numbers_are_kept_to_the_bit(column: np.ndarray) -> None:
    column = column.astype(column.dtype if len(column) else np.float64)
    kept = _narrowed(column)
    assert kept.astype(column.dtype).tobytes() == column.tobytes()
    assert len(column) == 0 or kept.nbytes <= column.nbytes
