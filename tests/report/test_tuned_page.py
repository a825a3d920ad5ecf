"""The page of a study with tuning: what is compared, what stands beside it, and what was tried and spent."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from recsys_embed.cli import app
from recsys_embed.errors import DataError
from recsys_embed.report.page import HTML, MARKDOWN, write_page
from recsys_embed.report.results import RESULTS, read_results, write_results
from recsys_embed.report.summary import Section, summarise
from recsys_embed.report.tables import advise, budget_table, tuning_facts, tuning_table
from recsys_embed.report.trials import TRIALS, read_trials, write_trials

SPACE = {"epochs": [1, 6], "tables_lr": [0.005, 0.5], "decay": [1e-7, 1e-3], "no_decay": 0.25}
VALUES = {1: {"tables_lr": 0.3127, "decay": 0.0}, 6: {"tables_lr": 0.0412, "decay": 2.5e-5}}


def tuning(epochs: int) -> dict[str, Any]:
    return {"epochs": epochs, "trial": 2, "trials": 3, "values": VALUES[epochs], "seed": 0, "space": SPACE}


@pytest.fixture(scope="module")
def tuned(study: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Full and hash, as configured and tuned with each of two settings of the epochs; not to be changed."""
    folder = tmp_path_factory.mktemp("tuned")
    losses = {"full": {"": 0.0}, "hash": {"0.5": 0.06, "0.1": 0.22}}
    methods = [study.Method(name, {budget: loss + 0.15 for budget, loss in losses[name].items()}) for name in losses]
    for epochs, gain in ((1, 0.05), (6, 0.0)):
        for name, loss in losses.items():
            lower = {budget: one + gain for budget, one in loss.items()}
            methods.append(study.Method(name, lower, tuning=tuning(epochs)))
    rows = study.write(folder, methods, rows=1500)
    for row in rows:
        row["protocol"] = row["protocol"] | {"embedding": {"decay": 0.0}}
        # Validation prefers one epoch of full, which the test split does not.
        if row["strategy"] == "full" and row["tuning"]:
            row["val_auc"] = 0.9 if row["tuning"]["epochs"] == 1 else 0.6
    write_results(folder / RESULTS, rows)
    write_trials(folder, trials())
    write_page(folder)
    return folder


def trials() -> list[dict[str, Any]]:
    """Three for each of the six contenders, the second chosen; one of hash diverges."""
    out = []
    for strategy, budget in (("full", ""), ("hash", "0.5"), ("hash", "0.1")):
        for epochs in (1, 6):
            for trial in (1, 2, 3):
                lr = VALUES[epochs]["tables_lr"] * 2.0 ** (trial - 2)
                row = {
                    "dataset": "planted",
                    "fingerprint": "9f2c51d07ab4e83c",
                    "model": "dcn_v2",
                    "dim": 16,
                    "strategy": strategy,
                    "settings": {},
                    "budget_requested": budget,
                    "epochs": epochs,
                    "trial": trial,
                    "seed": 0,
                    "tables_lr": lr,
                    "decay": VALUES[epochs]["decay"],
                    "val_auc": 0.71 - 0.01 * abs(trial - 2),
                    "samples_seen": 1000 * epochs,
                    "wall_seconds": 2.5 * epochs,
                    "status": "ok",
                    "chosen": trial == 2,
                    "run": f"{strategy}{budget}{epochs}{trial}",
                }
                if (strategy, budget, epochs, trial) == ("hash", "0.1", 6, 3):
                    row |= {"status": "diverged", "error": "E", "val_auc": None, "samples_seen": None}
                out.append(row)
    return out


def only(folder: Path) -> Section:
    (section,) = summarise(folder)
    return section


