"""What a column is taken for, and which is the label."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from recsys_embed.inspection import Inspection, inspect_rows
from recsys_embed.inspection.labels import LabelValues, guess_column, rule_of
from recsys_embed.inspection.separators import separator_in

ROWS = 400
RNG = np.random.default_rng(0)
DAYS = [date(2014, 10, 21) + timedelta(int(n)) for n in RNG.integers(0, 40, ROWS)]


def read(folder: Path, **columns: Any) -> Inspection:
    frame = pd.DataFrame(columns)
    frame.to_csv(folder / "rows.csv", index=False)
    return inspect_rows(folder / "rows.csv")


@pytest.mark.parametrize(
    ("name", "values", "kind"),
    [
        ("price", [f"{n / 7:.3f}" for n in range(ROWS)], "numeric"),
        ("n", RNG.normal(size=ROWS), "numeric"),
        ("n", RNG.integers(-9, 90, ROWS), "numeric"),
        ("age", RNG.integers(18, 90, ROWS), "numeric"),
        ("hoursPerWeek", RNG.integers(1, 90, ROWS), "numeric"),
        ("age", RNG.choice([1, 18, 25, 35, 45, 50, 56], ROWS), "categorical"),
        ("price_id", RNG.integers(1, 90, ROWS), "categorical"),
        ("item", RNG.integers(1, 90, ROWS), "categorical"),
        ("item", RNG.choice([-1, *range(100_000, 100_150)], ROWS), "categorical"),  # -1 for unknown
        ("n", ["0.5", "1.0"] * (ROWS // 2), "categorical"),
        ("n", [*[f"{n % 200 / 7:.3f}" for n in range(ROWS - 1)], "n/a"], "categorical"),
        ("cost", [f"{n:04d}" for n in RNG.integers(0, 99, ROWS)], "categorical"),
        ("big", [str(10**17 + n) for n in RNG.integers(0, 90, ROWS)], "categorical"),
        ("flag", ["yes", None] * (ROWS // 2), "categorical"),
        ("row", range(ROWS), "id_per_row"),
        ("session", [f"{n * 2_654_435_761 % 2**32:08x}" for n in range(ROWS)], "id_per_row"),
        ("same", ["x"] * ROWS, "constant"),
        ("empty", [None] * ROWS, "constant"),
        ("part", RNG.choice(["train", "val", "test"], ROWS), "split"),
        ("when", DAYS, "timestamp"),
        ("when", [f"{day}T05:{n % 60:02d}:00Z" for n, day in enumerate(DAYS)], "timestamp"),
        ("when", [f"{day} 05:{n % 60:02d}:00.25+02:00" for n, day in enumerate(DAYS)], "timestamp"),
        ("timestamp", RNG.integers(956_703_932, 1_046_454_590, ROWS), "timestamp"),
        ("created_at", RNG.integers(956_703_932_000, 1_046_454_590_000, ROWS), "timestamp"),
        ("item", RNG.choice(RNG.integers(956_703_932, 2_046_454_590, 60), ROWS), "categorical"),
        ("hour", [f"{day:%y%m%d}{n % 24:02d}" for n, day in enumerate(DAYS)], "timestamp"),
        ("day", [f"{day:%Y%m%d}" for day in DAYS], "timestamp"),
        ("hour", RNG.integers(0, 24, ROWS), "categorical"),
        ("tags", ["|".join(f"t{n}" for n in RNG.integers(0, 9, k % 4)) for k in range(ROWS)], "multi_valued"),
    ],
)
def test_kinds(tmp_path: Path, name: str, values: Any, kind: str) -> None:
    found = read(tmp_path, label=RNG.integers(0, 2, ROWS), **{name: values})
    assert found.kinds[name] == kind
    assert found.kinds["label"] == "label"


def test_few_rows_that_are_all_different_are_no_ids(tmp_path: Path) -> None:
    assert read(tmp_path, label=[0, 1, 1], user=["a", "b", "c"]).kinds["user"] == "categorical"


def test_typed_columns_are_what_their_text_would_be(tmp_path: Path) -> None:
    moments = [datetime(2020, 1, 1, tzinfo=UTC) + timedelta(hours=int(n)) for n in RNG.integers(0, 500, ROWS)]
    frame = pd.DataFrame(
        {
            "clicked": RNG.random(ROWS) < 0.3,
            "day": DAYS,
            "naive": [one.replace(tzinfo=None) for one in moments],
            "zoned": moments,
            "user": pd.Categorical(RNG.choice(["a", "b"], ROWS)),
            "item": RNG.integers(0, 30, ROWS),
            "score": RNG.normal(size=ROWS).astype(np.float32),
            "list": [[1, 2]] * ROWS,
        }
    )
    frame.to_parquet(tmp_path / "rows.parquet")
    found = inspect_rows(tmp_path / "rows.parquet")
    assert {name: kind.value for name, kind in found.kinds.items()} == {
        "clicked": "label",
        "day": "timestamp",
        "naive": "timestamp",
        "zoned": "timestamp",
        "user": "categorical",
        "item": "categorical",
        "score": "numeric",
        "list": "unreadable",
    }
    assert found.label is not None
    assert found.label.tree() == "clicked"
    assert found.label.positives == int(frame["clicked"].sum())


BAGS = [[int(n) for n in RNG.integers(0, 25, 1 + k % 5)] for k in range(ROWS)]


@pytest.mark.parametrize(
    ("cells", "separator"),
    [
        (["|".join(map(str, bag)) for bag in BAGS], "|"),
        (["t1|t2", "t2|t1", "t1|t3", "t3|t3"], "|"),
        ([";".join(f"tag {one}" for one in bag) for bag in BAGS], ";"),
        ([",".join(f"t{one}" for one in bag) for bag in BAGS], ","),
        ([", ".join(f"Sci Fi {one}" for one in bag) for bag in BAGS], ", "),
        ([" ".join(f"{one + 100_000}" for one in bag) for bag in BAGS], " "),
        ([None, *("|".join(map(str, bag)) for bag in BAGS)], "|"),
        ([], None),
        ([None], None),
        (["plain", "words"], None),
        ([f"Smith, {one}" for one in "ABCDEFGH"] * 20, None),
        ([f"{city}, {state}" for city in ("Reno", "Bern", "Bonn") for state in ("NV", "BE", "NW")], None),
        ([f"{n:,}" for n in RNG.integers(0, 10**8, ROWS)], None),
        ([f"{n / 100:.2f}".replace(".", ",") for n in range(ROWS)], None),
        ([f"the {a} of the {b} and {c}" for a in "abc" for b in "def" for c in "gh"] + ["the a", "x"], None),
        (["Mozilla/5.0 (X11; Linux x86_64)", "Mozilla/5.0 (X11; Linux i686)"], None),
        (["[1, 2, 3]", "[2, 3]", "[1]", "[3, 1, 2]"], None),
        (['{"a": 1, "b": 2}'] * 3, None),
        (["a|b", *(f"x{n}" for n in range(100))], None),
        ([f"id{n}|id{n + 1}" for n in range(0, 200, 2)], None),  # parts that never come back
    ],
)
def test_separators(cells: list[str | None], separator: str | None) -> None:
    assert separator_in(pa.array(cells, pa.string())) == separator


@pytest.mark.parametrize(
    ("columns", "label"),
    [
        ({"user": ["a", "b"], "click": ["0", "1"]}, "click"),
        ({"click_id": ["7", "8", "9"], "isClick": ["0", "1", "0"]}, "isClick"),
        ({"ACTION": ["1", "1"], "r": ["5", "6"]}, "ACTION"),  # one value so far, but that is 1
        ({"label": ["a", "b", "c"], "target": ["0", "1", "1"]}, "target"),
        ({"income": ["<=50K", ">50K"], "y": ["a", "b"]}, "income"),
        ({"rating": ["1", "2", "3"], "workclass": ["a", "b", "a"]}, "rating"),
        ({"avg_rating": ["1.5", "2.0", "3.5"]}, "avg_rating"),
        ({"rating": [str(n) for n in range(50)]}, None),
        ({"rating": ["G", "PG", "R"]}, None),
        ({"passenger_class": ["1", "2", "3"]}, None),
        ({"workclass": ["a", "b"], "playlist": ["0", "1"]}, None),
        ({"click": ["yes", "yes"]}, None),
        ({"clicked": [None, None], "did_click": ["t", "f"]}, "did_click"),
    ],
)
def test_the_label_is_called_like_one_and_has_two_values(columns: dict[str, list[str]], label: str | None) -> None:
    assert guess_column({name: pa.array(cells, pa.string()) for name, cells in columns.items()}) == label


@pytest.mark.parametrize(
    ("column", "values", "tree", "sides"),
    [
        ("click", {"1": 3, "0": 7}, "click", (3, 7, 0)),
        ("click", {"1": 3, "0": 7, None: 2}, {"column": "click", "positive": [1], "negative": [0]}, (3, 7, 0)),
        ("click", {"true": 3, "false": 7}, "click", (3, 7, 0)),
        ("click", {"1": 3, "1.0": 1, "0": 7}, "click", (4, 7, 0)),
        ("y", {"yes": 30, "No": 7}, {"column": "y", "positive": ["yes"], "negative": ["No"]}, (30, 7, 0)),
        ("y", {"1": 3, "-1": 7}, {"column": "y", "positive": [1], "negative": [-1]}, (3, 7, 0)),
        (
            "income",
            {"<=50K": 9, ">50K": 2},
            {"column": "income", "positive": [">50K"], "negative": ["<=50K"]},
            (2, 9, 0),
        ),
        ("y", {"gone": 9, "no": 2}, {"column": "y", "positive": ["gone"], "negative": ["no"]}, (9, 2, 0)),
        (
            "rating",
            {"1": 1, "5": 5, "3": 3, "2": 2, "4": 4},
            {"column": "rating", "positive": [4, 5], "negative": [1, 2]},
            (9, 3, 3),
        ),
        (
            "stars",
            {"0.5": 1, "1.0": 1, "3.0": 1, "5.0": 1, "3.5": 1, "2.5": 1},
            {"column": "stars", "positive": [3.5, 5], "negative": [0.5, 1, 2.5]},
            (2, 3, 1),
        ),
    ],
)
def test_which_values_are_positive(column: str, values: dict[str | None, int], tree: Any, sides: Any) -> None:
    found = LabelValues()
    found.read(pa.array([value for value, count in values.items() for _ in range(count)], pa.string()))
    label = rule_of(column, found, guessed=True)
    assert label.problem is None
    assert label.tree() == tree
    assert (label.positives, label.negatives, label.others) == sides
    assert label.missing == values.get(None, 0)


@pytest.mark.parametrize(
    ("column", "cells", "problem"),
    [
        ("click", ["0", "0"], "same value"),
        ("click", ["1", "1"], "same value"),
        ("y", ["x", "x"], "same value"),
        ("click", [None], "no row"),
        ("clicks", ["0", "1", "2", "1"], "3 values"),
        ("y", ["a", "b", "c"], "3 values"),
        ("y", [str(n) for n in range(40)], "more than 12"),
    ],
)
def test_labels_that_are_not_to_be_guessed_at(column: str, cells: list[str | None], problem: str) -> None:
    found = LabelValues()
    found.read(pa.array(cells, pa.string()))
    assert problem in str(rule_of(column, found, guessed=False).problem)


def test_values_of_the_label_that_come_late_are_seen(tmp_path: Path) -> None:
    """Sorted by the label, the first chunk has one class; and of a value beyond the limit only the number is kept."""
    rows = 150_000
    frame = pd.DataFrame({"target": np.repeat(["no", "yes"], rows // 2), "user": np.arange(rows) % 97})
    frame.to_csv(tmp_path / "rows.csv", index=False)
    label = inspect_rows(tmp_path / "rows.csv", label="target").label
    assert label is not None
    assert (label.positive, label.negative, label.positives, label.negatives) == (("yes",), ("no",), 75_000, 75_000)
    frame["target"] = np.arange(rows) % 50
    frame.to_csv(tmp_path / "rows.csv", index=False)
    label = inspect_rows(tmp_path / "rows.csv", label="target").label
    assert label is not None
    assert (label.others, label.missing) == (rows, 0)
