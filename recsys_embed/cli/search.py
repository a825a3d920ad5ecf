"""``recsys-embed search``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recsys_embed.cli.configs import data_name, read_config
from recsys_embed.cli.exits import exit_codes
from recsys_embed.cli.options import FromRun, Json, Out, Quiet, Set
from recsys_embed.cli.printing import print_json, print_table


def search(
    config: Annotated[Path | None, typer.Argument(metavar="CONFIG", help="A TOML config.")] = None,
    out: Out = None,
    from_run: FromRun = None,
    overrides: Set = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Search widths and strategies within embedding.budget; train, export and report the best of every method.

    The same command goes on with a search that was interrupted, or joins one that runs. Under torchrun all processes
    take part in every trial.
    """
    with exit_codes(quiet=quiet, several=True):
        loaded = read_config(config, overrides, from_run=from_run)
        from recsys_embed import jobs, ranks

        folder = out or Path(f"search-{data_name(loaded)}")
        with ranks.joined(loaded.training.device, timeout=loaded.sharding.timeout_seconds):
            done = jobs.search(loaded, folder, progress=not quiet)
            if ranks.own():
                return
        if as_json:
            print_json(
                {
                    "report": None if done.page is None else str(done.page),
                    "best": None if done.best is None else str(done.best),
                    "model_dir": None if done.model is None else str(done.model),
                    "results": done.results.to_dict(orient="records"),
                    "trials": done.trials.to_dict(orient="records"),
                }
            )
        else:
            shown = ("found_by", "seed", "serve_bytes", "val_auc", "test_auc", "status")
            print_table([{name: row[name] for name in shown} for row in done.results.to_dict(orient="records")])
            for path in (done.best, done.model, done.page):
                if path is not None:
                    print(path)
        raise SystemExit(done.exit_code)
