"""Spools on their own: what is in the file is what was not delivered."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from recsys_embed.tracking.spool import Spool

FOLDER = Path("spools")


def everything(header: Mapping[str, Any]) -> bool:
    return True


def entry(value: str) -> dict[str, Any]:
    return {"do": "log", "run": 0, "value": value}


def values(spool: Spool) -> list[str]:
    skipped: set[tuple[Spool, int]] = set()
    found = []
    while (one := spool.first(skipped)) is not None:
        skipped.add((spool, one[0]))
        found.append(one[1]["value"])
    return found


def test_what_was_crossed_off_stays_so_and_ids_are_kept() -> None:
    spool = Spool.new(FOLDER, {"uri": "here"})
    spool.append([entry("a"), entry("b"), entry("ü\udcff")])
    spool.cross_off(0, "id-0")
    spool.cross_off(1, None)
    spool.close()
    (again,) = Spool.adopt(FOLDER, lambda header: header["uri"] == "here")
    assert values(again) == ["ü\udcff"]
    assert again.ids == {0: "id-0"}
    again.append([entry("d")])
    again.cross_off(2, None)
    again.close()
    (third,) = Spool.adopt(FOLDER, everything)
    assert values(third) == ["d"]
    third.cross_off(3, None)
    third.close()
    assert not FOLDER.exists()


def test_a_spool_in_use_is_left_alone() -> None:
    spool = Spool.new(FOLDER, {})
    spool.append([entry("a")])
    assert Spool.adopt(FOLDER, everything) == []
    spool.close()
    (again,) = Spool.adopt(FOLDER, everything)
    again.close()


@pytest.mark.parametrize("cut", [1, 3, 20])
def test_a_torn_line_costs_itself_alone(cut: int) -> None:
    spool = Spool.new(FOLDER, {})
    spool.append([entry("a"), entry("b")])
    spool.close()
    os.truncate(spool.path, spool.path.stat().st_size - cut)
    (again,) = Spool.adopt(FOLDER, everything)
    kept = ["a", "b"] if cut == 1 else ["a"]
    assert values(again) == kept
    again.append([entry("c")])
    again.close()
    (third,) = Spool.adopt(FOLDER, everything)
    assert values(third) == [*kept, "c"]
    third.close()


def test_what_is_no_spool_of_ours_is_not_touched() -> None:
    FOLDER.mkdir()
    (FOLDER / "empty.jsonl").touch()
    foreign = {"version.jsonl": json.dumps({"version": 99}) + "\n", "text.jsonl": "no json\n", "list.jsonl": "[]\n"}
    for name, text in foreign.items():
        (FOLDER / name).write_text(text)
    assert Spool.adopt(FOLDER, everything) == []
    assert {path.name: path.read_text() for path in FOLDER.iterdir()} == foreign  # the empty one was a dead job's


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a device that is always full")
def test_a_full_disk_is_survived(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    spool = Spool.new(FOLDER, {})
    spool.append([entry("a")])
    with monkeypatch.context() as patch, open("/dev/full", "wb", buffering=0) as full:
        patch.setattr(spool, "_file", full)
        spool.append([entry("b")])
        spool.append([entry("c")])
    spool.append([entry("d")])
    assert values(spool) == ["a", "b", "c", "d"]  # in memory, whatever the disk says
    assert len(caplog.records) == 1
    spool.close()
    (again,) = Spool.adopt(FOLDER, everything)
    assert values(again)[-1] == "d"
    again.close()
