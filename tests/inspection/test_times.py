"""Which columns say when, and what is split by them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from recsys_embed.config import parse_config
from recsys_embed.data import prepare
from recsys_embed.inspection import Inspection, advice, config_tree, inspect_rows

ROWS = 3_000
START = datetime(2019, 11, 1, tzinfo=UTC)

Write = Callable[[list[datetime]], Any]
WAYS: dict[str, Write] = {
    "seconds": lambda times: [int(one.timestamp()) for one in times],
    "floats": lambda times: [one.timestamp() for one in times],
    "milliseconds": lambda times: [int(one.timestamp()) * 1_000 for one in times],
    "nanoseconds": lambda times: [int(one.timestamp()) * 10**9 for one in times],
    "ISO": lambda times: [one.isoformat() for one in times],
    "ISO, UTC": lambda times: [f"{one:%Y-%m-%dT%H:%M:%S}Z" for one in times],
    "with a blank": lambda times: [f"{one:%Y-%m-%d %H:%M}" for one in times],
    "days": lambda times: [f"{one:%Y-%m-%d}" for one in times],
    "YYYYMMDD": lambda times: [f"{one:%Y%m%d}" for one in times],
    "YYMMDDHH": lambda times: [f"{one:%y%m%d%H}" for one in times],
    "YYYYMMDDHH": lambda times: [f"{one:%Y%m%d%H}" for one in times],
    "typed": lambda times: [one.replace(tzinfo=None) for one in times],
    "typed, zoned": lambda times: times,
    "typed days": lambda times: [one.date() for one in times],
}


def moments(seed: int) -> list[datetime]:
    """Times in no order, of which some are frequent."""
    rng = np.random.default_rng(seed)
    hours = rng.choice(rng.choice(24 * 90, 400, replace=False), ROWS, p=rng.dirichlet(np.ones(400)))
    return [START + timedelta(hours=int(one)) for one in hours]


def rows(times: Any) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    user, clicked = rng.integers(0, 30, ROWS), rng.integers(0, 2, ROWS)
    return pd.DataFrame({"user": user, "event_time": times, "clicked": clicked})


def inspected(folder: Path, times: Any, *, typed: bool = False) -> Inspection:
    if typed:
        rows(times).to_parquet(folder / "rows.parquet")
        return inspect_rows(folder / "rows.parquet")
    rows(times).to_csv(folder / "rows.csv", index=False)
    return inspect_rows(folder / "rows.csv")


@pytest.mark.parametrize("way", WAYS)
def test_the_oldest_rows_train_and_the_newest_test(way: str, tmp_path: Path) -> None:
    """As many of each as the order of the times themselves says, however they are written."""
    times = moments(1)
    found = inspected(tmp_path, WAYS[way](times), typed=way.startswith("typed"))
    assert config_tree(found)["data"]["split"] == {"time": "event_time"}
    (warning,) = advice(found)
    assert (warning.code, warning.columns) == ("timestamp", ("event_time",))
    assert "split by it" in warning.message
    written = pd.Series([one.date() if "day" in way or way == "YYYYMMDD" else one for one in times])
    counts = written.value_counts().sort_index()
    before = counts.cumsum() - counts
    val, test = (before[before >= share * ROWS].index[0] for share in (0.8, 0.9))
    expected = {
        "train": int((written < val).sum()),
        "val": int(((written >= val) & (written < test)).sum()),
        "test": int((written >= test).sum()),
    }
    dataset = prepare(parse_config(config_tree(found)).data, tmp_path / "data")
    assert {split: dataset.rows(split) for split in ("train", "val", "test")} == expected


@pytest.mark.parametrize(
    ("way", "low"),
    [("seconds", "2019-11-01 05:00"), ("nanoseconds", "2019-11-01 05:00"), ("YYYYMMDDHH", "2019110105")],
)
def test_from_when_to_when(way: str, low: str, tmp_path: Path) -> None:
    times = [max(one, START + timedelta(hours=5)) for one in moments(2)]
    times[0] = START + timedelta(hours=5)
    (warning,) = advice(inspected(tmp_path, WAYS[way](times)))
    assert warning.numbers["min"] == low


def some_missing(times: list[datetime]) -> tuple[list[Any], str]:
    return [None, *(f"{one:%Y-%m-%d}" for one in times[1:])], "it is missing in 1 row"


def two_zones(times: list[datetime]) -> tuple[list[Any], str]:
    return [f"{one:%Y-%m-%dT%H:%M}{('Z', '+02:00')[n % 2]}" for n, one in enumerate(times)], "it is not written"


def two_ways(times: list[datetime]) -> tuple[list[Any], str]:
    return [f"{one:%Y-%m-%d}{(' ', 'T')[n % 2]}{one:%H:%M}" for n, one in enumerate(times)], "it is not written"


def one_day(times: list[datetime]) -> tuple[list[Any], str]:
    return [f"{one if n % 8 else START:%Y-%m-%d}" for n, one in enumerate(times)], "a single time has 1"


@pytest.mark.parametrize("spoil", [some_missing, two_zones, two_ways, one_day])
def test_rows_are_split_at_random_where_time_cannot_tell(spoil: Any, tmp_path: Path) -> None:
    written, reason = spoil(moments(3))
    found = inspected(tmp_path, written)
    assert found.kinds["event_time"] == "timestamp"
    assert "split" not in config_tree(found)["data"]
    (warning,) = advice(found)
    assert f"rows are not split by it, since {reason}" in warning.message
    prepare(parse_config(config_tree(found)).data, tmp_path / "data")


def test_a_column_that_says_the_split_comes_first_and_of_two_timestamps_one_that_can(tmp_path: Path) -> None:
    frame = rows([f"{one:%Y-%m-%d}" for one in moments(4)])
    frame["created"] = frame["event_time"]
    frame.loc[5, "event_time"] = None
    frame.to_csv(tmp_path / "rows.csv", index=False)
    assert config_tree(inspect_rows(tmp_path / "rows.csv"))["data"]["split"] == {"time": "created"}
    frame["part"] = np.resize(["train", "train", "test", "val"], ROWS)
    frame.to_csv(tmp_path / "rows.csv", index=False)
    found = inspect_rows(tmp_path / "rows.csv")
    assert config_tree(found)["data"]["split"] == {"column": "part"}
    assert ["split by another column" in one.message for one in advice(found)] == [False, True]
