"""Public data, where it is there: what is known of it is found, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from recsys_embed.inspection import advice, config_tree, inspect_rows


@pytest.mark.parametrize(
    ("file", "label", "twins"),
    [
        ("amazon-employee-access/train.csv", "ACTION", [("ROLE_TITLE", "ROLE_CODE")]),
        ("adult-income/adult.csv.gz", "income", [("education", "educational-num")]),
        ("movielens-1m/ratings.tsv.gz", "rating", []),
    ],
)
def test_public_data(real_data: Path, file: str, label: str, twins: list[tuple[str, ...]]) -> None:
    found = inspect_rows(real_data / file, rows=100_000)
    assert found.label is not None
    assert found.label.column == label
    assert [(one.code, one.columns) for one in advice(found)] == [("one_to_one", names) for names in twins]
    data = config_tree(found)["data"]
    assert len(found.columns) == 1 + sum(len(data.get(key, ())) for key in ("categorical", "numeric", "multi_valued"))
    assert data.get("multi_valued", {}) == ({"genres": "|"} if label == "rating" else {})
