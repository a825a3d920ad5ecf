"""Counting on the disk: the same sums, however much went there."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.ipc as ipc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import recsys_embed.data.tally as module
from recsys_embed.data.tally import Tallies, merge

CELLS = st.lists(st.lists(st.none() | st.text(max_size=3), max_size=8), max_size=12)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CELLS, CELLS, st.integers(1, 300), st.integers(1, 10))
def test_runs_add_up(
    tmp_path: Path, one: list[list[str | None]], other: list[list[str | None]], limit: int, values: int
) -> None:
    """Two processes' worth of two names, of which little fits into memory, and hardly any into a range."""
    found: dict[str, Counter[str | None]] = {"a": Counter(), "b": Counter()}
    runs: dict[str, list[tuple[Path, int]]] = {"a": [], "b": []}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "RUN_BYTES", limit)
        patch.setattr(module, "RANGE_VALUES", values)
        for number, parts in enumerate((one, other)):
            path = tmp_path / f"{number}.arrow"
            tallies = Tallies(["a", "b"], path)
            for i, cells in enumerate(parts):
                name = "ab"[i % 2]
                tallies.of[name].add(pa.array(cells, pa.string()))
                found[name].update(cells)
                tallies.spill()
            tallies.close()
            for name, batches in tallies.runs.items():
                runs[name] += [(path, batch) for batch in batches]
        for name, counted in found.items():
            counted.pop(None, None)
            tables = list(merge(runs[name]))
            pairs = [pair for table in tables for pair in zip(*table.to_pydict().values(), strict=True)]
            assert len(pairs) == len(counted)  # no value twice
            assert dict(pairs) == counted


def test_what_does_not_fit_goes_to_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RUN_BYTES", 1_000)
    tallies = Tallies(["a"], tmp_path / "runs.arrow")
    for start in range(0, 2_000, 50):
        tallies.of["a"].add(pa.array([f"value {i}" for i in range(start, start + 50)]))
        tallies.spill()
        assert tallies.of["a"].nbytes < 3_000
    tallies.close()
    assert ipc.open_file(tmp_path / "runs.arrow").num_record_batches == len(tallies.runs["a"]) > 20
