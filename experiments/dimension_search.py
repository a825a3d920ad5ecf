"""A dimension search at several budgets and on several random splits, and one table of what it came to.

    python -m experiments.dimension_search CONFIG --out DIR [--splits N] [--set A.B=VALUE]

Run from a checkout. ``recsys-embed search CONFIG`` at each of the budgets in ``study.budgets`` and, with ``--splits``,
once for each ``data.split.seed``, into a folder each under DIR, which keeps what is done. Then ``results.csv`` with the
finals of all, and ``summary.md``: for each budget and method the mean test AUC ± standard deviation over seeds and
splits, the difference to ``uniform`` with a paired bootstrap interval where that fits, and what the search cost.

The bootstrap resamples test rows where there is one split, and splits where there are several: their test rows overlap.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from recsys_embed import jobs
from recsys_embed.cli import exit_codes
from recsys_embed.config import Config, load_config
from recsys_embed.files import atomic_write
from recsys_embed.report.results import format_results, read_results
from recsys_embed.report.statistics import Interval
from recsys_embed.report.summary import summarise as sections_of
from recsys_embed.search.table import read_search

BASELINE, RESAMPLES = "uniform", 1000


def main() -> None:
    """Search everywhere, then summarise."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, metavar="CONFIG")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--splits", type=int, default=1, metavar="N", help="data.split.seed from 0 to N - 1")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="override a key of the config")
    given = parser.parse_args()
    with exit_codes():
        config = load_config(given.config, tuple(given.set))
        folders = [
            (budget, split, given.out / f"{budget}-{split}")
            for split in range(given.splits)
            for budget in config.study.budgets
        ]
        for budget, split, folder in folders:
            jobs.search(at(config, budget, split), folder, progress=False)
        summarise(folders, given.out)
        print(given.out / "summary.md")


def at(config: Config, budget: float | str, split: int) -> Config:
    """The config of one search."""
    data = config.data.model_copy(update={"split": config.data.split.model_copy(update={"seed": split})})
    embedding = config.embedding.model_copy(update={"budget": budget})
    return config.model_copy(update={"data": data, "embedding": embedding})


def summarise(folders: Sequence[tuple[float | str, int, Path]], out: Path) -> None:
    """Write ``results.csv`` and ``summary.md``."""
    finals = pd.concat([read_results(folder / "results.csv").assign(at=str(b), split=s) for b, s, folder in folders])
    trials = pd.concat([read_search(folder).assign(at=str(budget), split=split) for budget, split, folder in folders])
    atomic_write(out / "results.csv", format_results(finals.drop(columns=["at", "split"])))
    several = finals["split"].nunique() > 1
    lines = [
        f"| budget | method | test AUC | − {BASELINE} | serving bytes | samples, all trials | wall seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for budget in dict.fromkeys(str(budget) for budget, _, _ in folders):
        mine = finals[finals["at"] == budget]
        for method in mine["found_by"].unique():
            runs = mine[mine["found_by"] == method]
            tried = trials[(trials["at"] == budget) & (trials["method"] == str(method).split(",")[0])]
            (folder, *_) = [folder for asked, _, folder in folders if str(asked) == budget]
            told = ""
            if method != BASELINE and BASELINE in set(mine["found_by"]):
                found = across_splits(mine, method) if several else across_rows(folder, method)
                told = f"{found.estimate:+.4f} [{found.low:+.4f}, {found.high:+.4f}]"
            lines.append(
                f"| {budget} | {method} | {runs['test_auc'].mean():.4f} ± {runs['test_auc'].std():.4f} | {told} "
                f"| {runs['serve_bytes'].mean():,.0f} | {tried['samples_seen'].sum():,.0f} "
                f"| {tried['wall_seconds'].sum():,.0f} |"
            )
        lost = trials[(trials["at"] == budget) & (trials["status"] == "infeasible")]
        lines += [f"| {budget} | {method} | infeasible | | | | |" for method in lost["method"].unique()]
    atomic_write(out / "summary.md", "\n".join(lines) + "\n")


def across_splits(runs: pd.DataFrame, method: str) -> Interval:
    """The mean difference to the baseline over splits, each with the mean of its seeds; splits are resampled."""
    means = runs.groupby(["found_by", "split"])["test_auc"].mean()
    differences = (means[method] - means[BASELINE]).to_numpy()
    draws = np.random.default_rng(0).choice(differences, (RESAMPLES, len(differences))).mean(1)
    low, high = np.quantile(draws, (0.025, 0.975))
    return Interval(float(differences.mean()), float(low), float(high))


def across_rows(folder: Path, method: str) -> Interval:
    """The difference to the baseline of the mean over seeds; test rows are resampled, the same for both."""
    (section,) = sections_of(folder)
    cells = {cell.method: cell for cell in section.cells}
    return section.difference(cells[method], cells[BASELINE])


if __name__ == "__main__":
    main()
