from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from recsys_embed.report.figures.labels import spread


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
