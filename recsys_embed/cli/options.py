"""Arguments and options that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigArgument = Annotated[Path, typer.Argument(metavar="CONFIG", help="A TOML config.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=VALUE", help="Override a key of the config.")]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="The folder to write.")]
FromRun = Annotated[str | None, typer.Option("--from-run", metavar="RUN_ID", help="The config of an MLflow run.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]
