"""Ids that come and go: full tables that grow against tables that cannot, and against hashed ones that need not.

    python -m experiments.drift CONFIG --out DIR [--days N] [--rows N] [--lifetime DAYS] [--seeds N] [--set A.B=VALUE]

Run from a checkout. The rows are the planted ones of ``data.planted``, of which a day keeps those whose values are all
alive: every value of the large features lives for ``lifetime`` days from a day of its own, drawn evenly, so that one in
``lifetime`` is new each day and as many have gone; the best possible AUC is known. A model is trained on the rows of
the days before the first, of as many rows as three days have, and then continued every day; after each day it predicts
all rows of the next. Contenders:

- ``full, growing``: every new value gets a row, none is taken back;
- ``full, expiring``: a value that was not seen for three days gives its row up, to a new one;
- ``full, capped``: no vocabulary may have more ids than the largest was born with: who was away longest makes room;
- ``full, frozen``: no new value gets a row;
- ``hash`` and ``unified``: raw values are hashed, no vocabulary, in a quarter and a tenth of the bytes that the full
  tables were born with.

``results.csv`` has a row for every contender, seed and day, ``summary.md`` the means, ``drift.svg`` the picture. What
is done is kept: the same command goes on.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.figure import Figure

from recsys_embed import jobs, nightly
from recsys_embed.cli import exit_codes
from recsys_embed.config import Config, PlantedConfig, load_config
from recsys_embed.data.planted import LABEL, Planted, bayes
from recsys_embed.data.text_hash import hash_text
from recsys_embed.export import Predictor, load
from recsys_embed.files import atomic_write
from recsys_embed.training.metrics import auc, logloss

LASTING = 10_000
"""Features of fewer values keep them all: cities and weekdays do not come and go."""

BIRTH_DAYS = 3
CARDINALITIES = (40_000, 20_000, 10_000, 5_000, 500, 20)
NEVER = 10**9

Settings = tuple[Path, tuple[str, ...]]
"""A config's file, and overrides."""


@dataclass(frozen=True)
class Contender:
    """``growth`` are overrides of every night; ``share`` is that of the full tables' bytes, of hashed ones."""

    name: str
    strategy: str
    growth: tuple[str, ...] = ()
    capped: bool = False
    share: float | None = None


CONTENDERS = (
    Contender("full, growing", "full"),
    Contender("full, expiring", "full", ("growth.expire_after=3",)),
    Contender("full, capped", "full", capped=True),
    Contender("full, frozen", "full", (f"growth.admit_count={NEVER}",)),
    Contender("hash, 0.25", "hash", share=0.25),
    Contender("unified, 0.25", "unified", share=0.25),
    Contender("hash, 0.1", "hash", share=0.1),
    Contender("unified, 0.1", "unified", share=0.1),
)


def main() -> None:
    """All seeds and contenders, then the summary."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, metavar="CONFIG")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--days", type=int, default=10, metavar="N")
    parser.add_argument("--rows", type=int, default=40_000, metavar="N", help="of a day")
    parser.add_argument("--lifetime", type=int, default=10, metavar="DAYS", help="not below --days: none comes back")
    parser.add_argument("--seeds", type=int, default=3, metavar="N")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="override a key of the config")
    given = parser.parse_args()
    if given.lifetime < given.days:
        parser.error(f"--lifetime {given.lifetime}: is below --days {given.days}: values would come back")
    with exit_codes():
        settings = given.config, tuple(given.set)
        found = [
            row
            for seed in range(given.seeds)
            for row in study(settings, given.out / str(seed), seed, given.days, given.rows, given.lifetime)
        ]
        results = pd.DataFrame(found)
        atomic_write(given.out / "results.csv", results.to_csv(index=False))
        atomic_write(given.out / "summary.md", summary(results))
        atomic_write(given.out / "drift.svg", picture(results))
        print(given.out / "summary.md")


# --- rows --------------------------------------------------------------------------------------------------------


def write_days(folder: Path, seed: int, days: int, rows: int, lifetime: int) -> list[Path]:
    """The files of the birth and of the days that follow, one more than there are nights: the last is predicted only.
    Files that are there stay."""
    planted = Planted(PlantedConfig(rows=NEVER, cardinalities=CARDINALITIES, multi_valued=0, numeric=0, seed=seed))
    blocks, files = planted.blocks(), []
    for day in range(days + 1):
        path = folder / ("birth.parquet" if day == 0 else f"day-{day:02d}.parquet")
        files.append(path)
        table = alive(planted, blocks, seed, day, rows * (BIRTH_DAYS if day == 0 else 1), lifetime)
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(table, path.with_suffix(".tmp"))
            path.with_suffix(".tmp").rename(path)
    return files


def alive(planted: Planted, blocks: Iterator, seed: int, day: int, rows: int, lifetime: int) -> pa.Table:  # type: ignore[type-arg]
    """Rows of a day, with the probability of each."""
    found: list[pa.Table] = []
    while sum(len(table) for table in found) < rows:
        block = next(blocks)
        kept = np.ones(len(block.table), bool)
        for name, size in zip(planted.categorical, CARDINALITIES, strict=True):
            if size >= LASTING:
                hashes = hash_text(block.table[name].combine_chunks(), seed)
                age = day + (hashes >> np.uint64(11)).astype(np.float64) / 2**53 * 2 * lifetime
                kept &= np.floor(age / lifetime).astype(int) % 2 == 0
        found.append(block.table.append_column("probability", pa.array(block.probability)).filter(pa.array(kept)))
    return pa.concat_tables(found).slice(0, rows)


# --- nights ------------------------------------------------------------------------------------------------------


def study(
    settings: Settings, folder: Path, seed: int, days: int, rows: int, lifetime: int
) -> Iterator[dict[str, object]]:
    """What every contender predicts of every day but the first."""
    files = write_days(folder, seed, days, rows, lifetime)
    full = 0
    for one in CONTENDERS:
        home = folder / one.name.replace(", ", "-")
        model, _ = jobs.train(born(settings, one, files[0], seed, full), home / "birth", progress=False)
        predictor, growth = load(model), one.growth
        full = full or size_of(predictor)
        if one.capped:
            growth = (f"growth.max_ids={max(feature.size for feature in predictor.encoder.features)}",)
        for day in range(1, days + 1):
            yield {"contender": one.name, "seed": seed, "day": day, **judged(model, files[day])}
            if day < days:
                night = nightly.continue_training(
                    model, files[day], home / f"night-{day:02d}", overrides=growth, progress=False
                )
                model = night.model


def born(settings: Settings, one: Contender, path: Path, seed: int, full: int) -> Config:
    """The config of a contender's first training; ``full`` are the bytes of full tables."""
    own = [f"data.path={path}", f"embedding.strategy={one.strategy}", f"embedding.seed={seed}", f"training.seed={seed}"]
    if one.share is not None:
        own += ["data.raw_hash=true", f"embedding.budget={round(one.share * full)}B"]
    return load_config(settings[0], (*settings[1], *own))


