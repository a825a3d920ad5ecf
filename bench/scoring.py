"""Scoring raw rows with each strategy's shipped model: rows a second, and how long one row takes.

    python bench/scoring.py [--quick] [--json FILE]

What is timed is what users call: ``recsys_embed.load(folder).predict(frame)`` of a data frame of text and numbers,
whose columns become ids, vectors and probabilities; ``recsys-embed predict`` does so chunk by chunk. Rows are in the
shape of Criteo's, 13 numbers and 26 categories; the model is a DCN-v2 with vectors of width 16, untrained, and every
strategy but full keeps a tenth of the bytes. ``encoding`` is the part that all of them have in common, raw rows to ids.
``MLflow`` is the model of full tables loaded by ``mlflow.pyfunc``, where that is installed, which checks the rows
against the model's signature first. All are measured in one process and take turns; a turn answers one batch, and the
requests for single rows.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.harness.command import command
from bench.harness.setting import facts, heading

BATCH = 4096
WARM_UP = 5

Score = Callable[[Any], Any]
"""A data frame of raw rows to what is asked of it."""


def main() -> None:
    command(__doc__, "fewer rows to build the vocabulary from, fewer requests", lambda quick: run(quick=quick), table)


def run(*, quick: bool) -> dict[str, Any]:
    from bench.harness.criteo import CATEGORICAL, NUMERIC, prepared
    from recsys_embed.data.readers import read_frames

    rows, turns, requests = (20_000, 3, 10) if quick else (1_000_000, 9, 100)
    with tempfile.TemporaryDirectory() as home:
        config, dataset = prepared(Path(home), rows)
        frame = next(read_frames(config.path, [*CATEGORICAL, *NUMERIC], separator="\t", chunk_rows=2 * BATCH))
        frame = frame.astype(dict.fromkeys(NUMERIC, "float64"))
        scores = scorers(dataset, config, Path(home) / "models")
        return {
            **facts("numpy", "pandas", "pyarrow", "mlflow-skinny"),
            "setting": {
                "rows": sum(feature.size for feature in dataset.features),
                "batch": BATCH,
                "turns": turns,
                "requests": turns * requests,
            },
            "cells": measure(scores, frame, turns, requests),
        }


def scorers(dataset: Any, data: Any, home: Path) -> dict[str, Score]:
    """Encoding alone, each strategy's loaded model by name, and the first one's under MLflow."""
    from bench.harness.strategies import config_of, model_of, strategies
    from recsys_embed.export import export, load

    found: dict[str, Score] = {"encoding": dataset.encoder.encode}
    for name, embedding in strategies().items():
        config = config_of(embedding, BATCH).model_copy(update={"data": data})
        folder = home / name
        export(model_of(config, dataset.features, len(dataset.dense)), config, dataset.encoder, folder)
        found[name] = load(folder).predict
        if name == "full" and (served := _mlflow(folder)) is not None:
            found["full, MLflow"] = served
    return found


def _mlflow(folder: Path) -> Score | None:
    from recsys_embed.errors import ConfigError
    from recsys_embed.mlflow_model import save_mlflow_model

    out = folder.with_name("mlflow")
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    try:
        save_mlflow_model(folder, out)
    except ConfigError:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow warns about its own type hints
        from mlflow.pyfunc import load_model

        predict: Score = load_model(str(out)).predict
    return predict


def measure(scores: Mapping[str, Score], frame: Any, turns: int, requests: int) -> list[dict[str, Any]]:
    """A line for each scorer, of batches and of single rows from all over the frame."""
    size = min(BATCH, len(frame))
    batches = [frame.iloc[:size], frame.iloc[len(frame) - size :]]
    singles = [frame.iloc[n : n + 1] for n in range(0, len(frame), max(len(frame) // requests, 1))][:requests]
    batch_seconds: dict[str, list[float]] = {name: [] for name in scores}
    single_seconds: dict[str, list[float]] = {name: [] for name in scores}
    for score in scores.values():
        for row in singles[:WARM_UP]:
            seconds(score, row)
        seconds(score, batches[0])
    for turn in range(turns):
        for name, score in scores.items():
            batch_seconds[name].append(seconds(score, batches[turn % 2]))
            single_seconds[name] += [seconds(score, row) for row in singles]
    return [{"scorer": name, **summary(size, batch_seconds[name], single_seconds[name])} for name in scores]


def seconds(score: Score, rows: Any) -> float:
    """How long an answer takes."""
    began = time.perf_counter()
    score(rows)
    return time.perf_counter() - began


def summary(size: int, batches: list[float], singles: list[float]) -> dict[str, Any]:
    """Rows a second of batches, with the range, and milliseconds of single rows: the median and the 99th percentile,
    which is the nearest rank."""
    ranked = sorted(singles)
    return {
        "rows_per_second": round(size / statistics.median(batches)),
        "range": [round(size / max(batches)), round(size / min(batches))],
        "single_row_ms": round(1e3 * statistics.median(singles), 3),
        "single_row_p99_ms": round(1e3 * ranked[-(-99 * len(ranked) // 100) - 1], 3),
    }


def table(result: Mapping[str, Any]) -> str:
    lines = [*heading(result), ""]
    lines.append(f"{'':<17}{'rows/s':>10}{'range':>20}{'one row, ms':>13}{'p99, ms':>10}")
    for one in result["cells"]:
        low, high = one["range"]
        lines.append(
            f"{one['scorer']:<17}{one['rows_per_second']:>10,}{f'{low:,}–{high:,}':>20}{one['single_row_ms']:>13.2f}"
            f"{one['single_row_p99_ms']:>10.2f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
