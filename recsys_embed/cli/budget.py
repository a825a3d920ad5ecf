"""``recsys-embed budget``."""

from __future__ import annotations

from pathlib import Path

from recsys_embed.cli.configs import data_name, read_config
from recsys_embed.cli.exits import exit_codes
from recsys_embed.cli.options import ConfigArgument, Json, Out, Quiet, Set
from recsys_embed.cli.printing import print_json, print_table


def budget(
    config: ConfigArgument, out: Out = None, overrides: Set = None, as_json: Json = False, quiet: Quiet = False
) -> None:
    """What fits every budget of the study, without training."""
    with exit_codes(quiet=quiet):
        loaded = read_config(config, overrides)
        from recsys_embed import jobs
        from recsys_embed.report.study import check_names, prepare_into

        check_names(loaded, loaded.study.strategies)
        dataset = prepare_into(loaded, out or Path(f"report-{data_name(loaded)}"))
        rows = jobs.fits(loaded, dataset.features)
        if as_json:
            print_json(rows)
            return
        for row in rows:
            sizes = row.pop("settings", {})
            row["rows"] = ", ".join(f"{name} {count:,}" for name, count in sizes.items())
        print_table(rows, ("strategy", "budget", "serve_bytes", "kept_fraction", "coarse", "nearest_bytes", "rows"))
