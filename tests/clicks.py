"""Configs on the rows of the fixture ``clicks``: of the commands' tests, a small model; and all of its columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

CONFIG = """
[data]
path = {path!r}
label = "clicked"
categorical = ["user", "item"]
split = {{ column = "part" }}
[model]
name = "dlrm"
dim = 4
top = [8]
[embedding]
strategy = "hash"
budget = 0.5
[training]
batch_size = 256
epochs = {epochs}
threads = 1
[study]
strategies = ["full", "hash"]
budgets = [0.5]
seeds = [0]
"""


def data_of(path: Path) -> dict[str, Any]:
    """The section ``data`` with every column."""
    return {
        "path": str(path),
        "label": "clicked",
        "categorical": ["user", "item"],
        "multi_valued": {"tags": "|"},
        "numeric": ["price"],
        "split": {"column": "part"},
    }
