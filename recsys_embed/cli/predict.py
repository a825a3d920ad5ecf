"""``recsys-embed predict``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recsys_embed.cli.exits import exit_codes
from recsys_embed.cli.options import Json, Quiet
from recsys_embed.cli.printing import print_json


def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder.")],
    rows: Annotated[Path, typer.Argument(metavar="ROWS", help="Raw rows: a file, a folder or a pattern.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Parquet or CSV, by its name; else CSV is printed.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Score raw rows in their order, as a stream."""
    with exit_codes(quiet=quiet):
        from recsys_embed.export import load, predict_file, score_frames

        predictor = load(model)
        if as_json and out is None:
            print_json({"scores": [score for part in score_frames(predictor, rows) for score in part.tolist()]})
            return
        count = predict_file(predictor, rows, out)
        if as_json:
            print_json({"rows": count, "out": str(out)})
        elif out is not None:
            print(f"{count} rows")
            print(out)
