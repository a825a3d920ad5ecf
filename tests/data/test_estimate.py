"""What a preparation would take, told from its first rows, beside what it takes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

import recsys_embed.data.estimate as module
from recsys_embed.cli import app
from recsys_embed.data import prepare
from recsys_embed.data.estimate import estimate
from recsys_embed.errors import DataError


@pytest.mark.parametrize(
    ("name", "sample", "exact"),
    [("rows.csv", 10_000, True), ("rows.csv", 500, False), ("rows.csv.gz", 500, False), ("rows.parquet", 500, True)],
)
def test_rows_and_bytes_are_near_the_truth(
    kit: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, sample: int, exact: bool
) -> None:
    monkeypatch.setattr(module, "SAMPLE_ROWS", sample)
    path, out = kit.write(kit.table(4_000), tmp_path / name), tmp_path / "folder" / "out"
    found = estimate(kit.config(path), out)
    assert not out.parent.exists()
    assert (found.exact, found.sampled) == (exact, min(sample, 4_000))
    assert found.rows == 4_000 if exact else 3_900 < found.rows < 4_100
    assert found.seconds == pytest.approx(found.rows / found.rows_per_second)
    prepare(kit.config(path), out)
    written = sum(file.stat().st_size for file in out.rglob("*") if file.suffix in (".arrow", ".parquet"))
    assert found.bytes == pytest.approx(written, rel=0.25)
    assert found.free > 0


def test_the_command_writes_nothing(kit: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    kit.write(kit.table(), tmp_path / "rows.csv")
    Path("c.toml").write_text(
        """[data]
path = "rows.csv"
label = "clicked"
categorical = ["user", "city"]
split = { column = "part" }
"""
    )
    before = sorted(tmp_path.iterdir())
    told = CliRunner().invoke(app, ["prepare", "c.toml", "--dry-run", "--out", "d"])
    assert told.exit_code == 0, told.output
    assert "240 rows" in told.output
    tree = json.loads(CliRunner().invoke(app, ["prepare", "c.toml", "--dry-run", "--json"]).stdout)
    assert (tree["rows"], tree["exact"], tree["workers"]) == (240, True, 1)
    assert sorted(tmp_path.iterdir()) == before


def test_a_bad_row_among_the_first_is_an_error(kit: SimpleNamespace, tmp_path: Path) -> None:
    frame = kit.table()
    frame.loc[6, "price"] = "dear"
    with pytest.raises(DataError, match="text in a numeric column") as caught:
        estimate(kit.config(kit.write(frame, tmp_path / "rows.csv")), tmp_path / "out")
    assert (caught.value.column, caught.value.row) == ("price", 7)
