"""The config as it is printed."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from recsys_embed.config import parse_config
from recsys_embed.inspection import advice, config_tree, inspect_rows
from recsys_embed.inspection.draft import WIDTH, draft
from tests.inspection.rows import CLEAN, clicks, shop

HOSTILE = [
    'say "hi"',
    "a.b",
    "a = b # c",
    "new\nline",
    "tab\tname",
    "Ünïcode",
    "x" * 100,
    "\x7f",
    "it's",
    "[data]",
    "\\",
]


@pytest.mark.parametrize("make", CLEAN.values(), ids=CLEAN)
def test_it_reads_back_as_the_tree_and_fits_the_screen(make: Callable[[int], pd.DataFrame], tmp_path: Path) -> None:
    make(4).to_csv(tmp_path / "rows.csv", index=False)
    found = inspect_rows(tmp_path / "rows.csv")
    text = draft(found)
    assert tomllib.loads(text) == config_tree(found)
    parse_config(tomllib.loads(text), source="inspect")
    assert all(len(line) <= WIDTH for line in text.splitlines() if not line.startswith("path = "))


def test_it_says_what_a_person_wants_to_know(tmp_path: Path) -> None:
    frame = clicks(0)
    frame["site_id"] = frame["site"].map({site: 7 * n for n, site in enumerate(frame["site"].unique())})
    frame["when"] = [f"2014-10-{1 + n % 31:02d}" for n in range(len(frame))]
    frame["event"], frame["country"] = range(len(frame)), "CH"
    frame.loc[: len(frame) // 10 - 1, "city"] = None
    frame.to_csv(tmp_path / "rows.csv", index=False)
    text = draft(inspect_rows(tmp_path / "rows.csv"))
    lines = {line.strip().split(maxsplit=1)[0]: line for line in text.splitlines() if line}
    positives = int(frame["click"].sum())
    assert (
        f"# {positives:,} positive and {4_000 - positives:,} negative rows ({positives / 4_000:.1%} positive)" in text
    )
    once = f"{(frame['user_id'].value_counts() == 1).mean():.0%}"
    ids = f"{frame['user_id'].min():,} to {frame['user_id'].max():,}"
    assert f"{frame['user_id'].nunique():,} values, {once} of them once, {ids}" in lines['"user_id",']
    assert "1:1 with site_id" in lines['"site",']
    assert "12 values, 10% missing: " in lines['"city",']
    assert 'price = "log"' in lines["price"]
    assert f"{frame['price'].min():.2f} to {frame['price'].max():.2f}" in lines["price"]
    assert "15 values, 2.0 a cell" in lines["tags"]
    out = text[text.index("# Left out:") :]
    assert [line.split()[1] for line in out.split("\n\n")[0].splitlines()[1:]] == ["event", "country"]
    assert "another value in every row" in out
    assert "constant: CH" in out
    assert "# Oldest 80 % train, newest 10 % test: 2014-10-01 to 2014-10-31." in text
    features = ["user_id", "item", "site", "city", "hour", "site_id"]
    rows = int(frame[features].nunique().sum()) + len(features) + frame["tags"].str.split("|").explode().nunique() + 1
    assert f"# Full tables: {rows:,} rows of 16 floats, {64 * rows / 1e3:.0f} kB." in text


def test_the_readme_shows_what_is_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shop(0).to_csv("clicks.csv", index=False)
    found = inspect_rows("clicks.csv")
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert f"```toml\n{draft(found)}```" in readme
    assert "".join(f"warning: {one.message}\n" for one in advice(found)) in readme


def test_names_and_values_of_any_kind_leave_it_toml(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({name: rng.choice(HOSTILE, 300) for name in HOSTILE})
    frame["tags\n#"] = ["|".join(rng.choice(["a\nb", 'c"d', "e"], n)) for n in rng.integers(1, 4, 300)]
    frame["# left"], frame["weird\nid"] = "constant\nvalue", [f"{n}\n" for n in range(300)]
    frame['pri"ce\n\\'] = rng.lognormal(2, 1, 300)
    frame['la"bel'] = rng.choice(['ye"s', "n\no"], 300)
    frame.to_parquet(tmp_path / "rows.parquet")
    found = inspect_rows(tmp_path / "rows.parquet", label='la"bel')
    text = draft(found)
    tree = tomllib.loads(text)
    assert tree == config_tree(found)
    assert tree["data"]["categorical"] == HOSTILE
    assert tree["data"]["multi_valued"] == {"tags\n#": "|"}
    assert tree["data"]["numeric"] == {'pri"ce\n\\': "log"}
    assert set(tree["data"]["label"]["positive"] + tree["data"]["label"]["negative"]) == {'ye"s', "n\no"}
    assert advice(found)


def test_without_a_label_the_line_is_there_to_fill_in(tmp_path: Path) -> None:
    frame = clicks(0)
    frame["thing"] = frame.pop("click") + 5
    frame.to_csv(tmp_path / "rows.csv", index=False)
    text = draft(inspect_rows(tmp_path / "rows.csv"))
    assert "label" not in tomllib.loads(text)["data"]
    filled = text.replace('# label = "…"', 'label = "thing"')
    assert tomllib.loads(filled)["data"]["label"] == "thing"
    frame["thing"] = np.arange(len(frame)) % 3
    frame.to_csv(tmp_path / "rows.csv", index=False)
    text = draft(inspect_rows(tmp_path / "rows.csv", label="thing"))
    filled = text.replace("# label =", "label =").replace('["…"]', "[1]")
    assert tomllib.loads(filled)["data"]["label"] == {"column": "thing", "positive": [1], "negative": [1]}


def test_another_separator_is_found_and_written(tmp_path: Path) -> None:
    frame = clicks(0).drop(columns="tags")
    frame.to_csv(tmp_path / "rows.csv", index=False, sep=";")
    found = inspect_rows(tmp_path / "rows.csv")
    assert tomllib.loads(draft(found))["data"]["separator"] == ";"
    assert [column.name for column in found.columns] == list(frame.columns)
    frame.to_csv(tmp_path / "rows.csv", index=False)
    assert "separator" not in config_tree(inspect_rows(tmp_path / "rows.csv"))["data"]