def judged(model: Path, path: Path) -> dict[str, object]:
    """How well a model predicts a day that it has not seen, and how large it is."""
    frame = pd.read_parquet(path)
    predictor = load(model)
    scores = predictor.predict(frame.drop(columns=[LABEL, "probability"])).to_numpy()
    labels = frame[LABEL].to_numpy()
    best = bayes(labels, frame["probability"].to_numpy())
    return {
        "auc": auc(labels, scores),
        "logloss": logloss(labels, scores),
        "best_auc": best["auc"],
        "serve_bytes": size_of(predictor),
    }


def size_of(predictor: Predictor) -> int:
    """Bytes of what is shipped of the embedding layer."""
    return sum(t.numel() * t.element_size() for t in predictor.model.embedding.shipped_state().values())


# --- what it came to ---------------------------------------------------------------------------------------------


def summary(results: pd.DataFrame) -> str:
    """A table of means over seeds, ± their standard deviation."""
    first, last = results["day"].min(), results["day"].max()
    lines = [
        f"| | AUC, day {first} | AUC, day {last} | mean AUC of all days | bytes, day {first} | bytes, day {last} |",
        "|---|---|---|---|---|---|",
    ]
    best = results.drop_duplicates(["seed", "day"]).rename(columns={"best_auc": "auc", "auc": "own"})
    rows = [("the true probabilities", best.assign(serve_bytes=0))]
    rows += [(one.name, results[results["contender"] == one.name]) for one in CONTENDERS]
    for name, mine in rows:
        by_day, by_seed = mine.groupby("day")[["auc", "serve_bytes"]].mean(), mine.groupby("seed")["auc"].mean()
        cells = [f"{by_day['auc'][first]:.4f}", f"{by_day['auc'][last]:.4f}"]
        cells.append(f"{by_seed.mean():.4f} ± {by_seed.std():.4f}")
        cells += [f"{by_day['serve_bytes'][day]:,.0f}" if mine["serve_bytes"].any() else "" for day in (first, last)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def picture(results: pd.DataFrame) -> str:
    """AUC of each next day, means over seeds, as SVG."""
    figure = Figure(figsize=(8, 4), layout="constrained")
    ax = figure.add_subplot()
    colours = ("#1b4f8a", "#3f86c6", "#7fb2dd", "#9aa3ad", "#a8561a", "#2f7d46", "#d9925a", "#7fbf8f")
    for one, colour in zip(CONTENDERS, colours, strict=True):
        means = results[results["contender"] == one.name].groupby("day")["auc"].mean()
        ax.plot(means.index, means, color=colour, linewidth=1.8, label=one.name)
    ax.set_title("AUC on the next day", loc="left")
    ax.set_xlabel("day that is predicted")
    ax.spines[["top", "right"]].set_visible(False)
    ax.grid(True, axis="y", color="#e3e6ea")
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False)
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


if __name__ == "__main__":
    main()
