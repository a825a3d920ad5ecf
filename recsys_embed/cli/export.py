"""``recsys-embed export``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from recsys_embed.cli.exits import exit_codes
from recsys_embed.cli.options import Json, Quiet
from recsys_embed.cli.printing import print_json


class Form(StrEnum):
    """What a model folder can be made into."""

    PROGRAM = "program"
    MLFLOW = "mlflow"


def export(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder.")],
    form: Annotated[
        Form,
        typer.Option("--as", help="program: a .pt2 of torch.export, from encoded ids to scores. mlflow: raw rows."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="PATH", help="The .pt2 file, or the new MLflow model folder.")],
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Make a model folder into what other servers run."""
    with exit_codes(quiet=quiet):
        if form is Form.PROGRAM:
            from recsys_embed.export import load
            from recsys_embed.program import save_program

            predictor = load(model)
            written = save_program(predictor.model, len(predictor.encoder.dense), out)
        else:
            from recsys_embed.mlflow_model import save_mlflow_model

            written = save_mlflow_model(model, out)
        if as_json:
            print_json({"form": form.value, "out": str(written)})
        else:
            print(written)
