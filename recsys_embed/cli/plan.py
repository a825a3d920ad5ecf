"""``recsys-embed plan``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recsys_embed.cli.configs import read_config
from recsys_embed.cli.exits import exit_codes
from recsys_embed.cli.options import ConfigArgument, Json, Out, Quiet, Set
from recsys_embed.cli.printing import print_json


def plan(
    config: ConfigArgument,
    world_size: Annotated[int, typer.Option("--world-size", metavar="N", min=1, help="How many ranks.")] = 1,
    device_memory: Annotated[
        str | None, typer.Option("--device-memory", metavar="SIZE", help="What a rank may give, such as 80GB.")
    ] = None,
    out: Out = None,
    overrides: Set = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Which table would lie where on N ranks, without the hardware. Exit code 3 where something does not fit."""
    with exit_codes(quiet=quiet):
        changes = [*(overrides or ()), *([f"sharding.device_memory={device_memory}"] if device_memory else ())]
        loaded = read_config(config, changes)
        from recsys_embed import jobs

        report = jobs.plan(loaded, out or Path(f"train-{config.stem}"), world_size=world_size)
        print_json(report.document()) if as_json else print(report.text())
        if report.trouble:
            raise SystemExit(3)
