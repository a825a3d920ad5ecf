"""Every built-in strategy in one model, at one kept fraction, at the beginning of any stage of its training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from recsys_embed.config import Config, parse_config
from recsys_embed.embeddings import CLASSES
from recsys_embed.features import Feature
from recsys_embed.recommender import Recommender, build_recommender

KEPT = 0.1
"""Of the bytes of full tables, for all but full ones."""

MODEL = {"name": "dcn_v2", "dim": 16, "cross_layers": 2, "hidden": [256, 128]}
OPTIMIZER = {"tables": "rowwise_adagrad", "tables_lr": 0.02, "dense": "adam", "dense_lr": 1e-3}


def strategies() -> dict[str, dict[str, Any]]:
    """The section ``embedding`` of each, by a name; full tables are the first, and two are stored as integers too."""
    names = [str(node.model_fields["name"].default) for node in CLASSES]
    found = {name: {"strategy": name, **_budget(name)} for name in names}
    stored = {
        f"{name}, int8": {"strategy": {"name": name, "storage": "int8"}, **_budget(name)}
        for name in ("full", "unified")
    }
    return found | stored


def config_of(embedding: Mapping[str, Any], batch: int) -> Config:
    """The config of a strategy's training."""
    return parse_config(
        {
            "data": {"path": "drawn"},
            "model": dict(MODEL),
            "embedding": dict(embedding),
            "training": {"batch_size": batch, "optimizer": OPTIMIZER},
        }
    )


def model_of(config: Config, features: Sequence[Feature], numbers: int, stage: int | None = None) -> Recommender:
    """A model at the beginning of a stage, by its place; None: at the end of all. Its stages before are as they would
    be if they took no step: pruning, where there is any, has been done, on initial weights."""
    model = build_recommender(config, features, numbers)
    layer = model.embedding
    for one in layer.stages[:stage]:
        layer.begin_stage(one.name)
        layer.end_stage()
    if stage is not None:
        layer.begin_stage(layer.stages[stage].name)
    return model


def _budget(name: str) -> dict[str, float]:
    return {} if name == "full" else {"budget": KEPT}
