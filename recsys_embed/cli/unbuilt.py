"""What says that it is not built yet, and what there is instead."""

from __future__ import annotations

from typing import NoReturn

from recsys_embed.errors import ConfigError


def not_built(what: str, instead: str) -> NoReturn:
    """Refuse what is not built yet, with the commands that are.

    Raises:
        ConfigError: always.
    """
    from recsys_embed.cli import app  # which is made of commands that import this

    names = ", ".join(
        str(command.name or command.callback.__name__)
        for command in app.registered_commands
        if command.callback is not None
    )
    raise ConfigError(f"{what} is not built yet; {instead}. There are the commands {names}")
