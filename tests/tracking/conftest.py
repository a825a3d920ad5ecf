"""A folder for each test, a job to track, and a server to break."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from bench.injections.mlflow_server import Server
from recsys_embed.config import Config, parse_config

_ROW: dict[str, Any] = {
    "dataset": "clicks",
    "fingerprint": "f" * 32,
    "strategy": "hash",
    "settings": {"user": 10},
    "budget_requested": "0.5",
    "seed": 1,
    "dim": 8,
    "val_auc": 0.7,
    "test_auc": 0.71,
    "auc_unseen": None,
    "test_ne": float("inf"),
    "serve_bytes": 320,
    "coarse": False,
    "run": "abc",
    "status": "ok",
    "error": "",
}
_HISTORY = [{"epoch": 1, "val_auc": 0.6, "train_loss": 0.5}, {"epoch": 2, "val_auc": 0.7, "train_loss": float("nan")}]
_LEDGER = pd.DataFrame({"part": ["hash"], "feature": ["user"], "table": ["user"], "rows": [10], "width": [8],
                       "train_bytes": [640], "serve_bytes": [320]})  # fmt: skip


def _config(**tracking: Any) -> Config:
    return parse_config(
        {
            "data": {"path": "clicks.csv", "categorical": ["user"]},
            "embedding": {"strategy": {"user*": {"name": "hash"}}, "budget": 0.5},
            "tracking": {"experiment": "clicks", **tracking},
        }
    )


@pytest.fixture
def job() -> SimpleNamespace:
    """What a job hands to its tracker: a function that makes configs, a row of results, epochs and a ledger."""
    return SimpleNamespace(config=_config, row=_ROW, history=_HISTORY, ledger=_LEDGER)


@pytest.fixture(autouse=True)
def _elsewhere(quick_stores: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server.running() as one:
        yield one
