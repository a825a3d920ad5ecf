"""Samplers and pruners of a search, on data whose best widths are known and on Zipf-distributed data.

    python bench/search.py [--quick] [--json FILE]

``ranks``: labels from four features of 40 ids, whose effects have the ranks 16, 2, 2 and 0; the budget is a twentieth
above these widths. ``planted``: ten features of 10 to 20,000 ids (``recsys_embed.planted``) at a tenth of the bytes.
Every sampler and every pruner gets the same number of trials with the same seeds; what is compared are the best
validation AUC, the samples that the trials read, and how many trials were left out since another had the same widths.
No clock is read: the numbers are the same on any machine, up to rounding.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.harness.command import command
from bench.harness.setting import facts
from recsys_embed.config import Config, parse_config
from recsys_embed.data import prepare
from recsys_embed.search.samplers import open_study
from recsys_embed.search.slots import standing
from recsys_embed.search.space import Space
from recsys_embed.search.trials import ROW, SAME, Trials

SAMPLERS = ("random", "tpe", "gp")
PRUNERS = ("none", "median", "hyperband")
RANKS = {"all": range(16), "first": range(2), "second": range(2, 4), "noise": range(0)}
IDS, DIM = 40, 16


def main() -> None:
    def measured(quick: bool) -> dict[str, Any]:
        torch.set_num_threads(1)
        return run(seeds=1 if quick else 5, trials=20 if quick else 30, rows=8_000 if quick else 24_000)

    command(__doc__, "one seed, fewer trials, a third of the rows", measured, table)


def run(*, seeds: int, trials: int, rows: int) -> dict[str, Any]:
    ways = [(sampler, "none") for sampler in SAMPLERS] + [("gp", pruner) for pruner in PRUNERS if pruner != "none"]
    cells = []
    with tempfile.TemporaryDirectory() as folder:
        for problem, config in problems(Path(folder), rows).items():
            for sampler, pruner in ways:
                found = [search(config, Path(folder) / problem, sampler, pruner, trials, seed) for seed in range(seeds)]
                cells.append({"problem": problem, "sampler": sampler, "pruner": pruner, **summary(found)})
                print(line(cells[-1]), file=sys.stderr, flush=True)
    return {**facts(), "setting": {"trials": trials, "seeds": seeds, "rows": rows}, "cells": cells}


def problems(folder: Path, rows: int) -> dict[str, Config]:
    """The configs of both, whose data are written into ``folder``."""
    training = {"batch_size": 256, "epochs": 6, "patience": 1, "threads": 1}
    numeric = [f"x{place}" for place in range(DIM)]
    ranked(rows).to_csv(folder / "ranks.csv", index=False)
    # Rows and a projection of each width, a row more than ids for those that are unseen, and a twentieth more.
    budget = 4.2 * sum((IDS + 1) * len(r) + (len(r) * DIM if len(r) < DIM else 0) for r in RANKS.values())
    return {
        "ranks": parse_config(
            {
                "data": {"path": str(folder / "ranks.csv"), "categorical": list(RANKS), "numeric": numeric},
                "model": {"name": "dlrm", "dim": DIM, "bottom": [DIM], "top": [16]},
                "embedding": {"budget": int(budget), "exact": []},
                "training": {**training, "optimizer": {"tables": "adagrad", "tables_lr": 0.1, "dense_lr": 0.003}},
                "tracking": {"enabled": False},
            }
        ),
        "planted": parse_config(
            {
                "data": {
                    "planted": {
                        "rows": 2 * rows,
                        "cardinalities": [20_000, 10_000, 5_000, 2_000, 1_000, 500, 200, 100, 50, 10],
                    }
                },
                "model": {"name": "dcn_v2", "dim": DIM, "hidden": [32]},
                "embedding": {"budget": 0.1},
                "training": {**training, "batch_size": 1024, "optimizer": {"tables_lr": 0.2}},
                "tracking": {"enabled": False},
            }
        ),
    }


def ranked(rows: int) -> pd.DataFrame:
    """Labels from the sum of ⟨e(id), x⟩ over features, where e is zero but in a feature's own dimensions."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(rows, DIM)).round(4)
    ids = {name: rng.integers(0, IDS, rows) for name in RANKS}
    logit = np.zeros(rows)
    for name, dimensions in RANKS.items():
        effects = np.zeros((IDS, DIM))
        effects[:, list(dimensions)] = rng.choice([-0.5, 0.5], (IDS, len(dimensions)))
        logit += (effects[ids[name]] * x).sum(1)
    label = (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(int)
    return pd.DataFrame({**ids, **{f"x{place}": x[:, place] for place in range(DIM)}, "label": label})


def search(config: Config, out: Path, sampler: str, pruner: str, trials: int, seed: int) -> dict[str, Any]:
    """One search: a study of its own. Equal trainings of all searches of a problem are done once, but for those that
    a pruner could have stopped."""
    storage = out / f"{sampler}-{pruner}-{seed}.journal"
    told = {"sampler": sampler, "pruner": pruner, "trials": trials, "seed": seed, "storage": str(storage)}
    config = config.model_copy(update={"search": config.search.model_copy(update=told)})
    dataset = prepare(config.data, out / "data")
    out = out if pruner == "none" else out / f"{pruner}-{seed}"
    study = open_study(config, "optuna", dataset.fingerprint, out)
    Trials(config, "optuna", Space.of(config, dataset.features), dataset, out, study, progress=False).run()
    ended = list(standing(study).values())
    rows = [trial.user_attrs[ROW] for trial in ended]
    best = max((row for row in rows if row["status"] == "ok"), key=lambda row: row["val_auc"])
    widths = {name: one["weights_per_id"][0] for name, one in best["allocation"].items()}
    return {
        "val_auc": best["val_auc"],
        "samples_seen": sum(row["samples_seen"] for row in rows),
        "pruned": sum(row["status"] == "pruned" for row in rows),
        "same": sum(SAME in trial.user_attrs for trial in ended),
        "exact": widths == {name: len(ranks) for name, ranks in RANKS.items()},
    }


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    aucs = [one["val_auc"] for one in found]
    means = {name: statistics.mean(one[name] for one in found) for name in ("samples_seen", "pruned", "same")}
    return {
        "val_auc": statistics.mean(aucs),
        "sd": statistics.stdev(aucs) if len(aucs) > 1 else 0.0,
        "worst": min(aucs),
        "exact": sum(one["exact"] for one in found),
        **means,
    }


def table(result: dict[str, Any]) -> str:
    head = (
        f"{'problem':9}{'sampler':18}{'pruner':11}{'best val AUC':>15}{'worst':>9}{'exact':>7}{'million samples':>17}"
        f"{'pruned':>8}{'same':>6}"
    )
    lines = [f"{result['date']}  {result['machine']}  {result['versions']}", str(result["setting"]), "", head]
    return "\n".join([*lines, *map(line, result["cells"])])


def line(cell: dict[str, Any]) -> str:
    exact = cell["exact"] if cell["problem"] == "ranks" else ""
    return (
        f"{cell['problem']:9}{cell['sampler']:18}{cell['pruner']:11}{cell['val_auc']:9.4f}±{cell['sd']:.4f}"
        f"{cell['worst']:9.4f}{exact:>7}{cell['samples_seen'] / 1e6:17.2f}{cell['pruned']:8.1f}{cell['same']:6.1f}"
    )


if __name__ == "__main__":
    main()
