"""``recsys-embed budget``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

from recsys_embed.cli.configs import data_name, read_config
from recsys_embed.cli.exits import exit_codes
from recsys_embed.cli.options import ConfigArgument, Json, Out, Quiet, Set
from recsys_embed.cli.printing import print_json, print_table

SIZES = (
    "strategy", "budget", "serve_bytes", "kept_fraction", "coarse", "nearest_bytes", "smallest_bytes", "rows",
)  # fmt: skip


def budget(
    config: ConfigArgument, out: Out = None, overrides: Set = None, as_json: Json = False, quiet: Quiet = False
) -> None:
    """What fits every budget of the study, without training.

    Expected collisions are shares of training lookups. Merged: the id reads the same rows as a more frequent one of its
    feature, so that no model can tell the two apart. Shared: the part of its rows that a more frequent id reads too, of
    any feature. Head, torso and tail are thirds of each feature's lookups by the frequency of their id.
    Where features have no vocabulary (data.raw_hash), collisions and kept fractions are not measured.
    """
    with exit_codes(quiet=quiet):
        loaded = read_config(config, overrides)
        from recsys_embed import jobs
        from recsys_embed.report.study import check_names, prepare_into

        check_names(loaded, loaded.study.strategies, loaded.study.budgets)
        dataset = prepare_into(loaded, out or Path(f"report-{data_name(loaded)}"))
        rows = jobs.fits(loaded, dataset.features)
        if as_json:
            print_json(rows)
            return
        for row in rows:
            row["rows"] = ", ".join(f"{name} {count:,}" for name, count in row.get("settings", {}).items())
        print_table(rows, SIZES)
        if lines := [line for row in rows for line in _collisions(row)]:
            typer.echo("\nexpected collisions, % of training lookups")
            print_table(lines)
        for told in dict.fromkeys(row["not_measured"] for row in rows if "not_measured" in row):
            typer.echo(f"\nnot measured: {told}")


def _collisions(row: dict[str, Any]) -> list[dict[str, str]]:
    """A line for each kind."""
    return [
        {"strategy": row["strategy"], "budget": row["budget"], "kind": kind}
        | {part: f"{100 * share:.1f}" for part, share in shares.items()}
        for kind, shares in row.get("collisions", {}).items()
    ]
