"""``recsys-embed prepare``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recsys_embed.cli.configs import data_name, read_config
from recsys_embed.cli.exits import exit_codes
from recsys_embed.cli.options import ConfigArgument, Json, Out, Quiet, Set
from recsys_embed.cli.printing import print_json, print_table

if TYPE_CHECKING:
    from recsys_embed.config import DataConfig

Workers = Annotated[
    int | None, typer.Option("--workers", metavar="N", min=1, help="Processes; one a core, if there is work for them.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Estimate time and space from the first rows.")]


def prepare(
    config: ConfigArgument,
    out: Out = None,
    overrides: Set = None,
    workers: Workers = None,
    dry_run: DryRun = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Encode raw rows into a data set. The same command goes on where it was interrupted.

    A column gets a vocabulary, or with data.raw_hash (or columns.NAME.raw_hash) none: its ids are hashes then, and its
    cardinality is not known.
    """
    from recsys_embed.data import prepare as encode

    with exit_codes(quiet=quiet):
        loaded = read_config(config, overrides)
        folder = out or Path(f"data-{data_name(loaded)}")
        if dry_run:
            _estimate(loaded.data, folder, workers, as_json)
            return
        dataset = encode(loaded.data, folder, workers=workers, progress=not quiet)
        rows = {split: dataset.rows(split) for split in ("train", "val", "test")}
        features = [
            {"feature": one.name, "cardinality": one.cardinality, **({"hashed": True} if one.hashed else {})}
            for one in dataset.features
        ]
        if as_json:
            told = {"path": str(dataset.path), "fingerprint": dataset.fingerprint, "rows": rows, "features": features}
            print_json({**told, "dropped": dataset.schema["dropped"], "skipped": dataset.schema["skipped"]})
        else:
            print_table(features, list({key: None for one in features for key in one}))
            print(", ".join(f"{count:,} {split}" for split, count in rows.items()), "rows")
            print(dataset.path)


def _estimate(config: DataConfig, out: Path, workers: int | None, as_json: bool) -> None:
    from recsys_embed.data.estimate import estimate

    found = estimate(config, out, workers=workers)
    if as_json:
        print_json(asdict(found))
        return
    about = "" if found.exact else "about "
    print(f"{about}{found.rows:,} rows, judged by the first {found.sampled:,}")
    print(f"{found.seconds:,.0f} s on {found.workers} processes, {found.rows_per_second:,.0f} rows/s")
    print(f"{found.bytes / 1e6:,.1f} MB in {out}, and {found.between / 1e6:,.1f} MB beside it until it is done;")
    print(f"{found.free / 1e6:,.0f} MB are free there")
