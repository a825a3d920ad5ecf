"""Every warning on data in which its reason was planted, with its numbers, and none on clean data."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from recsys_embed.cli.printing import print_json
from recsys_embed.config import parse_config
from recsys_embed.data import prepare
from recsys_embed.inspection import advice, config_tree, inspect_rows
from recsys_embed.inspection.document import document
from tests.inspection.rows import CLEAN, ROWS, clicks

SEEDS = [0, 1]


def told(path: Path, **options: Any) -> list[tuple[str, tuple[str, ...], dict[str, Any]]]:
    return [(one.code, one.columns, one.numbers) for one in advice(inspect_rows(path, **options))]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("make", CLEAN.values(), ids=CLEAN)
def test_nothing_is_said_of_clean_data(make: Callable[[int], pd.DataFrame], seed: int, tmp_path: Path) -> None:
    make(seed).to_csv(tmp_path / "rows.csv", index=False)
    assert [one.message for one in advice(inspect_rows(tmp_path / "rows.csv"))] == []


@pytest.mark.parametrize("make", CLEAN.values(), ids=CLEAN)
def test_the_config_encodes_the_rows(make: Callable[[int], pd.DataFrame], tmp_path: Path) -> None:
    """Typed ones here; nothing is said of them either."""
    make(3).to_parquet(tmp_path / "rows.parquet")
    found = inspect_rows(tmp_path / "rows.parquet")
    assert advice(found) == []
    assert found.label is not None
    dataset = prepare(parse_config(config_tree(found), source="inspect").data, tmp_path / "data")
    assert sum(dataset.rows(split) for split in ("train", "val", "test")) == ROWS - found.label.others
    assert {feature.name for feature in dataset.features} == {
        name for name, kind in found.kinds.items() if kind in ("categorical", "multi_valued")
    }


def ids(frame: pd.DataFrame, rng: np.random.Generator) -> Any:
    frame["event"] = rng.permutation(ROWS)
    return "id_per_row", ("event",), {"distinct": ROWS, "rows": ROWS}


def late(frame: pd.DataFrame, rng: np.random.Generator) -> Any:
    """What is only known after a click, for some of them."""
    frame["dwell"] = [f"{one:.1f}" if one > 0 else "" for one in frame["click"] * rng.integers(-1, 30, ROWS)]
    return "leak", ("dwell",), {"auc": pytest.approx(0.98, abs=0.02)}


def copied(frame: pd.DataFrame, rng: np.random.Generator) -> Any:
    """The label under another name, wrong in one row of a hundred."""
    frame["state"] = np.where((frame["click"] == 1) ^ (rng.random(ROWS) < 0.01), "done", "open")
    return "leak", ("state",), {"auc": pytest.approx(0.99, abs=0.005)}


def renamed(frame: pd.DataFrame, rng: np.random.Generator) -> Any:
    frame["site_id"] = frame["site"].map({site: 7 * n for n, site in enumerate(frame["site"].unique())})
    return "one_to_one", ("site", "site_id"), {"distinct": frame["site"].nunique()}


def moment(frame: pd.DataFrame, rng: np.random.Generator) -> Any:
    frame["timestamp"] = np.sort(rng.integers(978_300_000, 988_300_000, ROWS))
    frame.loc[[0, ROWS - 1], "timestamp"] = [978_300_760, 988_307_200]
    return "timestamp", ("timestamp",), {"min": "2000-12-31 22:12", "max": "2001-04-26 17:46"}


def dated(frame: pd.DataFrame, rng: np.random.Generator) -> Any:
    frame["when"] = [f"2014-10-{n:02d}" for n in rng.integers(1, 32, ROWS)]
    return "timestamp", ("when",), {"min": "2014-10-01", "max": "2014-10-31"}


def same(frame: pd.DataFrame, rng: np.random.Generator) -> Any:
    frame["country"] = "CH"
    return "constant", ("country",), {"rows": ROWS, "value": "CH"}


def empty(frame: pd.DataFrame, rng: np.random.Generator) -> Any:
    frame["country"] = None
    return "constant", ("country",), {"rows": ROWS}


def sparse(frame: pd.DataFrame, rng: np.random.Generator) -> Any:
    frame["coupon"] = np.where(np.arange(ROWS) % 20 == 7, rng.choice(["A", "B"], ROWS), None)
    return "mostly_missing", ("coupon",), {"missing": ROWS - ROWS // 20, "rows": ROWS}


def long(frame: pd.DataFrame, rng: np.random.Generator) -> Any:
    frame["device"] = [str(123_456_789_012_345_600 + int(n)) for n in rng.integers(0, 90, ROWS)]
    return "big_numbers", ("device",), {"rows": ROWS, "max": pytest.approx(123_456_789_012_345_689)}


def rounded(frame: pd.DataFrame, rng: np.random.Generator) -> Any:
    """As pandas writes them that has read them as floats."""
    frame["device"] = [f"{1.2345678901234e17 + 1000 * int(n):.13e}" for n in rng.integers(0, 90, ROWS)]
    return "big_numbers", ("device",), {"rows": ROWS, "max": pytest.approx(1.2345678901e17)}


def blanks(frame: pd.DataFrame, rng: np.random.Generator) -> Any:
    frame["country"] = rng.choice(["US", "us ", "US ", "CH", "ch", " DE"], ROWS)
    return "blanks", ("country",), {"values": 1}


def rare(frame: pd.DataFrame, rng: np.random.Generator) -> Any:
    frame["click"] = (np.arange(ROWS) % 100 == 0).astype(int)
    return (
        "rare_label",
        ("click",),
        {"positives": ROWS // 100, "negatives": ROWS - ROWS // 100, "missing": 0, "others": 0},
    )


def one_class(frame: pd.DataFrame, rng: np.random.Generator) -> Any:
    frame["click"] = 0
    return "one_class", ("click",), {"positives": 0, "negatives": ROWS, "missing": 0, "others": 0}


def unlabelled(frame: pd.DataFrame, rng: np.random.Generator) -> Any:
    frame["click"] = frame["click"].astype("Int64").mask(np.arange(ROWS) % 4 == 0)
    rows = int(frame["click"].count())
    positives = int(frame["click"].sum())
    return (
        "unlabelled",
        ("click",),
        {"positives": positives, "negatives": rows - positives, "missing": ROWS // 4, "others": 0},
    )


def nameless(frame: pd.DataFrame, rng: np.random.Generator) -> Any:
    frame["thing"] = frame.pop("click")
    return "no_label", (), {}


PLANTED = [
    *(ids, late, copied, renamed, moment, dated, same, empty, sparse, long, rounded, blanks, rare, one_class),
    *(unlabelled, nameless),
]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("plant", PLANTED, ids=lambda one: one.__name__)
def test_what_was_planted_is_said_and_nothing_else(plant: Callable[..., Any], seed: int, tmp_path: Path) -> None:
    frame = clicks(seed)
    expected = plant(frame, np.random.default_rng(seed))
    frame.to_csv(tmp_path / "rows.csv", index=False)
    assert told(tmp_path / "rows.csv") == [expected]


@pytest.mark.parametrize("plant", [ids, late, copied, moment, dated, same, empty, rounded])
def test_what_cannot_be_learned_from_is_left_out(plant: Callable[..., Any], tmp_path: Path) -> None:
    frame = clicks(0)
    _, (name,), _ = plant(frame, np.random.default_rng(0))
    frame.to_csv(tmp_path / "rows.csv", index=False)
    found = inspect_rows(tmp_path / "rows.csv")
    tree = config_tree(found)["data"]
    assert name not in [*tree["categorical"], *tree["numeric"], *tree["multi_valued"]]
    assert {"user_id", "item", "site", "city", "hour"} <= set(tree["categorical"])
    by_name = {one["name"]: one for one in document(found, advice(found))["columns"]}
    assert [name for name, one in by_name.items() if one["left_out"]] == [name]


def test_few_rows(tmp_path: Path) -> None:
    clicks(0).head(900).to_csv(tmp_path / "rows.csv", index=False)
    assert ("few_rows", (), {"rows": 900}) in told(tmp_path / "rows.csv")
    assert "few_rows" not in [code for code, _, _ in told(tmp_path / "rows.csv", rows=500)]  # there are more


def test_a_row_in_the_place_of_names(tmp_path: Path) -> None:
    frame = clicks(0)
    frame.to_csv(tmp_path / "rows.csv", index=False, header=False)
    (first, *_) = told(tmp_path / "rows.csv", label=str(frame["click"][0]))
    assert first[:2] == ("no_header", tuple(map(str, frame.iloc[0])))
    frame[["click", "hour"]].set_axis(["0", "1"], axis=1).to_csv(tmp_path / "rows.csv", index=False)
    assert "no_header" not in [code for code, _, _ in told(tmp_path / "rows.csv", label="0")]
    frame[["click", "hour"]].set_axis(["1", "2"], axis=1).to_parquet(tmp_path / "rows.parquet")
    assert "no_header" not in [code for code, _, _ in told(tmp_path / "rows.parquet", label="1")]


def test_no_column_to_embed(tmp_path: Path) -> None:
    frame = clicks(0)[["click", "price"]]
    frame.to_csv(tmp_path / "rows.csv", index=False)
    assert told(tmp_path / "rows.csv") == [("no_features", (), {})]


def test_floats_that_may_have_merged_are_left_out(tmp_path: Path) -> None:
    """A column of ids that a blank has made floats; `prepare` refuses it, so the config goes without."""
    frame = clicks(0)
    frame["device"] = 123_456_789_012_345_600.0 + 1000 * (np.arange(ROWS) % 50)
    frame.to_parquet(tmp_path / "rows.parquet")
    found = inspect_rows(tmp_path / "rows.parquet")
    (warning,) = advice(found)
    assert (warning.code, warning.columns) == ("big_numbers", ("device",))
    assert "stored as floats" in warning.message
    prepare(parse_config(config_tree(found), source="inspect").data, tmp_path / "data")


def test_the_document_is_plain_json_with_what_pandas_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frame = clicks(1)
    frame.loc[:99, "price"] = np.nan
    frame.to_csv(tmp_path / "rows.csv", index=False)
    found = inspect_rows(tmp_path / "rows.csv")
    print_json(document(found, advice(found)))
    told = json.loads(capsys.readouterr().out)
    columns = {one["name"]: one for one in told["columns"]}
    assert list(columns) == list(frame.columns)
    for name, one in columns.items():
        assert (one["count"], one["missing"]) == (frame[name].count(), frame[name].isna().sum())
        assert (one["distinct"], one["distinct_exact"]) == (frame[name].nunique(), True)
    assert columns["price"]["mean"] == pytest.approx(frame["price"].mean())
    assert (columns["price"]["min"], columns["price"]["max"]) == (frame["price"].min(), frame["price"].max())
    assert columns["city"]["top"][0] == {
        "value": frame["city"].value_counts().index[0],
        "count": int(frame["city"].value_counts().iloc[0]),
    }
    parts = frame["tags"].str.split("|")
    assert columns["tags"]["values"] == {
        "count": int(parts.str.len().sum()),
        "distinct": parts.explode().nunique(),
        "distinct_exact": True,
        "longest": int(parts.str.len().max()),
    }
    assert told["config"] == config_tree(found)
    assert told["label"]["positives"] == int(frame["click"].sum())