def test_tuned_runs_are_compared_and_the_defaults_change_nothing(tuned: Path, tmp_path: Path) -> None:
    shutil.copytree(tuned, tmp_path / "alone")
    rows = read_results(tuned / RESULTS)
    write_results(tmp_path / "alone" / RESULTS, rows[rows["tuned"]])
    section, alone = only(tuned), only(tmp_path / "alone")
    told = [f"{name} (tuned, {epochs})" for name in ("full", "hash") for epochs in ("1 epoch", "≤ 6 epochs")]
    assert section.methods == alone.methods == tuple(told)
    assert [cell.method for cell in section.untuned] == ["full", "hash", "hash"]
    assert not alone.untuned
    for one, other in zip(section.budgets, alone.budgets, strict=True):
        assert str(advise(section, one)) == str(advise(alone, other))
        assert section.ranks(one) == alone.ranks(other)
        mine, theirs = budget_table(section, one), budget_table(alone, other)
        assert mine.rows[: len(theirs.rows)] == theirs.rows
        beside = mine.rows[len(theirs.rows) :]
        assert [(row[0].main, row[1].main) for row in beside] == [("full", "default"), ("hash", "default")]
        for place, name in enumerate(mine.columns):
            if name.startswith(("difference", "rank")):
                assert [row[place].main for row in beside] == ["–", "–"]
        assert [kind.split()[0] for kind in mine.kinds[-2:]] == ["beside", "beside"]
    assert "default, stand beside" in (tuned / HTML).read_text(encoding="utf-8")


def test_the_full_to_compare_with_is_the_one_that_validation_prefers(tuned: Path) -> None:
    section = only(tuned)
    fulls = {cell.method: cell for cell in section.cells if cell.uncompressed}
    one, six = fulls["full (tuned, 1 epoch)"], fulls["full (tuned, ≤ 6 epochs)"]
    assert six.auc > one.auc
    assert section.full is one
    for name in (HTML, MARKDOWN):
        text = (tuned / name).read_text(encoding="utf-8")
        assert "Difference to full: to full (tuned, 1 epoch), which validation prefers." in text
    # What was chosen is told beside each, and which setting of the epochs it is.
    rows = budget_table(section, section.budgets[0]).rows
    chosen = {(row[0].main, row[1].main): row[1].sub for row in rows}
    assert chosen["hash", "tuned, 1 epoch"] == "tables lr 0.313\ndecay 0"
    assert chosen["full", "tuned, ≤ 6 epochs"] == "tables lr 0.0412\ndecay 2.5e-05"
    assert chosen["hash", "default"] == ""


def test_what_was_tried_found_and_spent_is_told(tuned: Path) -> None:
    section, tried = only(tuned), read_trials(tuned)
    facts = dict(tuning_facts(section))
    assert facts["Space"] == (
        "tables lr 0.005 to 0.5, decay 1e-07 to 0.001, by order of magnitude, where decay is 0 in 25% of it; seed 0"
    )
    assert facts["Trials"].startswith("3 for each strategy, full included, at each budget")
    assert facts["Epochs"].startswith("1 epoch and ≤ 6 epochs,")
    assert "with seed 0" in facts["Choice"]
    assert facts["Default"] == "≤ 6 epochs, tables lr 0.05, decay 0"
    samples, seconds = int(tried["samples_seen"].sum()), round(tried["wall_seconds"].sum())
    assert facts["Spent"] == (
        f"18 trials, {samples:,} samples seen, {seconds} s of training; 1 without a result, whose samples are not known"
    )
    table = tuning_table(section)
    assert table is not None
    assert len(table.rows) == 6
    cells = {(cell.name, cell.budget, cell.tuning["epochs"]): cell for cell in section.cells}
    for row in table.rows:
        told = dict(zip(table.columns, row, strict=True))
        budget = told["budget"].main.replace("–", "")
        epochs = int(re.findall(r"\d+", told["epochs"].main)[0])
        mine = (tried["strategy"] == told["strategy"].main) & (tried["budget_requested"] == budget)
        mine &= tried["epochs"] == epochs
        ok = tried[mine & (tried["status"] == "ok")]
        default = next(cell for cell in section.untuned if (cell.name, cell.budget) == (told["strategy"].main, budget))
        assert told["tables lr"].main == f"{VALUES[epochs]['tables_lr']:.3g}"
        assert told["best val AUC"].main == "0.7100"
        assert told["test AUC, default"].main == f"{default.auc:.4f}"
        assert told["test AUC, tuned"].main == f"{cells[told['strategy'].main, budget, epochs].auc:.4f}"
        assert told["samples seen"].main == f"{int(ok['samples_seen'].sum()):,}"
        assert told["seconds"].main == f"{tried[mine]['wall_seconds'].sum():.1f}"
        assert told["trials"].main == "3"
        assert told["trials"].sub == ("1 lost" if len(ok) == 2 else "")
    for name in (HTML, MARKDOWN):
        text = (tuned / name).read_text(encoding="utf-8")
        assert all(fact in text for fact in facts.values())
        assert "27 runs, 18 trials" in text
    figures = re.findall(r"<svg.*?</svg>", (tuned / HTML).read_text(encoding="utf-8"), flags=re.DOTALL)
    (figure,) = (figure for figure in figures if "Validation AUC of the trials" in figure)
    assert "mathdefault" not in figure


