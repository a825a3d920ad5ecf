"""``recsys-embed publish`` and ``recsys-embed apply``: a model elsewhere, kept up to date by what has changed."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recsys_embed.cli.exits import exit_codes
from recsys_embed.cli.options import Json, Quiet
from recsys_embed.cli.printing import print_json


def publish(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder.")],
    to: Annotated[Path, typer.Option("--to", metavar="FOLDER", help="Where it is published.")],
    snapshot: Annotated[bool, typer.Option("--snapshot", help="As a whole; replaces all that is there.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Publish what a model serves: as a whole at first, then the rows, ids and files that have changed since."""
    with exit_codes(quiet=quiet):
        from recsys_embed.increments import describe
        from recsys_embed.increments import publish as publish_model

        told = describe(publish_model(model, to, snapshot=snapshot))
        print_json(told) if as_json else print(f"{told['kind']} {told['number']}: {told['folder'] or to}")


def apply(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where a model is published.")],
    out: Annotated[Path, typer.Option("--out", metavar="MODEL_DIR", help="The model folder to write or bring on.")],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a model folder what was published last, from where it stands."""
    with exit_codes(quiet=quiet):
        from recsys_embed.increments import apply as apply_increments

        done = apply_increments(folder, out)
        if as_json:
            print_json({"model": str(done.model), "applied": done.numbers, "number": done.number})
        else:
            print(f"applied {len(done.numbers)}, at number {done.number}")
            print(done.model)
