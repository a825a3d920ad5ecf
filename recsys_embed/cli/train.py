"""``recsys-embed train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recsys_embed.cli.configs import read_config
from recsys_embed.cli.exits import exit_codes
from recsys_embed.cli.options import FromRun, Json, Out, Quiet, Set
from recsys_embed.cli.printing import print_json, print_table
from recsys_embed.cli.unbuilt import not_built


def train(
    config: Annotated[Path | None, typer.Argument(metavar="CONFIG", help="A TOML config.")] = None,
    out: Out = None,
    from_run: FromRun = None,
    overrides: Set = None,
    as_json: Json = False,
    quiet: Quiet = False,
    continue_from: Annotated[Path | None, typer.Option("--continue", metavar="MODEL", help="Not built yet.")] = None,
    data: Annotated[Path | None, typer.Option("--data", metavar="NEW", help="Not built yet.")] = None,
) -> None:
    """Train one model: prepare, train, evaluate, export, track. The same command goes on with an interrupted one.

    Under torchrun, on all of its processes: tables are sharded over them, and the first one writes.
    """
    with exit_codes(quiet=quiet, several=True):
        if continue_from is not None or data is not None:
            not_built("train --continue", "`train CONFIG` trains a model from the beginning")
        loaded = read_config(config, overrides, from_run=from_run)
        from recsys_embed import jobs, ranks

        folder = out or Path(f"train-{config.stem if config else from_run}")
        with ranks.joined(loaded.training.device, timeout=loaded.sharding.timeout_seconds):
            model, trained = jobs.train(loaded, folder, progress=not quiet)
            if ranks.own():
                return
        row = trained.row
        if as_json:
            print_json({"model_dir": str(model), **row, "history": trained.result.history})
            return
        shown = ("strategy", "budget_requested", "serve_bytes", "val_auc", "test_auc", "test_logloss", "epochs")
        print_table([{name: row[name] for name in shown}])
        print(model)
