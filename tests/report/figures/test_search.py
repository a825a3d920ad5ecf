"""The figures of a search."""

from __future__ import annotations

import re
from itertools import pairwise

import numpy as np
import pandas as pd

from recsys_embed.report.figures import allocation, front, history
from recsys_embed.report.figures.front import measured, on_front
from recsys_embed.report.figures.style import LETTER, WIDTH


def texts(figure: str) -> list[str]:
    return re.findall(r"<text[^>]*>([^<]*)</text>", figure)


def test_the_front_is_what_no_other_trial_beats() -> None:
    generator = np.random.default_rng(0)
    for count in (1, 2, 40):
        frame = pd.DataFrame(
            {
                "status": "ok",
                "same_as": np.nan,
                "serve_bytes": generator.integers(1, 12, count),
                "val_auc": generator.integers(50, 60, count) / 100,
            }
        )
        shown = measured(frame)
        points = list(zip(shown["serve_bytes"], shown["val_auc"], strict=True))
        expected = {
            (size, auc)
            for size, auc in points
            if not any(a <= size and b >= auc and (a, b) != (size, auc) for a, b in points)
        }
        found = [points[place] for place in on_front(shown)]
        assert set(found) == expected
        assert len(found) == len(expected)


def trials(**columns: object) -> pd.DataFrame:
    known = {"same_as": np.nan, "serve_bytes": 1000, "budget_bytes": 1500, "budget_requested": "0.1"}
    return pd.DataFrame(known | columns)


def test_every_trial_and_every_method_is_drawn_once() -> None:
    search = trials(
        method=["mde", *["optuna"] * 4, *["random"] * 2],
        trial=[1, 1, 2, 3, 4, 1, 2],
        status=["ok", "ok", "pruned", "failed", "ok", "ok", "diverged"],
        val_auc=[0.7, 0.71, 0.69, np.nan, 0.72, 0.6, np.nan],
    )
    figure = history.draw(search, "h")
    for name in ("mde", "optuna", "random", "one training"):
        assert texts(figure).count(name) == 1
    assert texts(figure).count("×") == 2
    names = texts(front.draw(search, "f"))
    assert [name for name in names if name[2:] in ("mde", "optuna", "random")] == ["▼ mde", "✖ optuna", "✚ random"]
    assert "budget 0.1" in names


def test_methods_without_a_result_leave_no_figure() -> None:
    search = trials(method=["optuna"], trial=[1], status=["failed"], val_auc=[np.nan])
    assert history.draw(search, "h") == front.draw(search, "f") == allocation.draw({"optuna": ""}, "a") == ""


def test_panels_stay_on_the_page_and_apart() -> None:
    one = allocation.Panel("pareto, trial 12", {"a": "full", "b": "mixed_dimension"}, {"a": [16.0], "b": [1.0]})
    same = allocation.Panel("mde", {"a": "full"}, {"a": [16.0]})
    left = 180.0
    shown = [same, one, one, same, same, same, one]
    spots, rows = allocation.layout(shown, left)
    assert rows == 1 + max(row for _, row in spots)
    ends = []
    for panel, (x, row) in zip(shown, spots, strict=True):
        beside = LETTER * len("mixed_dimension") if panel.mixed else 0
        ends.append((row, x, x + 104 + beside))
        assert left <= x
        assert x + 104 + beside <= WIDTH * 72
    for (row, _, end), (after, start, _) in pairwise(ends):
        assert after > row or start > end


def test_the_numbers_of_an_allocation_are_in_its_cells() -> None:
    names = [f"a_feature_with_a_long_name_{place}" for place in range(26)]
    found = ", ".join(
        f'"{name}": {{"strategy": "dnis", "ids": {place + 3}, "weights_per_id": [{place}.25, 0, 0.001]}}'
        for place, name in enumerate(names)
    )
    words = texts(allocation.draw({"dnis": f"{{{found}}}", "mde": f"{{{found.replace('.25, 0, 0.001', '')}}}"}, "a"))
    assert words.count("0") == 26 + 1
    assert words.count("&lt;.01") == 26
    assert words.count("20") == 2  # 20.25 in the first, 20 in the second
    shown = [word for word in words if "feature" in word]
    assert len(shown) == len(set(shown)) == 26
    assert shown[0].endswith("(28)")  # the largest vocabulary first
