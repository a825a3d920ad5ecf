"""The page of a search: what was tried, found and spent, and what selects."""

from __future__ import annotations

import builtins
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from recsys_embed.cli import app
from recsys_embed.config import SearchConfig
from recsys_embed.errors import DataError
from recsys_embed.report.importance import ENOUGH, importances
from recsys_embed.report.page import HTML, MARKDOWN, write_page
from recsys_embed.report.results import RESULTS, read_results, write_results
from recsys_embed.report.summary import Section, summarise
from recsys_embed.report.tables import (
    advise,
    allocation_table,
    budget_table,
    importance_table,
    notices,
    search_facts,
    search_table,
)
from recsys_embed.search.choice import winner
from recsys_embed.search.contenders import METHODS
from recsys_embed.search.table import SEARCH, read_search, write_search

LOSS = {
    "full": 0.0,
    "uniform": 0.25,
    "mde": 0.1,
    "random": 0.3,
    "optuna, trial 3": 0.1,
    "optuna, trial 24": 0.12,
    "pareto": 0.4,
}
"""Of signal, of each find: mde and the best of optuna are alike."""
NAMES = ("user", "item", "city")
BUDGET = 1_100_000


def trial(method: str, number: int, drawn: Sequence[float] = (), **columns: Any) -> dict[str, Any]:
    """A trial whose AUC is led by the share of the second vocabulary."""
    auc = 0.70 + 0.05 * drawn[1] + 0.002 * drawn[0] if drawn else 0.72
    named = dict(zip(NAMES, drawn, strict=False))
    row = {
        "dataset": "planted",
        "fingerprint": "9f2c51d07ab4e83c",
        "model": "dcn_v2",
        "dim": 16,
        "method": method,
        "trial": number,
        "budget_requested": "0.1",
        "budget_bytes": BUDGET,
        "seed": 0,
        "status": "ok",
        "val_auc": auc,
        "serve_bytes": BUDGET - 1000 * number,
        "left_over": 1000 * number,
        "epochs": 2,
        "samples_seen": 1000 + number,
        "wall_seconds": 1.5 + number / 10,
        "params": {f"share.{name}": value for name, value in named.items()},
        "allocation": allocation(16.0, 2.5, 0.004),
        "history": {"1": auc - 0.01, "2": auc},
        "finalist": False,
        "run": f"{method}-{number}",
    }
    return row | columns


def allocation(*weights: float, strategy: str = "mixed_dimension") -> dict[str, Any]:
    """The vocabularies with the same weights in all five blocks, but for the last one's last block."""
    ids = (90_000, 1_200, 40)
    out = {
        name: {"strategy": strategy, "ids": count, "weights_per_id": [one] * 5}
        for name, count, one in zip(NAMES, ids, weights, strict=False)
    }
    out[NAMES[-1]]["weights_per_id"][-1] = 0.0
    return out


def trials() -> list[dict[str, Any]]:
    """Six methods; of optuna some trials are pruned, one failed and two were the same as another."""
    generator = np.random.default_rng(3)
    out = [trial("full", 1, serve_bytes=11 * BUDGET, left_over=None, finalist=True)]
    out += [trial(name, 1, val_auc=auc, finalist=True) for name, auc in (("uniform", 0.715), ("mde", 0.731))]
    for method, count in (("random", 24), ("optuna", 30), ("pareto", 8)):
        for number in range(1, count + 1):
            row = trial(method, number, tuple(generator.random(3).tolist()))
            if method == "pareto":
                row["params"]["budget"] = float(generator.uniform(0.1, 1))
                row["serve_bytes"] = int(row["params"]["budget"] * BUDGET)
            if method == "optuna" and number in (4, 9, 11):
                row |= {"status": "pruned", "serve_bytes": None, "left_over": None, "allocation": None}
            if (method, number) == ("optuna", 7):
                row |= {"status": "failed", "error": "E", "val_auc": None, "serve_bytes": None, "allocation": None}
            if method == "optuna" and number in (12, 13):
                row |= {"same_as": 3, "samples_seen": 0, "wall_seconds": 0.0, "val_auc": out[-10]["val_auc"]}
            row["finalist"] = (method, number) in (("random", 2), ("optuna", 3), ("optuna", 24), ("pareto", 5))
            out.append(row)
    mixed = next(row for row in out if (row["method"], row["trial"]) == ("optuna", 24))
    mixed["allocation"] = allocation(8.0, 0.25, 1.0) | {
        "item": {"strategy": "hash", "ids": 1200, "weights_per_id": [0.25] * 5}
    }
    return out


