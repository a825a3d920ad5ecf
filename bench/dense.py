"""What the precision of the model's products costs and brings: time of a whole training step, and AUC.

    python bench/dense.py [--quick] [--json FILE] [--ratings FILE]

``step``: the trainer's own updates of batches that lie ready, 26 features of 100,000 ids and 13 numbers, Zipf-like ids,
vectors of width 16, full tables by row-wise Adagrad; DCN-v2 and DLRM with their usual layers, whose inputs have 429 and
367 columns. ``auc``: of the validation split, mean and standard deviation over three seeds, by a DCN-v2 of one cross
layer with vectors of width 32: on planted data, two epochs, and, with ``--ratings``, on MovieLens-1M's ratings in
batches of 1024, until an epoch is no better than the one before it. ``unpadded`` is fp32 without the columns of zeros
behind the model's input (:mod:`recsys_embed.models.mlp`), ``compiled`` is ``training.compile``, whose seconds for
compiling are told beside the time of a step, and in none. Ways take turns; medians and ranges, and the ratio to fp32
within each turn.

Batches are made in the training thread, and nothing is prepared ahead: 4096 rows take 1 to 4 % of these steps by the
slower shuffle of ``python bench/loader.py`` (the results of 2026-11-27 of both), which is less than the steps' range.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.harness.command import command
from bench.harness.setting import facts, heading

PRECISIONS = ("fp32", "medium", "bf16")
UNPADDED, COMPILED = "unpadded", ", compiled"
WAYS = (*PRECISIONS, UNPADDED, *(precision + COMPILED for precision in PRECISIONS))
FEATURES, ROWS, NUMBERS, DIM = 26, 100_000, 13, 16
MODELS: Mapping[str, Mapping[str, Any]] = {
    "dcn_v2": {"name": "dcn_v2", "dim": DIM, "cross_layers": 2, "hidden": [256, 128]},
    "dlrm": {"name": "dlrm", "dim": DIM, "bottom": [256, 64], "top": [256, 128]},
}
OPTIMIZER = {"tables": "rowwise_adagrad", "tables_lr": 0.1, "dense": "adam", "dense_lr": 1e-3}
_RATINGS = "MovieLens-1M's ratings with users, as experiments/README.md says"
RATINGS = {
    "label": {"column": "rating", "positive": [4, 5], "negative": [1, 2]},
    "categorical": ["user_id", "movie_id", "gender", "age", "occupation", "zip"],
}


def main() -> None:
    command(__doc__, "few steps, two seeds of fewer planted rows", measured, table, ratings=_RATINGS)


def measured(quick: bool, ratings: Path | None = None) -> dict[str, Any]:
    return {**facts(), "step": steps(quick=quick), "auc": quality(ratings, quick=quick)}


# --- the step ----------------------------------------------------------------------------------------------------


def steps(*, quick: bool) -> list[dict[str, Any]]:
    """Milliseconds of a step of every model and batch size, every way."""
    import torch

    turns, count = (3, 4) if quick else (15, 12)
    found = []
    for name, model in MODELS.items():
        for size in (4096, 1024):
            torch.compiler.reset()
            runs = {way: _run(model, size, way) for way in WAYS}
            seen: dict[str, list[float]] = {way: [] for way in WAYS}
            for turn in range(turns + 1):  # the first one warms up
                for way in WAYS:
                    seen[way].append(runs[way][0](count if turn else 2))
            for way in WAYS:
                times = seen[way][1:]
                ratios = [base / one for base, one in zip(seen["fp32"][1:], times, strict=True)]
                found.append(
                    {
                        "model": name,
                        "batch": size,
                        "way": way,
                        "milliseconds": round(statistics.median(times), 2),
                        "range": [round(min(times), 2), round(max(times), 2)],
                        "speedup": round(statistics.median(ratios), 2),
                        "speedup_range": [round(min(ratios), 2), round(max(ratios), 2)],
                        "compile_seconds": round(getattr(runs[way][1].in_training, "seconds", 0.0), 1),
                    }
                )
    return found


def _run(model: Mapping[str, Any], size: int, way: str) -> tuple[Any, Any]:
    """What runs so many steps and tells their milliseconds, and the recommender."""
    import torch

    from recsys_embed.config import parse_config
    from recsys_embed.data.batches import Batch
    from recsys_embed.features import Feature
    from recsys_embed.ids import Ids
    from recsys_embed.recommender import build_recommender
    from recsys_embed.training.compiling import Compiled
    from recsys_embed.training.optimizers import Optimizers
    from recsys_embed.training.step import step

    config = parse_config(
        {
            "data": {"path": "drawn"},
            "model": dict(model),
            "training": {"batch_size": size, "precision": _precision(way), "optimizer": OPTIMIZER},
        }
    )
    recommender = build_recommender(config, [Feature(f"c{i}", ROWS) for i in range(FEATURES)], NUMBERS)
    _pad(recommender, way)
    if way.endswith(COMPILED):
        recommender.in_training = Compiled(recommender.interaction, size)
    optimizers = Optimizers(recommender, config.training)
    draw = torch.Generator().manual_seed(0)
    batches = [
        Batch(
            Ids((torch.rand(FEATURES, size, generator=draw) ** 4 * ROWS).to(torch.int32), FEATURES),
            torch.randn(size, NUMBERS, generator=draw),
            (torch.rand(size, generator=draw) < 0.3).float(),
        )
        for _ in range(4)
    ]

    def run(count: int) -> float:
        began = time.perf_counter()
        for i in range(count):
            step(recommender, batches[i % len(batches)], optimizers)
        return (time.perf_counter() - began) / count * 1000

    return run, recommender


def _precision(way: str) -> str:
    return "fp32" if way == UNPADDED else way.removesuffix(COMPILED)


def _pad(recommender: Any, way: str) -> None:
    if way == UNPADDED:
        recommender.interaction.padding = 0


# --- the result --------------------------------------------------------------------------------------------------


def quality(ratings: Path | None, *, quick: bool) -> list[dict[str, Any]]:
    """Validation AUC of every data set, every way; MovieLens-1M has a width that needs no padding."""
    rows, seeds = (30_000, 2) if quick else (300_000, 3)
    planted: dict[str, Any] = {"data": {"planted": {"rows": rows}}, "training": {"epochs": 2}}
    real: dict[str, Any] = {
        "data": {"path": str(ratings), **RATINGS},
        "embedding": {"exact": ["gender"]},
        "training": {"batch_size": 1024, "epochs": 10, "patience": 1},
    }
    found = []
    for name, tree, ways in (("planted", planted, WAYS), ("MovieLens-1M", real if ratings else None, PRECISIONS)):
        if tree is None:
            continue
        with tempfile.TemporaryDirectory() as folder:
            for way in ways:
                seen = [_train(tree, way, seed, Path(folder)) for seed in range(seeds)]
                aucs = [auc for auc, _ in seen]
                found.append(
                    {
                        "data": name,
                        "way": way,
                        "val_auc": round(statistics.mean(aucs), 5),
                        "deviation": round(statistics.stdev(aucs), 5),
                        "samples_per_second": round(statistics.median(speed for _, speed in seen)),
                    }
                )
    return found


def _train(tree: Mapping[str, Any], way: str, seed: int, folder: Path) -> tuple[float, float]:
    from recsys_embed.config import parse_config
    from recsys_embed.data import prepare
    from recsys_embed.recommender import build_recommender
    from recsys_embed.training.trainer import train

    training = {"optimizer": OPTIMIZER, **tree["training"], "precision": _precision(way), "seed": seed}
    training["compile"] = way.endswith(COMPILED)
    config = parse_config(
        {
            **tree,
            "model": {"name": "dcn_v2", "dim": 32, "cross_layers": 1, "hidden": [192]},
            "embedding": {**tree.get("embedding", {}), "seed": seed},
            "training": training,
        }
    )
    dataset = prepare(config.data, folder / "data")
    model = build_recommender(config, dataset.features, len(dataset.dense))
    _pad(model, way)
    result = train(model, dataset, config.training, progress=False)
    return result.val["auc"], result.train_samples_per_second


def table(result: Mapping[str, Any]) -> str:
    lines = [*heading(result), ""]
    lines.append(
        f"{'model':<8}{'batch':>6}  {'way':<18}{'ms':>8}{'range':>18}{'speed-up':>10}{'range':>14}{'compiled in':>14}"
    )
    for one in result["step"]:
        times, speeds = ("–".join(f"{x:.2f}" for x in one[key]) for key in ("range", "speedup_range"))
        lines.append(
            f"{one['model']:<8}{one['batch']:>6}  {one['way']:<18}{one['milliseconds']:>8.2f}{times:>18}"
            f"{one['speedup']:>10.2f}{speeds:>14}{one['compile_seconds'] or '':>14}"
        )
    lines += ["", f"{'data':<14}{'way':<18}{'val AUC':>9}{'±':>9}{'samples/s':>12}"]
    for one in result["auc"]:
        lines.append(
            f"{one['data']:<14}{one['way']:<18}{one['val_auc']:>9.4f}{one['deviation']:>9.4f}"
            f"{one['samples_per_second']:>12,}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
