"""Whole numbers: ids or amounts, and how amounts are scaled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from recsys_embed.config import parse_config
from recsys_embed.inspection import config_tree, inspect_rows
from recsys_embed.inspection.skew import skewness

ROWS = 20_000


def drawn(values: np.ndarray, weights: np.ndarray, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).choice(values, ROWS, p=weights / weights.sum())


def bell(seed: int) -> np.ndarray:
    years = np.arange(17, 91)
    return drawn(years, np.exp(-(((years - 38) / 18) ** 2)), seed)


def counts(seed: int) -> np.ndarray:
    """Most are 0, a few are thousands: Criteo's are such."""
    return np.minimum(np.random.default_rng(seed).pareto(1.0, ROWS) * 3, 9_000).astype(int)


def shuffled_ids(seed: int) -> np.ndarray:
    ids = np.random.default_rng(seed).permutation(700) + 1
    return drawn(ids, np.arange(1, 701) ** -0.9, seed)


def scattered_ids(seed: int) -> np.ndarray:
    ids = np.random.default_rng(seed).choice(300_000, 400, replace=False)
    return drawn(ids, np.arange(1, 401) ** -1.1, seed)


def ranked_ids(seed: int) -> np.ndarray:
    """Numbered by falling frequency, as encoders number them."""
    return drawn(np.arange(700), np.arange(1, 701) ** -0.9, seed)


def even_ids(seed: int) -> np.ndarray:
    return np.repeat(np.arange(ROWS // 40), 40)


def hours(seed: int) -> np.ndarray:
    clock = np.arange(24)
    return drawn(clock, 2 + np.sin(clock / 24 * 2 * np.pi), seed)


def kind(folder: Path, name: str, values: Any) -> str:
    rng = np.random.default_rng(9)
    frame = pd.DataFrame({"clicked": rng.integers(0, 2, ROWS), "user": rng.integers(0, 99, ROWS), name: values})
    frame.to_csv(folder / "rows.csv", index=False)
    return inspect_rows(folder / "rows.csv").kinds[name]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (bell, "numeric"),
        (counts, "numeric"),
        (shuffled_ids, "categorical"),
        (scattered_ids, "categorical"),
        (ranked_ids, "categorical"),
        (even_ids, "categorical"),
    ],
)
def test_by_how_frequent_neighbours_are(make: Any, expected: str, seed: int, tmp_path: Path) -> None:
    """Under a name that says nothing."""
    assert kind(tmp_path, "c7", make(seed)) == expected


@pytest.mark.parametrize(
    ("name", "make", "expected"),
    [
        ("age_group", bell, "categorical"),
        ("item_id", counts, "categorical"),
        ("price", shuffled_ids, "numeric"),
        ("hour", hours, "categorical"),
        ("hours_per_week", bell, "numeric"),
        ("month", bell, "categorical"),
    ],
)
def test_a_name_that_tells_goes_first(name: str, make: Any, expected: str, tmp_path: Path) -> None:
    assert kind(tmp_path, name, make(0)) == expected


def test_amounts_of_which_a_few_are_many_times_the_others_are_scaled_by_their_logarithm(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    columns = {
        "price": rng.lognormal(3, 1.2, ROWS),
        "balance": rng.normal(0, 50, ROWS),
        "delay": rng.exponential(5, ROWS) ** 2,
        "age": bell(0),
        "score": -rng.lognormal(3, 1.2, ROWS),  # skewed to the left: few are far below the others
        "size": 10.0 ** rng.uniform(-3, 200, ROWS),  # whose squares are infinite
    }
    frame = pd.DataFrame({"clicked": rng.integers(0, 2, ROWS), "user": rng.integers(0, 99, ROWS), **columns})
    frame.to_csv(tmp_path / "rows.csv", index=False)
    data = parse_config(config_tree(inspect_rows(tmp_path / "rows.csv"))).data
    assert data.scalings == {
        "price": "log",
        "balance": "standard",
        "delay": "log",
        "age": "standard",
        "score": "standard",
        "size": "log",
    }
    frame[["clicked", "user", "age", "balance"]].to_csv(tmp_path / "rows.csv", index=False)
    assert config_tree(inspect_rows(tmp_path / "rows.csv"))["data"]["numeric"] == ["age", "balance"]


def test_skewness_is_that_of_pandas() -> None:
    values, weights = np.array([0.0, 1, 2, 7, 30]), np.array([50, 20, 9, 3, 1])
    rows = int(weights.sum())
    unbiased = pd.Series(np.repeat(values, weights)).skew()  # by this factor
    assert skewness(values, weights) * np.sqrt(rows * (rows - 1)) / (rows - 2) == pytest.approx(unbiased)
    assert skewness(np.full(4, 3.0), np.ones(4)) == 0.0
