"""Planted days: users and items decide, and every day brings users that there were not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recsys_embed.config import Config, parse_config

FIRST = range(40)
"""The users of the first day."""


def day(number: int, users: range = FIRST, rows: int = 360) -> pd.DataFrame:
    """Rows of a day, all of whose users are in its training rows, with a multi-valued column of users too."""
    rng = np.random.default_rng(number)
    taste = np.random.default_rng(99).normal(size=1000)
    user = np.array(users)[np.resize(np.arange(len(users)), rows)]
    item = rng.integers(0, 12, rows)
    friends = np.array(users)[rng.integers(0, len(users), (rows, 2))]
    logit = 2 * taste[user] + taste[500 + item]
    return pd.DataFrame(
        {
            "user": [f"u{one}" for one in user],
            "item": [f"i{one}" for one in item],
            "friends": [f"u{a}|u{b}" for a, b in friends],
            "price": rng.normal(size=rows).round(3),
            "clicked": (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(int),
            "part": np.where(np.arange(rows) < rows // 2, "train", np.resize(["val", "test", "train"], rows)),
        }
    )


def config_of(path: Path, *overrides: str, tables: str = "rowwise_adagrad", **embedding: Any) -> Config:
    return parse_config(
        {
            "data": {
                "path": str(path),
                "label": "clicked",
                "categorical": ["user", "item"],
                "multi_valued": {"friends": "|"},
                "numeric": ["price"],
                "vocabulary": {"friends": "user"},
                "split": {"column": "part"},
            },
            "model": {"name": "dlrm", "dim": 4, "bottom": [4], "top": [8]},
            "embedding": {"strategy": "full", "backend": "reference", "seed": 3, **embedding},
            "training": {
                "batch_size": 64,
                "epochs": 1,
                "threads": 1,
                "optimizer": {"tables": tables, "tables_lr": 0.2, "dense_lr": 0.01},
            },
            "tracking": {"enabled": False},
        },
        overrides,
    )


def write(folder: Path, name: str, frame: pd.DataFrame) -> Path:
    path = folder / f"{name}.parquet"
    frame.to_parquet(path)
    return path