def test_the_page_is_made_again_from_the_tables(tuned: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(tuned, source)
    for name in (RESULTS, TRIALS):
        frame = pd.read_csv(source / name, dtype=str, keep_default_na=False)
        frame.sample(frac=1, random_state=1).to_csv(source / name, index=False)
    done = CliRunner().invoke(app, ["report", "--from", str(source / RESULTS), "--out", str(tmp_path / "copy")])
    assert done.exit_code == 0, done.output
    for name in (HTML, MARKDOWN):
        assert (tmp_path / "copy" / name).read_bytes() == (tuned / name).read_bytes()
    # Without the trials, what results.csv knows of them.
    (source / TRIALS).unlink()
    write_page(source)
    text = (source / HTML).read_text(encoding="utf-8")
    assert "unknown: trials.csv is not in the folder" in text
    assert "tables lr 0.005 to 0.5" in text
    assert "Validation AUC of the trials" not in text


def test_a_contender_whose_trials_all_failed_says_so(tuned: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(tuned, copy)
    rows = read_results(copy / RESULTS)
    lost = (
        (rows["strategy"] == "hash") & (rows["budget_requested"] == "0.1") & rows["tuning"].str.contains('"epochs": 6')
    )
    rows.loc[lost, ["status", "error"]] = ["failed", "none of 3 trials ended well; the first failed: E"]
    rows.loc[lost, "tuning"] = rows.loc[lost, "tuning"].str.replace(r'"values": \{[^}]*\}', '"values": {}', regex=True)
    rows.loc[lost, ["test_auc", "val_auc"]] = np.nan
    write_results(copy / RESULTS, rows)
    text = write_page(copy).read_text(encoding="utf-8")
    assert "none of 3 trials ended well" in text
    assert "hash (tuned, ≤ 6 epochs) at 0.1: failed" in text
    table = tuning_table(only(copy))
    assert table is not None
    assert [row[table.columns.index("tables lr")].main for row in table.rows].count("–") == 1


def test_a_table_of_trials_that_cannot_be_is_refused(tuned: Path, tmp_path: Path) -> None:
    text = (tuned / TRIALS).read_text(encoding="utf-8")
    for old, new, column, message in (
        (",ok,", ",fine,", "status", "is none of"),
        (",0.71,", ",high,", "val_auc", "not a number"),
        ("tables_lr", "lr", "tables_lr", "is missing"),
    ):
        (tmp_path / TRIALS).write_text(text.replace(old, new, 1), encoding="utf-8")
        with pytest.raises(DataError, match=message) as caught:
            read_trials(tmp_path)
        assert caught.value.column == column
    (tmp_path / TRIALS).write_text(text.replace("0.71", "0.72", 1), encoding="utf-8")
    assert len(read_trials(tmp_path)) == 18
    rows = read_results(tuned / RESULTS)
    for change in ({"tuned": False}, {"tuning": ""}, {"tuning": '{"epochs": 1}'}):
        write_results(tmp_path / RESULTS, rows.assign(**change))
        with pytest.raises(DataError, match="does not go with the column tuned") as caught:
            read_results(tmp_path / RESULTS)
        assert caught.value.column == "tuning"
