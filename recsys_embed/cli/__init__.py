"""The commands: thin. What is printed goes to standard output, progress and logs to standard error.

Torch and pandas take seconds to import: commands import what they need themselves, when they run.
"""

from __future__ import annotations

import atexit
import gc
import signal
from typing import NoReturn

import typer

from recsys_embed.cli import (
    budget,
    catalogue,
    doctor,
    download,
    export,
    forget,
    inspect,
    plan,
    predict,
    prepare,
    publish,
    report,
    search,
    train,
)
from recsys_embed.cli.configs import data_name
from recsys_embed.cli.exits import Terminated, exit_codes

__all__ = ["app", "data_name", "exit_codes", "main"]

app = typer.Typer(
    name="recsys-embed",
    help="Embedding tables for recommenders under a byte budget: compress, compare, train, serve.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
# In the order in which `--help` lists them.
for command in (
    doctor.doctor,
    download.download,
    inspect.inspect,
    prepare.prepare,
    train.train,
    report.report,
    search.search,
    predict.predict,
    export.export,
    forget.forget,
    publish.publish,
    publish.apply,
    budget.budget,
    plan.plan,
    catalogue.strategies,
    catalogue.models,
):
    app.command()(command)


_COLLECTED = 50_000
"""New objects after which Python looks for cycles. Of its default of 700, imports, which make no garbage, take a fifth
longer."""


def main() -> None:
    """The console script."""
    gc.set_threshold(_COLLECTED)
    atexit.register(gc.freeze)  # or Python looks for cycles among all modules before it ends, for half a second

    def terminate(number: int, frame: object) -> NoReturn:
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
    app()
