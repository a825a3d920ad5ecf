from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_embed.config import STRATEGIES
from recsys_embed.report.figures import format_bytes, series, spread


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (20_480, "20.5 kB"),
        (999_999, "1 MB"),
        (64e9, "64 GB"),
        (5e15, "5e+03 TB"),
    ],
)
def test_bytes_are_readable(size: float, text: str) -> None:
    assert format_bytes(size) == text


def test_a_strategy_keeps_its_colour_and_full_is_ink() -> None:
    assert series("full") is None
    colours = [series(name) for name in STRATEGIES if name != "full"]
    assert len(set(colours)) == min(len(colours), 7)


@given(st.lists(st.floats(0, 100), max_size=8))
def test_labels_are_apart_in_order_and_inside(places: list[float]) -> None:
    moved = spread(places, 10, 0, 100)
    ordered = np.sort(moved)
    assert (np.diff(ordered) >= 10 - 1e-9).all()
    assert all(-1e-9 <= place <= 100 + 1e-9 for place in moved)
    for (one, to), (other, there) in zip(
        sorted(zip(places, moved, strict=True)), sorted(zip(places, moved, strict=True))[1:], strict=False
    ):
        assert one == other or to < there


def test_labels_that_are_apart_stay() -> None:
    assert spread([10, 50, 30], 10, 0, 100) == [10, 50, 30]
