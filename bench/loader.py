"""How fast the rows of a prepared data set come as batches, beside the fastest training of them.

    python bench/loader.py [--quick] [--json FILE]

Rows in the shape of Criteo's, 13 numbers and 26 categories, are prepared once. Read are epochs of their training split:
``in order``, as for evaluation; ``whole``, permuted as a whole; ``blocks``, shuffled by blocks with room for an eighth
of the rows. Reading includes making the order, reading the file, which is in the system's cache, and the batches;
nothing is done with these. ``training`` are the trainer's own steps on batches that lie ready: a DCN-v2 with vectors of
width 1, one cross layer and no hidden one, which is little more than a logistic regression, on two back ends; and a
small DLRM. All have the same batch size and take turns; reading has one thread, training the machine's cores. Medians
and ranges.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.harness.command import command
from bench.harness.setting import facts, heading

BATCH = 4096
SEVERAL = 8
"""Windows of an epoch by blocks."""


def main() -> None:
    command(__doc__, "200,000 rows and three turns", lambda quick: run(quick=quick), table)


def run(*, quick: bool) -> dict[str, Any]:
    from bench.harness.criteo import prepared

    rows, turns, steps = (200_000, 3, 8) if quick else (8_000_000, 9, 64)
    with tempfile.TemporaryDirectory() as home:
        _, dataset = prepared(Path(home), rows)
        return {
            **facts("numpy", "pyarrow", "fbgemm-gpu-cpu"),
            "setting": {"rows": rows, "batch": BATCH, "turns": turns, "steps": steps, "windows": SEVERAL},
            **compare(dataset, turns, steps),
        }


def compare(dataset: Any, turns: int, steps: int) -> dict[str, Any]:
    """Samples a second of every way to read and of every model, and the slowest shuffle over the fastest model."""
    part = dataset.rows_of("train").nbytes // SEVERAL
    reading = {
        "in order": lambda turn: dataset.batches("train", BATCH),
        "whole": lambda turn: dataset.batches("train", BATCH, shuffle_seed=turn),
        "blocks": lambda turn: dataset.batches("train", BATCH, shuffle_seed=turn, memory=part),
    }
    ready = [batch for batch, _ in zip(dataset.batches("train", BATCH, shuffle_seed=0), range(steps), strict=False)]
    training = {name: _training(dataset, *model) for name, model in MODELS.items()}
    seen: dict[str, list[float]] = {name: [] for name in (*reading, *training)}
    for turn in range(turns + 1):  # the first one warms up
        for name, read in reading.items():
            seen[name].append(rate(lambda _: None, read(turn)))
        for name, train in training.items():
            seen[name].append(rate(train, ready))
    speeds = {name: summary(rates[1:]) for name, rates in seen.items()}
    slowest = min(speeds[name]["samples_per_second"] for name in ("whole", "blocks"))
    fastest = max(speeds[name]["samples_per_second"] for name in training)
    ratios = [
        min(seen["whole"][turn], seen["blocks"][turn]) / max(seen[name][turn] for name in training)
        for turn in range(1, turns + 1)
    ]
    return {
        "reading": {name: speeds[name] for name in reading},
        "training": {name: speeds[name] for name in training},
        "ratio": round(slowest / fastest, 2),
        "ratio_range": [round(min(ratios), 2), round(max(ratios), 2)],
    }


_LOGISTIC = {"name": "dcn_v2", "dim": 1, "cross_layers": 1, "hidden": []}
MODELS: Mapping[str, tuple[Mapping[str, Any], str]] = {
    "like logistic": (_LOGISTIC, "reference"),
    "like logistic, fused": (_LOGISTIC, "fused"),
    "small dlrm": ({"name": "dlrm", "dim": 4, "bottom": [16], "top": [16]}, "fused"),
}


def _training(dataset: Any, model: Mapping[str, Any], backend: str) -> Callable[[Any], None]:
    from recsys_embed.config import parse_config
    from recsys_embed.recommender import build_recommender
    from recsys_embed.training.optimizers import Optimizers
    from recsys_embed.training.step import step

    config = parse_config(
        {
            "data": {"path": "prepared"},
            "model": dict(model),
            "embedding": {"strategy": "hash", "budget": 0.1, "backend": backend},
            "training": {"batch_size": BATCH},
        }
    )
    recommender = build_recommender(config, dataset.features, len(dataset.dense))
    optimizers = Optimizers(recommender, config.training)
    return lambda batch: step(recommender, batch, optimizers) and None


def rate(work: Callable[[Any], None], found: Iterable[Any]) -> float:
    """Samples a second of work on batches, the making of these included."""
    began, samples = time.perf_counter(), 0
    for batch in found:
        work(batch)
        samples += len(batch.label)
    return samples / (time.perf_counter() - began)


def summary(rates: list[float]) -> dict[str, int]:
    """The median and the range."""
    return {
        "samples_per_second": round(statistics.median(rates)),
        "lowest": round(min(rates)),
        "highest": round(max(rates)),
    }


def table(result: Mapping[str, Any]) -> str:
    lines = [*heading(result), ""]
    lines.append(f"{'':<32}{'samples/s':>12}{'range':>26}")
    for kind in ("reading", "training"):
        for name, one in result[kind].items():
            span = f"{one['lowest']:,}–{one['highest']:,}"
            lines.append(f"{kind + ', ' + name:<32}{one['samples_per_second']:>12,}{span:>26}")
    low, high = result["ratio_range"]
    lines += ["", f"the slower shuffle over the fastest training: {result['ratio']:.1f} ({low:.1f}–{high:.1f})"]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
