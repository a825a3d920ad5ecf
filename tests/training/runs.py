"""Small runs for the tests of the trainer."""

from __future__ import annotations

from typing import Any

from recsys_embed.config import Config, parse_config
from recsys_embed.recommender import Recommender, build_recommender


def settings(tables: str = "rowwise_adagrad", **training: Any) -> Config:
    """A small run; ``model`` and ``embedding`` stand for those tables of the config."""
    optimizer = {
        "tables": tables,
        "tables_lr": {"adam": 0.01, "lazy_adam": 0.01, "sgd": 1.0}.get(tables, 0.1),
        "dense_lr": 0.005,
        **training.pop("optimizer", {}),
    }
    return parse_config(
        {
            "data": {"path": "unused"},
            "model": training.pop("model", {"name": "dcn_v2", "dim": 4, "cross_layers": 1, "hidden": [16]}),
            "embedding": {"backend": "reference", **training.pop("embedding", {"strategy": "full", "seed": 3})},
            "training": {"batch_size": 200, "epochs": 4, "seed": 5, "optimizer": optimizer, **training},
        }
    )


def build(config: Config, data: Any) -> Recommender:
    """The recommender of a config for the toy data."""
    return build_recommender(config, data.features, data.num_dense)
