"""What is counted in one pass, against what pandas counts with all rows in memory."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from recsys_embed.inspection.columns import Column, Rows
from recsys_embed.inspection.frequent import CAPACITY, Frequent
from recsys_embed.inspection.hashes import hash_cells, hash_rows
from recsys_embed.inspection.leaks import BINS, PRIOR, leak_auc
from recsys_embed.inspection.sample import FOLDS, LIMIT, Sample
from recsys_embed.inspection.twins import twins
from recsys_embed.training.metrics import auc

MEANING = np.array([-1, 0, 1])


def column(name: str, cells: pd.Series, labels: np.ndarray | None = None, chunk: int = 1_000) -> Column:
    """A column that has seen all cells, in chunks; ``labels [rows]`` are 0 or 1."""
    made = Column(name)
    codes = np.zeros(len(cells), np.int64) if labels is None else labels.astype(np.int64) + 1
    for start in range(0, len(cells), chunk):
        part = slice(start, start + chunk)
        text = pa.array(cells.iloc[part].astype(object).where(cells.iloc[part].notna(), None), pa.string())
        made.add(text, Rows(hash_rows(start, len(text)), codes[part], 1 if labels is None else 3))
    return made


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def test_up_to_the_limit_all_is_exact(rng: np.random.Generator) -> None:
    values = pd.Series([f"v{one}" for one in rng.zipf(1.3, 20_000) % 5_000])
    values[rng.random(20_000) < 0.1] = None
    labels = rng.integers(0, 2, 20_000)
    found = column("c", values, labels)
    counts = values.value_counts()
    assert (found.present, found.missing, found.distinct) == (values.notna().sum(), values.isna().sum(), len(counts))
    assert not found.sample.cut
    expected = sorted(counts.items(), key=lambda one: (-one[1], one[0]))[:5]
    assert found.top(5) == expected
    of_value = dict(zip(found.sample.hashes.tolist(), found.sample.counts.sum(1).tolist(), strict=True))
    positives = values[labels == 1].value_counts()
    for value, count in counts.items():
        hashed = int(hash_cells(pa.array([value]), "c")[0])
        assert of_value[hashed] == [0, count - positives.get(value, 0), positives.get(value, 0)]
    assert found.missing_counts.sum(0).tolist() == [0, *np.bincount(labels[values.isna()]).tolist()]


@pytest.mark.parametrize("chunk", [777, 20_000])
def test_the_size_of_the_chunks_makes_no_difference(rng: np.random.Generator, chunk: int) -> None:
    values, labels = pd.Series((rng.zipf(1.3, 20_000) % 3_000).astype(str)), rng.integers(0, 2, 20_000)
    one, other = column("c", values, labels), column("c", values, labels, chunk)
    assert (one.sample.hashes == other.sample.hashes).all()
    assert (one.sample.counts == other.sample.counts).all()
    assert (one.sample.rows == other.sample.rows).all()
    assert (one.sample.numbers == other.sample.numbers).all()
    assert one.top(5) == other.top(5)


def test_beyond_the_limit_an_estimate_is_as_good_as_is_said(rng: np.random.Generator) -> None:
    """Standard error 1/√limit: of 200 estimates the mean is right, the spread is, and none is out by five of them."""
    limit, distinct = 256, 5_000
    errors = []
    for _ in range(200):
        sample = Sample(limit)
        for part in np.split(rng.integers(0, 2**64, distinct, np.uint64), 5):
            ones = np.ones((len(part), FOLDS, 1), np.int64)
            sample.add(part, ones, np.zeros(len(part), np.uint64), np.zeros(len(part)))
        assert sample.cut
        assert len(sample.hashes) == limit
        errors.append(sample.distinct / distinct - 1)
    assert abs(np.mean(errors)) < 4 / np.sqrt(200 * limit)
    assert 0.8 / np.sqrt(limit) < np.std(errors) < 1.2 / np.sqrt(limit)
    assert np.abs(errors).max() < 5 / np.sqrt(limit)


def test_what_a_cut_sample_counts_is_exact(rng: np.random.Generator) -> None:
    """Every value that is kept has all of its rows, from the first on."""
    rows = rng.zipf(1.2, 30_000) % 4_000
    sample = Sample(300)
    for part in np.split(rows, 30):
        values, counts = np.unique(part, return_counts=True)
        by_fold = np.zeros((len(values), FOLDS, 1), np.int64)
        by_fold[:, 1, 0] = counts
        hashes = hash_cells(pa.array(values.astype(str)), "c")
        sample.add(hashes, by_fold, counts.astype(np.uint64), values.astype(float))
    assert sample.cut
    expected = np.bincount(rows)
    assert (sample.totals == expected[sample.numbers.astype(int)]).all()
    assert (sample.rows == sample.totals.astype(np.uint64)).all()
    all_hashes = np.sort(hash_cells(pa.array(np.unique(rows).astype(str)), "c"))
    assert (sample.hashes == all_hashes[:300]).all()


def test_hashes_of_real_text_are_as_even_as_the_estimate_needs() -> None:
    ids = column("id", pd.Series([f"user-{one}" for one in range(300_000)]), chunk=65_536)
    assert ids.sample.cut
    assert len(ids.sample.hashes) == LIMIT
    assert abs(ids.distinct / 300_000 - 1) < 5 / np.sqrt(LIMIT)


def test_a_frequent_value_is_never_missed(rng: np.random.Generator) -> None:
    """Misra and Gries: every value with more than 1/capacity of the rows is there, its count too small by at most
    what was lost, among so many rare values that most are thrown away."""
    common = {f"c{one}": 400 + 20 * one for one in range(20)}
    rows = np.array([*(f"r{one}" for one in range(100_000)), *np.repeat(list(common), list(common.values()))])
    rng.shuffle(rows)
    frequent = Frequent()
    for part in np.array_split(rows, 12):
        values, counts = np.unique(part, return_counts=True)
        frequent.add(hash_cells(pa.array(values), "c"), counts, pa.array(values))
    assert frequent.lost <= len(rows) / CAPACITY
    found = {text: count for _, text, count in frequent.values()}
    assert len(found) <= CAPACITY
    for value, count in common.items():
        assert count - frequent.lost <= found[value] <= count


def test_the_auc_is_that_of_scoring_row_by_row(rng: np.random.Generator) -> None:
    """The definition, with every row in a data frame: the share of positives in other folds, drawn to the base rate."""
    value, rows = rng.zipf(1.4, 5_000) % 200, np.arange(5_000)
    labels = (rng.random(5_000) < 0.2 + 0.6 * (value % 3 == 0)).astype(int)
    cells = pd.Series([f"v{one}" if one else None for one in value])
    fold = hash_rows(0, 5_000) >> np.uint64(62)
    frame = pd.DataFrame({"value": value, "label": labels, "fold": fold, "row": rows})
    scores = np.empty(5_000)
    for number in range(FOLDS):
        others = frame[frame.fold != number].groupby("value")["label"].agg(["sum", "count"])
        here = frame[frame.fold == number]
        known = others.reindex(here["value"]).fillna(0)
        scores[here.row] = (known["sum"] + PRIOR * labels.mean()) / (known["count"] + PRIOR)
    assert leak_auc(column("c", cells, labels), MEANING) == pytest.approx(auc(labels, scores), abs=1e-12)


def test_noise_predicts_nothing_however_many_values_it_has(rng: np.random.Generator) -> None:
    """In sample, the rates of these values would separate the classes; out of fold they do not."""
    rows = 40_000
    labels = rng.integers(0, 2, rows)
    for distinct in (10, 1_000, 20_000, 2_000_000):
        cells = pd.Series(rng.integers(0, distinct, rows).astype(str))
        # A standard error of an AUC of noise is 0.003 here.
        assert abs(leak_auc(column("c", cells, labels), MEANING) - 0.5) < 0.02
    assert abs(leak_auc(column("c", pd.Series(rng.normal(size=rows).astype(str)), labels), MEANING) - 0.5) < 0.02


@pytest.mark.parametrize("shape", ["monotone", "band", "session", "missing"])
def test_what_knows_the_label_is_found(rng: np.random.Generator, shape: str) -> None:
    """A number that rises with the label; one that is in the middle for it; sessions of one class, of which the sample
    holds a part; a cell that is there for positives alone."""
    rows = 300_000 if shape == "session" else 20_000
    labels = rng.integers(0, 2, rows)
    if shape == "monotone":
        cells = pd.Series((labels + rng.random(rows)).astype(str))
    elif shape == "band":
        cells = pd.Series(np.where(labels == 1, rng.uniform(-1, 1, rows), rng.choice([-3, 2], rows) + rng.random(rows)))
        cells = cells.astype(str)
    elif shape == "session":
        session = rng.integers(0, 100_000, rows)
        labels = session % 2
        cells = pd.Series([f"s{one}" for one in session])
    else:
        cells = pd.Series(np.where(labels == 1, rng.integers(0, 10_000, rows).astype(str), None))
    found = column("c", cells, labels, 65_536)
    assert found.sample.cut == (shape == "session")
    assert leak_auc(found, MEANING) > (0.9 if shape == "session" else 0.99)
    assert found.distinct > BINS


@pytest.mark.parametrize("distinct", [500, 100_000])
def test_columns_that_are_one_to_one_are_told_from_those_that_nearly_are(
    rng: np.random.Generator, distinct: int
) -> None:
    """Below the limit and beyond it, where each column's sample holds other values."""
    rows = int(2.5 * distinct)
    value = rng.integers(0, distinct, rows)
    other = value.copy()
    moved = rng.random(rows) < 0.02
    other[moved] = rng.integers(0, distinct, int(moved.sum()))
    names = {"a": value, "b": 7 * value + 3, "c": value, "near": other, "coarse": value // 2}
    columns = [column(name, pd.Series(cells).astype(str), chunk=65_536) for name, cells in names.items()]
    columns.append(column("noise", pd.Series(rng.integers(0, distinct, rows)).astype(str), chunk=65_536))
    assert columns[0].sample.cut == (distinct > LIMIT)
    assert [[one.name for one in group] for group in twins(columns)] == [["a", "b", "c"]]


def test_a_missing_cell_is_one_more_value(rng: np.random.Generator) -> None:
    value = rng.integers(0, 50, 2_000)
    gaps = rng.random(2_000) < 0.1
    one = column("one", pd.Series(value.astype(str)).where(~gaps))
    same = column("same", pd.Series((value + 100).astype(str)).where(~gaps))
    elsewhere = column("elsewhere", pd.Series(value.astype(str)).where(rng.random(2_000) >= 0.1))
    assert [[column.name for column in group] for group in twins([one, same, elsewhere])] == [["one", "same"]]


def test_measurements_that_are_all_different_are_not_one_to_one(rng: np.random.Generator) -> None:
    both = [column(name, pd.Series(rng.normal(size=500)).astype(str)) for name in ("one", "other")]
    assert twins(both) == []
