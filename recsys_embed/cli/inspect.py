"""``recsys-embed inspect``."""

from __future__ import annotations

import logging
import shlex
import shutil
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from recsys_embed.cli.exits import exit_codes
from recsys_embed.cli.options import Json, Quiet
from recsys_embed.cli.printing import print_json
from recsys_embed.errors import ConfigError

if TYPE_CHECKING:
    from recsys_embed.inspection import Advice

_LOG = logging.getLogger("recsys_embed")


def inspect(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Raw rows: a file, a folder or a pattern.")],
    label: Annotated[
        str | None, typer.Option("--label", metavar="COL", help="The label's column; else guessed.")
    ] = None,
    rows: Annotated[int | None, typer.Option("--rows", metavar="N", min=1, help="Read the first N rows alone.")] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write the config there.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Guess a schema: a config to accept or edit, with what every column holds, and warnings.

    Reads all rows once, in bounded memory. Up to 65,536 different values of a column are counted exactly; beyond that
    their number is an estimate with a standard error of 0.4 %.
    """
    with exit_codes(quiet=quiet):
        from recsys_embed.inspection import advice, inspect_rows
        from recsys_embed.inspection.document import document
        from recsys_embed.inspection.draft import draft

        if file.suffix.lower() == ".toml":
            raise ConfigError(f"{file} is a config by its name: inspect reads raw rows")
        found = inspect_rows(file, label=label, rows=rows)
        config, warnings = draft(found), advice(found)
        if out is not None:
            _write(out, config)
        if as_json:
            print_json(document(found, warnings) | {"out": None if out is None else str(out)})
            return
        if out is None:
            print(config, end="", flush=True)
        for warning in warnings:
            print_warning(warning)
        if out is not None:
            _LOG.info("next: recsys-embed report %s (or budget, train, search)", shlex.quote(str(out)))
            print(out)


def print_warning(warning: Advice) -> None:
    """A warning on standard error, in lines as wide as the terminal."""
    width = shutil.get_terminal_size().columns
    text = " ".join(f"warning: {warning.message}".split())
    print(textwrap.fill(text, width, subsequent_indent="  ", break_long_words=False), file=sys.stderr)


def _write(out: Path, config: str) -> None:
    """Write the config, unless something else is there.

    Raises:
        ConfigError: something else is.
    """
    from recsys_embed.files import atomic_write

    if out.exists():
        if out.is_file() and out.read_bytes() == config.encode("utf-8"):
            return
        raise ConfigError(f"{out} is there already and holds something else: remove it, or write to another file")
    atomic_write(out, config)
