"""The reliability table at a small scale; ``bench/faults.py`` runs all of it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest

from bench import faults
from bench.injections import ROWS, injection
from bench.injections.tally import QUICK, NotBuiltError, Scale, Tally

SLOW = {"F3", "F5", "F7", "F9", "F11", "F12", "F17", "F18", "F19", "F20", "F21"}


@pytest.mark.parametrize("row", [pytest.param(row, marks=pytest.mark.slow if row in SLOW else ()) for row in ROWS])
def test_promise_is_kept(row: str, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            tally = injection(row)(QUICK, tmp_path)
        except NotBuiltError as error:
            pytest.skip(f"not built: {error}")
    assert tally.injected > 0
    assert (tally.lost, tally.silent, tally.broken) == (0, 0, [])


# --- the harness itself: it can fail, and it goes on ----------------------------------------------------------


@pytest.mark.parametrize(
    ("tally", "status"),
    [
        (Tally(injected=3, detected=3), "passed"),
        (Tally(), "failed"),  # no fault fired
        (Tally(injected=3, lost=1), "failed"),
        (Tally(injected=3, silent=1), "failed"),
        (Tally(injected=3, broken=["too slow"]), "failed"),
    ],
)
def test_a_row_passes_only_if_faults_fired_and_nothing_was_lost(
    monkeypatch: pytest.MonkeyPatch, tally: Tally, status: str
) -> None:
    monkeypatch.setattr(faults, "injection", lambda row: lambda scale, folder: tally)
    assert faults.one("F1", QUICK)["status"] == status


def test_a_row_that_is_not_built_or_raises_is_no_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(scale: Scale, folder: Path) -> Tally:
        raise NotBuiltError("no ranks")

    def broken(scale: Scale, folder: Path) -> Tally:
        raise ZeroDivisionError

    monkeypatch.setattr(faults, "injection", lambda row: missing)
    assert faults.one("F9", QUICK) == {"promise": ROWS["F9"][1], "status": "not built", "reason": "no ranks"}
    monkeypatch.setattr(faults, "injection", lambda row: broken)
    outcome = faults.one("F9", QUICK)
    assert outcome["status"] == "failed"
    assert "ZeroDivisionError" in outcome["broken"][0]


def test_a_killed_run_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    done: list[str] = []

    def one(row: str, scale: Scale) -> dict[str, object]:
        if row == "F3" and "F3" not in done:
            done.append(row)
            raise KeyboardInterrupt
        done.append(row)
        return {"promise": "", "status": "failed" if row == "F2" else "passed"}

    monkeypatch.setattr(faults, "one", one)
    file = tmp_path / "results.json"
    with pytest.raises(KeyboardInterrupt):
        faults.run(["F1", "F2", "F3"], QUICK, file)
    assert list(json.loads(file.read_text())["rows"]) == ["F1", "F2"]
    faults.run(["F1", "F2", "F3"], QUICK, file)
    assert done == ["F1", "F2", "F3", "F2", "F3"]  # what passed is kept, what failed is tried again
    monkeypatch.setattr(faults, "code", lambda: "another")
    faults.run(["F1"], QUICK, file)
    assert done[-1] == "F1"


def test_the_table_shows_what_was_not_built() -> None:
    rows = {"F9": {"promise": "p", "status": "not built", "reason": "no ranks"}}
    assert "| F9 | p |  |  |  |  |  | not built |" in faults.table(rows)
    assert "- F9: no ranks" in faults.table(rows)
