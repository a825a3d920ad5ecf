"""F16: what is held out teaches nothing. Labels that are pure noise are predicted no better than by a coin, and the
encoder is the same, byte for byte, whatever the held-out rows are.

That the canary can sing is tried first: with a column that holds the mean label of each user over all rows, the test
rows among them, the same training predicts noise.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from bench.injections.artifacts import configured, fresh
from bench.injections.tally import Scale, Tally
from recsys_embed.config import Config
from recsys_embed.data import EncodedDataset, prepare
from recsys_embed.recommender import build_recommender
from recsys_embed.training.evaluation import predict
from recsys_embed.training.metrics import auc
from recsys_embed.training.trainer import train

SEEDS, TOLERANCE = 5, 0.02


def noise(rows: int, seed: int) -> pd.DataFrame:
    """Rows whose labels depend on nothing; half of them for training, four tenths for the test."""
    draw = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "clicked": draw.integers(0, 2, rows),
            "user": draw.zipf(1.3, rows) % 4000,
            "item": draw.integers(0, 500, rows),
            "tags": [f"t{a}|t{b}" for a, b in draw.integers(0, 40, (rows, 2))],
            "price": draw.normal(size=rows).round(3),
            "part": draw.choice(["train", "val", "test"], rows, p=[0.5, 0.1, 0.4]),
        }
    )


def schema(numeric: list[str]) -> dict[str, Any]:
    """Every kind of feature, with all that is learnt of their values before training."""
    return {
        "label": "clicked",
        "categorical": ["user", "item"],
        "multi_valued": {"tags": "|"},
        "crosses": {"pair": ["user", "item"]},
        "buckets": {"price": 8},
        "numeric": dict.fromkeys(numeric, "standard"),
        "columns": {"user": {"max_vocabulary": 1000}, "pair": {"min_count": 2}},
        "split": {"column": "part"},
    }


def inject(scale: Scale, folder: Path) -> Tally:
    """Five seeds of noise by full and, but where quick, strategies that go by frequency; then held-out rows change."""
    tally, rows = Tally(), scale.of(24_000, 40_000)
    strategies = ["full"] if scale.name == "quick" else ["full", "cafe", "dnis", "mixed_dimension"]
    leaked = _test_auc(_leaking(noise(rows, 0)), ["price", "leak"], "full", 0, folder)
    if leaked < 0.5 + 3 * TOLERANCE:
        tally.breach(f"the canary is deaf: a leak gives an AUC of {leaked:.3f}")
    for strategy in strategies:
        found = [_test_auc(noise(rows, seed), ["price"], strategy, seed, folder) for seed in range(SEEDS)]
        for value in found:
            tally.injected += 1
            honest = abs(value - 0.5) <= TOLERANCE
            tally.detected += honest
            tally.silent += not honest
        tally.note(
            f"{strategy}: test AUC of noise {', '.join(f'{one:.3f}' for one in found)}; with a leak {leaked:.3f}"
        )
    for change in (_without, _other, _more):
        tally.injected += 1
        same = encoder_files(noise(4000, 1), folder / "one") == encoder_files(change(noise(4000, 1)), folder / "two")
        tally.detected += same
        tally.silent += not same
    if encoder_files(noise(4000, 1), folder / "one") == encoder_files(noise(4000, 2), folder / "two"):
        tally.breach("an encoder that no row changes")
    return tally


def encoder_files(frame: pd.DataFrame, folder: Path) -> dict[str, bytes]:
    """All that prediction takes from the training rows."""
    dataset = _prepared(frame, ["price"], folder)
    return {path.name: path.read_bytes() for path in sorted((dataset.path / "encoder").iterdir())}


def _prepared(frame: pd.DataFrame, numeric: list[str], folder: Path) -> EncodedDataset:
    return prepare(frame, schema(numeric), fresh(folder) / "data")


def _test_auc(frame: pd.DataFrame, numeric: list[str], strategy: str, seed: int, folder: Path) -> float:
    dataset = _prepared(frame, numeric, folder / "noise")
    config: Config = configured(
        seed,
        embedding={"strategy": strategy, "budget": None if strategy == "full" else 0.5},
        training={"epochs": 2},
    )
    model = build_recommender(config, dataset.features, len(dataset.dense))
    train(model, dataset, config.training, progress=False)
    return auc(dataset.labels("test"), predict(model, dataset, "test", 4096))


def _leaking(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(leak=frame.groupby(["user", "item"]).clicked.transform("mean"))


def _without(frame: pd.DataFrame) -> pd.DataFrame:
    """Of the test rows two of each label alone."""
    test = frame[frame.part == "test"]
    return pd.concat([frame[frame.part != "test"], test.groupby("clicked").head(2)])


def _other(frame: pd.DataFrame) -> pd.DataFrame:
    """Held-out rows with other values in all columns, many of them new or extreme."""
    held = frame.part != "train"
    out = frame.astype({"user": object, "item": object})
    out.loc[held, "user"] = [f"new {i % 7}" for i in range(int(held.sum()))]
    out.loc[held, "item"] = 0
    out.loc[held, "tags"] = "new|t1|t1"
    out.loc[held, "price"] = 1e6
    out.loc[held, "clicked"] = 1 - out.loc[held, "clicked"]
    return out


def _more(frame: pd.DataFrame) -> pd.DataFrame:
    """Every test row three times."""
    return pd.concat([frame, *[frame[frame.part == "test"]] * 2])
