"""Commands that say what there is instead of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, NoReturn

import typer

from recsys_embed.cli.exits import exit_codes
from recsys_embed.errors import ConfigError


def inspect(file: Annotated[Path, typer.Argument(metavar="FILE")]) -> None:
    """Infer a schema from a file. Not built yet."""
    with exit_codes():
        not_built("inspect", "`report DATA --label COL` guesses a schema and writes it to config.toml")


def not_built(what: str, instead: str) -> NoReturn:
    """Refuse what is not built yet, with the commands that are.

    Raises:
        ConfigError: always.
    """
    from recsys_embed.cli import app  # which is made of this module's commands

    names = ", ".join(
        str(command.name or command.callback.__name__)
        for command in app.registered_commands
        if command.callback is not None and "Not built yet" not in (command.callback.__doc__ or "")
    )
    raise ConfigError(f"{what} is not built yet; {instead}. There are the commands {names}")
