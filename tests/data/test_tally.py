"""Counting on the disk: the same sums, in however many runs and ranges."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import recsys_embed.data.tally as module
from recsys_embed.data.tally import Tally, merge, open_runs
from recsys_embed.data.text_hash import hash_text

CELLS = st.lists(st.lists(st.tuples(st.none() | st.text(max_size=3), st.booleans()), max_size=8), max_size=8)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(CELLS, max_size=4), st.integers(1, 10), st.sampled_from([0, 62, 63]))
def test_runs_add_up(tmp_path: Path, files: list[list[list[tuple[str | None, bool]]]], values: int, cut: int) -> None:
    """Files of a run from several pieces each, some cells not to be counted, hardly a value to a range; also by hashes
    that are often equal."""
    found, runs = Counter[str | None](), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "RANGE_VALUES", values)
        patch.setattr(module, "hash_text", lambda cells: hash_text(cells) >> np.uint64(cut))
        for number, pieces in enumerate(files):
            path = tmp_path / f"{number}.arrow"
            tally = Tally(path)
            cells = [cell for piece in pieces for cell, _ in piece]
            counted = [kept for piece in pieces for _, kept in piece]
            codes = tally.add(
                [pa.array([cell for cell, _ in piece], pa.string()) for piece in pieces], np.array(counted, bool)
            )
            tally.close()
            words = [*open_runs(path).get_batch(0)["value"].to_pylist(), None]
            assert [words[code] for code in codes] == cells
            found.update(dict.fromkeys(cells, 0))
            found.update(cell for cell, kept in zip(cells, counted, strict=True) if kept)
            runs.append((path, 0))
        found.pop(None, None)
        pairs = [pair for table in merge(runs) for pair in zip(*table.to_pydict().values(), strict=True)]
    assert len(pairs) == len(found)  # no value twice
    assert dict(pairs) == found
