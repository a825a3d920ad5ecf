"""Studies with a planted answer: scores are drawn so that the true AUC of every method is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from recsys_embed.report.results import BUCKETS, RESULTS, write_predictions, write_results
from recsys_embed.training.metrics import auc

FULL_BYTES = 11_000_000
PARTS = {"user": 0.53, "item": 0.27, "shop": 0.1, "tags": 0.05, "city": 0.03, "hour": 0.015, "os": 0.004, "day": 0.001}
PROTOCOL = {
    "training": {
        "batch_size": 4096,
        "epochs": 6,
        "patience": 1,
        "monitor": "auc",
        "clip_norm": None,
        "optimizer": {"tables": "rowwise_adagrad", "tables_lr": 0.05, "dense": "adam", "dense_lr": 0.001},
    },
    "model": {"name": "dcn_v2", "dim": 16, "cross_layers": 2, "hidden": [256, 128], "dropout": 0.0},
    "rows": {"train": 240_000, "val": 30_000, "test": 30_000},
    "split": {"random": [0.8, 0.1, 0.1], "seed": 0},
}
VERSIONS = {
    "recsys_embed": "0.1.0",
    "python": "3.11.9",
    "torch": "2.13.0",
    "numpy": "2.4.6",
    "machine": "x86_64, 2 CPUs",
}


@dataclass(frozen=True)
class Method:
    """``loss`` is how much signal a budget takes away; ``settings`` and ``tuning`` as in results.csv."""

    strategy: str
    loss: dict[str, float]
    settings: dict[str, Any] | None = None
    status: dict[str, str] | None = None
    error: str = ""
    coarse: bool = False
    tuning: dict[str, Any] | None = None


METHODS = (
    Method("full", {"": 0.0}),
    Method("hash", {"0.5": 0.06, "0.1": 0.22, "0.02": 0.42}),
    Method("unified", {"0.5": 0.0, "0.1": 0.03, "0.02": 0.12}),
    Method(
        "compositional",
        {"0.5": 0.01, "0.1": 0.04, "0.02": 0.0},
        status={"0.02": "infeasible"},
        coarse=True,
        error="compositional needs at least 301,440 bytes for these features; nearest feasible budget: 301440 bytes",
    ),
)


def write_study(
    folder: Path,
    methods: Sequence[Method] = METHODS,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    rows: int = 4000,
    seed_sd: float = 0.01,
    own_sd: float = 0.25,
    bayes: bool = True,
    parts: dict[str, float] | None = None,
    predictions: bool = True,
    **columns: Any,
) -> list[dict[str, Any]]:
    """Write results.csv and predictions of a study; return the rows."""
    truth = np.random.default_rng(7)
    label = (truth.random(rows) < 0.35).astype(np.int8)
    common = truth.normal(size=rows)
    rare = np.sort(truth.random(rows))
    truth.shuffle(rare)
    bucket = np.digitize(rare, [0.33, 0.66, 0.95]).astype(np.int8)
    out = []
    for place, method in enumerate(methods):
        for budget, loss in method.loss.items():
            kept = float(budget) if budget else 1.0
            for seed in seeds:
                generator = np.random.default_rng([place, int(1000 * kept), seed])
                status = (method.status or {}).get(budget, "ok")
                run = f"{method.strategy}-{place}-{budget or 'full'}-{seed}"
                row: dict[str, Any] = {
                    "dataset": "planted",
                    "fingerprint": "9f2c51d07ab4e83c",
                    "model": "dcn_v2",
                    "dim": 16,
                    "strategy": method.strategy,
                    "settings": method.settings or {},
                    "budget_requested": budget,
                    "seed": seed,
                    "run": run,
                    "status": status,
                    "error": method.error if status != "ok" else "",
                    "tuned": method.tuning is not None,
                    "tuning": method.tuning or {},
                    "protocol": PROTOCOL,
                    "versions": VERSIONS,
                    "bayes_auc": 0.797 if bayes else None,
                } | columns
                if status == "ok":
                    signal = 1.15 - loss * (0.4 + 1.6 * rare) + seed_sd * generator.normal()
                    logit = -0.9 + signal * label + common * 0.95 + own_sd * generator.normal(size=rows)
                    score = (1 / (1 + np.exp(-logit))).astype(np.float32)
                    size = int(FULL_BYTES * kept * (0.9 if method.coarse else 0.995)) if budget else FULL_BYTES
                    row |= {
                        "budget_bytes": int(FULL_BYTES * kept) if budget else None,
                        "kept_fraction": kept if budget else None,
                        "full_bytes": FULL_BYTES,
                        "serve_bytes": size,
                        "host_bytes": 2_300_000,
                        "train_bytes": size * 1.3,
                        "checkpoint_bytes": size * 1.1,
                        "coarse": method.coarse,
                        "epochs": 3,
                        "best_epoch": 2,
                        "test_auc": auc(label, score),
                        "val_auc": auc(label, score),
                        "test_logloss": 0.52 + loss,
                        "test_ne": 0.81 + loss,
                        "test_calibration": 1.01 - loss / 10,
                        **{
                            f"auc_{name}": auc(label[bucket == number], score[bucket == number])
                            for number, name in enumerate(BUCKETS)
                        },
                        "samples_seen": 720_000,
                        "wall_seconds": 9.5 + place,
                        "peak_rss_bytes": 900_000_000,
                        "train_samples_per_second": 210_000 * (1 - 0.12 * place) * (1.1 - 0.1 * kept),
                        "predict_microseconds_per_row": 2.1 + 0.4 * place - 0.3 * (1 - kept),
                        "latency_single_row_microseconds": 500 + 100 * place + 7 * seed**3,
                        "predict_rows_per_second": 400_000 / (1 + place) - 10_000 * seed**3,
                        "serving": {"processor": "Example CPU", "threads": 1, "batch": 4096, "requests": 100},
                        "parts": _parts(method, size, parts or PARTS),
                    }
                    row["train_bytes"], row["checkpoint_bytes"] = int(row["train_bytes"]), int(row["checkpoint_bytes"])
                    if predictions:
                        write_predictions(folder, run, row=np.arange(rows), label=label, score=score, bucket=bucket)
                out.append(row)
    folder.mkdir(parents=True, exist_ok=True)
    write_results(folder / RESULTS, out)
    return out


def _parts(method: Method, size: int, parts: dict[str, float]) -> dict[str, int]:
    if method.strategy == "unified":
        return {"unified, shared by 6 features": int(size * 0.98), "os": int(size * 0.015), "day": int(size * 0.005)}
    return {name: int(size * share) for name, share in parts.items()}


@pytest.fixture(scope="session")
def study() -> SimpleNamespace:
    """``write`` a study of ``Method``s; ``METHODS`` are the default ones."""
    return SimpleNamespace(write=write_study, Method=Method, METHODS=METHODS, FULL_BYTES=FULL_BYTES)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with its page, not to be changed."""
    from recsys_embed.report.page import write_page

    path = tmp_path_factory.mktemp("study")
    write_study(path, rows=1500)
    write_page(path)
    return path
