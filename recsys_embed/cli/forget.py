"""``recsys-embed forget``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recsys_embed.cli.exits import exit_codes
from recsys_embed.cli.options import Json, Quiet
from recsys_embed.cli.printing import print_json, print_table


def forget(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder.")],
    ids: Annotated[Path, typer.Option("--ids", metavar="FILE", help="CSV with the header feature,value.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Another folder to write; else MODEL is replaced.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Remove ids for good, from every file of a model: their text, and the rows and states that are theirs alone."""
    with exit_codes(quiet=quiet):
        from recsys_embed import jobs

        done = jobs.forget(model, ids, out=out)
        elsewhere = [str(one) for one in jobs.traces_beside(done.model) if one.exists()]
        if as_json:
            print_json(
                {
                    "model": str(done.model),
                    "values": done.values,
                    "vocabularies": done.vocabularies,
                    "not_touched": elsewhere,
                }
            )
            return
        if done.values:
            print_table(done.values, ["name", "value", "vocabulary", "was", "id", "count", "crossed"])
        for name, one in done.vocabularies.items():
            told = {
                "own": "their rows are as they began",
                "shared": "rows that they share with other ids stay: nobody can tell what one id has left in them",
                None: "none of them had a row",
            }[one["rows"]]
            print(f"{name}: {one['forgotten']} ids are free; {told}")
        if elsewhere:
            print(f"not touched, and not part of the model: {', '.join(elsewhere)}")
        print(done.model)