@pytest.fixture(scope="module")
def searched(study: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search with its page; not to be changed."""
    folder = tmp_path_factory.mktemp("searched")
    write(folder, study)
    write_page(folder)
    return folder


def write(folder: Path, study: SimpleNamespace, losses: dict[str, float] = LOSS, **columns: Any) -> None:
    """The results of the finds, a method each, and the trials."""
    methods = [
        study.Method("full" if name == "full" else "mixed", {"" if name == "full" else "0.1": loss}, {"*": str(place)})
        for place, (name, loss) in enumerate(losses.items())
    ]
    rows = study.write(
        folder, methods, rows=1500, own_sd=0.05, seed_sd=0.03, parts=dict.fromkeys(NAMES, 0.33), **columns
    )
    places = {f"-{place}-": name for place, name in enumerate(losses)}
    for row in rows:
        row["found_by"] = next(name for place, name in places.items() if place in row["run"])
        row["val_auc"] = 0.76 - 0.1 * losses[row["found_by"]] + 0.001 * row["seed"]
        row["settings"] = {f"feature_{place}": {"name": "mixed_dimension", "width": 2} for place in range(40)}
    write_results(folder / RESULTS, rows)
    write_search(folder, trials())


def only(folder: Path) -> Section:
    (section,) = summarise(folder)
    return section


@pytest.fixture(scope="module")
def section(searched: Path) -> Section:
    return only(searched)


def told(folder: Path, name: str = HTML) -> str:
    return (folder / name).read_text(encoding="utf-8")


def test_methods_are_those_of_the_config() -> None:
    (choices,) = {one for one in get_args(SearchConfig.model_fields["methods"].annotation) if one is not Ellipsis}
    assert set(METHODS) == set(get_args(choices))


# --- what selects --------------------------------------------------------------------------------------------


def run(found_by: str, val_auc: float, serve_bytes: int = 90, status: str = "ok") -> dict[str, Any]:
    return {"found_by": found_by, "val_auc": val_auc, "serve_bytes": serve_bytes, "status": status}


@pytest.mark.parametrize(
    ("runs", "expected"),
    [
        ([run("mde", 0.7), run("mde", 0.8), run("uniform", 0.74), run("uniform", 0.74)], "mde"),
        ([run("full", 0.9, 101), run("mde", 0.7)], "mde"),
        ([run("mde", 0.9), run("mde", 0.9, status="diverged"), run("pep", 0.6)], "pep"),
        ([run("optuna", 0.7), run("mde", 0.7)], "mde"),
        ([run("mde", 0.7, 80), run("optuna", 0.7, 70)], "optuna"),
        ([run("optuna, trial 10", 0.7), run("optuna, trial 9", 0.7)], "optuna, trial 9"),
        ([run("mde", float("nan")), run("", 0.9)], None),
        ([run("full", 0.9, 101)], None),
    ],
)
def test_the_winner_is_the_best_on_validation_within_the_budget(runs: list[dict[str, Any]], expected: str) -> None:
    assert winner(runs, 100) == winner(runs[::-1], 100) == expected


def test_the_page_recommends_what_validation_chose_and_says_where_others_are_better(
    searched: Path, section: Section, tmp_path: Path
) -> None:
    (budget,) = section.budgets
    chosen = section.chosen(budget)
    assert chosen is not None
    assert chosen.method == "mde"
    assert advise(section, budget).method == "mde"
    assert any("Validation alone selects: mde won" in line for line in notices(section))
    # With another label of validation for the worst of them, it is chosen, however bad its test AUC.
    shutil.copytree(searched, tmp_path / "copy")
    rows = read_results(searched / RESULTS)
    rows.loc[rows["found_by"] == "pareto", "val_auc"] = 0.9
    write_results(tmp_path / "copy" / RESULTS, rows)
    section = only(tmp_path / "copy")
    advice = advise(section, section.budgets[0])
    assert advice.method == "pareto"
    assert "are better on the test split, which chooses nothing" in str(advice)
    table = budget_table(section, section.budgets[0])
    tags = {row[0].main: row[0].tags for row in table.rows}
    assert [name for name, mine in tags.items() if "chosen" in mine] == ["pareto"]
    assert tags["pareto"] == ("chosen",)


def test_a_simple_baseline_that_is_as_good_or_better_is_named(searched: Path, section: Section, tmp_path: Path) -> None:
    lines = [line for line in notices(section) if "simple baseline" in line]
    cells = {cell.method: cell for cell in section.cells}
    best, mde = cells["optuna, trial 3"], cells["mde"]
    gap = section.difference(mde, best)
    assert gap.contains_zero
    assert section.difference(cells["uniform"], best).high < 0
    (line,) = lines
    assert line.startswith(
        "The simple baseline mde is not distinguishable from optuna, trial 3, the best of the searched"
    )
    assert f"{gap.estimate:+.4f}".replace("-", "−") in line
    # Where validation prefers a bad one of them, both baselines are better.
    shutil.copytree(searched, tmp_path / "copy")
    rows = read_results(searched / RESULTS)
    rows.loc[rows["found_by"] == "pareto", "val_auc"] = 0.9
    write_results(tmp_path / "copy" / RESULTS, rows)
    lines = [line for line in notices(only(tmp_path / "copy")) if "simple baseline" in line]
    assert [line.split(" (")[0] for line in lines] == [
        f"The simple baseline {name} is better than pareto, the best of the searched methods on validation"
        for name in ("uniform", "mde")
    ]


# --- tables --------------------------------------------------------------------------------------------------


def test_cost_stands_beside_quality_and_can_be_recomputed(searched: Path, section: Section) -> None:
    known = pd.DataFrame(trials())
    results = read_results(searched / RESULTS)
    table = search_table(section)
    assert table is not None
    assert [row[0].main for row in table.rows] == ["full", "uniform", "mde", "random", "optuna", "pareto"]
    for row in table.rows:
        said = dict(zip(table.columns, row, strict=True))
        mine = known[known["method"] == said["method"].main]
        ok = mine[mine["status"] == "ok"]
        assert said["trials"].main == str(len(mine))
        assert said["samples seen"].main == f"{int(mine['samples_seen'].sum()):,}"
        assert said["seconds"].main == f"{mine['wall_seconds'].sum():.1f}"
        assert said["best val AUC, one seed"].main == f"{ok['val_auc'].max():.4f}"
        finds = results[results["found_by"].str.split(",").str[0] == said["method"].main]
        best = finds.groupby("found_by")["val_auc"].mean().idxmax()
        finals = finds[finds["found_by"] == best]
        assert said["val AUC, all seeds"].main == f"{finals['val_auc'].mean():.4f}"
        assert said["test AUC"].main == f"{finals['test_auc'].mean():.4f}"
        assert said["test AUC"].sub == f"± {finals['test_auc'].std(ddof=1):.4f}"
    said = {row[0].main: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert said["optuna"]["trials"].sub == "24 complete,\n3 pruned,\n2 same as another,\n1 failed"
    assert said["random"]["trials"].sub == ""
    assert said["optuna"]["val AUC, all seeds"].sub.endswith("trial 3")
    assert said["full"]["left over by rounding"].main == "–"
    assert said["mde"]["left over by rounding"].main == "1 kB"
    assert said["mde"]["serving bytes"].main == "1.09 MB"
    assert [row[0].main for row, kind in zip(table.rows, table.kinds, strict=True) if kind == "best"] == ["mde"]
    facts = dict(search_facts(section))
    seconds = round(known["wall_seconds"].sum())
    assert facts["Spent"] == (
        f"{len(known)} trials, {int(known['samples_seen'].sum()):,} samples seen, {seconds} s of training; "
        f"the finals {int(results['samples_seen'].sum()):,} samples"
    )
    for name in (HTML, MARKDOWN):
        assert all(fact in told(searched, name) for fact in facts.values())


def test_what_was_found_is_told_by_vocabulary_and_block(searched: Path, section: Section) -> None:
    table = allocation_table(section)
    assert table is not None
    assert table.columns == (
        "vocabulary", "ids", "full", "uniform", "mde", "random", "optuna, trial 3", "optuna, trial 24", "pareto"
    )  # fmt: skip
    rows = {row[0].main: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert list(rows) == ["user", "item", "city"]  # the largest first
    assert [rows[name]["mde"].main for name in rows] == ["16", "2.5", "<.01 <.01 <.01 <.01 0"]
    assert [rows[name]["optuna, trial 24"].sub for name in rows] == ["mixed_dimension", "hash", "mixed_dimension"]
    assert [rows[name]["mde"].sub for name in rows] == ["", "", ""]


def test_long_settings_of_finds_are_in_no_table(searched: Path, section: Section) -> None:
    table = budget_table(section, section.budgets[0])
    assert "settings" not in table.columns
    assert table.columns[0] == "method"
    assert "feature_7" not in told(searched)
    assert "Dimension search: planted with dcn_v2" in told(searched)


# --- importance -------------------------------------------------------------------------------------------


def test_the_parameter_that_leads_is_the_most_important(searched: Path, section: Section) -> None:
    found, why = importances(section.search)
    assert set(found) == {"random", "optuna"}
    assert why == f"fewer than {ENOUGH} complete trials say little: pareto 8"
    for mine in found.values():
        assert next(iter(mine)) == "share.item"
        assert sum(mine.values()) == pytest.approx(1)
    table = importance_table(section)
    assert table is not None
    assert table.rows[0][0].main == "width of item"
    assert why in told(searched)
    assert why in told(searched, MARKDOWN)


def test_a_choice_of_strategy_can_be_what_matters() -> None:
    generator = np.random.default_rng(0)
    rows = []
    for number in range(40):
        kind = ["full", "hash"][int(generator.integers(2))]
        row = trial("random", number + 1, tuple(generator.random(3).tolist()), val_auc=0.7 + 0.1 * (kind == "full"))
        row["params"] |= {"strategy.user": kind, "tables_lr": 0.1}
        rows.append(row)
    frame = pd.DataFrame(rows).assign(params=[json.dumps(row["params"]) for row in rows])
    found, _ = importances(frame)
    assert next(iter(found["random"])) == "strategy.user"
    assert "tables_lr" not in found["random"]  # the same in all trials


def test_without_optuna_the_page_says_so(searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(searched, tmp_path / "copy")
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("optuna"):
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    text = write_page(tmp_path / "copy").read_text(encoding="utf-8")
    assert "No importance: Optuna 4.7 or newer is not installed." in text
    assert "Importance of what the search drew" not in text


# --- the page ------------------------------------------------------------------------------------------------


def test_the_page_shows_the_search(searched: Path) -> None:
    figures = re.findall(r"<svg.*?</svg>", told(searched), flags=re.DOTALL)
    titles = [re.search(r"<title[^>]*>([^<]*)", figure)[1] for figure in figures]  # type: ignore[index]
    for title in (
        "Validation AUC of the trials of the search",
        "Validation AUC against serving bytes of all trials",
        "Importance of what the search drew",
        "Weights an id, by vocabulary and frequency",
    ):
        figure = figures[titles.index(title)]
        colours = re.sub(r"var\(--[a-z0-9-]+\)|currentColor", "", figure)
        assert not re.search(r"(?:fill|stroke): *#", colours)
    ids = re.findall(r'\bid="([^"]+)"', told(searched))
    assert len(ids) == len(set(ids))


def test_the_page_is_made_again_from_the_tables_in_any_order_of_rows(searched: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(searched, source)
    for name in (RESULTS, SEARCH):
        frame = pd.read_csv(source / name, dtype=str, keep_default_na=False)
        frame.sample(frac=1, random_state=1).to_csv(source / name, index=False)
    done = CliRunner().invoke(app, ["report", "--from", str(source / RESULTS), "--out", str(tmp_path / "copy")])
    assert done.exit_code == 0, done.output
    for name in (HTML, MARKDOWN):
        assert (tmp_path / "copy" / name).read_bytes() == (searched / name).read_bytes()
    # Without the trials the finds are still compared, and validation still chooses.
    (source / SEARCH).unlink()
    text = write_page(source).read_text(encoding="utf-8")
    assert "Validation alone selects: mde won" in text
    assert "<h2>Search</h2>" not in text


HOSTILE = "<script>alert(1)</script>|x\"'&amp;"


def test_names_from_outside_are_text(study: SimpleNamespace, tmp_path: Path) -> None:
    write(tmp_path, study, {"full": 0.0, "mde": 0.1, HOSTILE: 0.2})
    rows = [trial(HOSTILE, 1, finalist=True), trial(HOSTILE, 2, status="failed", error=HOSTILE, val_auc=None)]
    for number in range(1, ENOUGH + 1):
        share = number / ENOUGH
        params = {f"share.{HOSTILE}": share, HOSTILE: (share * 7) % 1}
        found = {HOSTILE: {"strategy": HOSTILE, "ids": 3, "weights_per_id": [1, 2, 0]}} | allocation(1, 2, 3)
        first = number == 1
        rows.append(trial("random", number, params=params, val_auc=share, allocation=found, finalist=first))
    write_search(tmp_path, rows)
    write_page(tmp_path)
    page, markdown = told(tmp_path), told(tmp_path, MARKDOWN)
    assert "<script" not in page
    assert "<script" not in markdown
    assert page.count("&lt;script&gt;alert(1)&lt;/script&gt;|x") >= 5
    tables = re.findall(r"(?:^\|.*\n)+", markdown, flags=re.MULTILINE)
    assert any("&lt;script" in table for table in tables)
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("status", "fine", "is none of"),
        ("method", "", "is empty"),
        ("trial", "1.5", "not a whole number"),
        ("val_auc", "high", "not a number"),
        ("val_auc", "", "is empty in a trial that is ok"),
        ("serve_bytes", "", "is empty in a trial that is ok"),
        ("serve_bytes", "inf", "not a whole number"),
        ("finalist", "maybe", "neither true nor false"),
        ("params", "[1]", "not a JSON object"),
        ("params", "{", "not a JSON object"),
        ("params", '{"share.user": [1]}', "no object of numbers and names"),
        ("params", '{"share.user": NaN}', "no object of numbers and names"),
        ("params", '{"share.user": true}', "no object of numbers and names"),
        ("history", '{"1": "good"}', "no object of numbers"),
        ("allocation", '{"user": 3}', "no object of vocabularies"),
        ("allocation", '{"user": {"strategy": 1, "ids": 3, "weights_per_id": [1]}}', "no object of vocabularies"),
        ("allocation", '{"user": {"strategy": "full", "ids": 0, "weights_per_id": [1]}}', "no object of vocabularies"),
        ("allocation", '{"user": {"strategy": "full", "ids": 3, "weights_per_id": []}}', "no object of vocabularies"),
        ("allocation", '{"user": {"strategy": "full", "ids": 3, "weights_per_id": [-1]}}', "no object of vocabularies"),
        (
            "allocation",
            json.dumps({"user": {"strategy": "full", "ids": 3, "weights_per_id": [1] * 33}}),
            "no object of",
        ),
    ],
)
def test_a_table_that_cannot_be_is_refused(tmp_path: Path, column: str, value: str, message: str) -> None:
    write_search(tmp_path, trials())
    frame = pd.read_csv(tmp_path / SEARCH, dtype=str, keep_default_na=False)
    frame.loc[4, column] = value
    frame.to_csv(tmp_path / SEARCH, index=False)
    with pytest.raises(DataError, match=message) as caught:
        read_search(tmp_path)
    assert (caught.value.column, caught.value.row) == (column, 5)
    assert caught.value.file == str(tmp_path / SEARCH)


def test_a_trial_that_is_there_twice_and_a_missing_column_are_refused(tmp_path: Path) -> None:
    write_search(tmp_path, [*trials(), trials()[3]])
    with pytest.raises(DataError, match="is there twice") as caught:
        read_search(tmp_path)
    assert caught.value.column == "trial"
    frame = pd.read_csv(tmp_path / SEARCH, dtype=str, keep_default_na=False).drop(columns="params")
    frame.to_csv(tmp_path / SEARCH, index=False)
    with pytest.raises(DataError, match="is missing") as caught:
        read_search(tmp_path)
    assert caught.value.column == "params"
