"""``recsys-embed train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recsys_embed.cli.configs import read_config
from recsys_embed.cli.exits import exit_codes
from recsys_embed.cli.options import FromRun, Json, Out, Quiet, Set
from recsys_embed.cli.printing import print_json, print_json_line, print_table
from recsys_embed.errors import ConfigError

Continue = Annotated[Path | None, typer.Option("--continue", metavar="MODEL", help="Train on from this model folder.")]
Data = Annotated[str | None, typer.Option("--data", metavar="NEW", help="With --continue: the rows of the new day.")]
PromoteIf = Annotated[
    str | None,
    typer.Option(metavar="EXPR", help="With --continue: such as 'val_auc >= champion - 0.001'. Always, if left out."),
]


def train(
    config: Annotated[Path | None, typer.Argument(metavar="CONFIG", help="A TOML config.")] = None,
    out: Out = None,
    from_run: FromRun = None,
    overrides: Set = None,
    as_json: Json = False,
    quiet: Quiet = False,
    continue_from: Continue = None,
    data: Data = None,
    promote_if: PromoteIf = None,
) -> None:
    """Train one model: prepare, train, evaluate, export, track. The same command goes on with an interrupted one.

    Under torchrun, on all of its processes: tables are sharded over them, and the first one writes.

    With --continue and --data instead of CONFIG, a trained model goes on with the rows of a new day: ids stay.

    The last line of standard output is then a JSON record of what was decided.
    """
    with exit_codes(quiet=quiet, several=continue_from is None):
        if continue_from is not None or data is not None or promote_if is not None:
            if continue_from is None or data is None or config is not None or from_run is not None:
                raise ConfigError(
                    "give --continue MODEL together with --data NEW, and neither CONFIG nor --from-run: the config is "
                    "the model's; --promote-if goes with them"
                )
            _continue(continue_from, data, out, overrides or [], promote_if, as_json=as_json, quiet=quiet)
            return
        loaded = read_config(config, overrides, from_run=from_run)
        from recsys_embed import jobs, ranks

        folder = out or Path(f"train-{config.stem if config else from_run}")
        with ranks.joined(loaded.training.device, timeout=loaded.sharding.timeout_seconds):
            model, trained = jobs.train(loaded, folder, progress=not quiet)
            if ranks.own():
                return
        row = trained.row
        if as_json:
            print_json({"model_dir": str(model), **row, "history": trained.result.history})
            return
        shown = ("strategy", "budget_requested", "serve_bytes", "val_auc", "test_auc", "test_logloss", "epochs")
        print_table([{name: row[name] for name in shown}])
        print(model)


def _continue(
    model: Path,
    data: str,
    out: Path | None,
    overrides: list[str],
    promote_if: str | None,
    *,
    as_json: bool,
    quiet: bool,
) -> None:
    from recsys_embed import jobs

    folder = out or Path(f"continue-{Path(data).name.split('.')[0] or 'data'}")
    night = jobs.continue_training(model, data, folder, overrides=overrides, promote_if=promote_if, progress=not quiet)
    record = night.record
    if not as_json:
        print_table([{"metric": name, **both} for name, both in record["scores"].items()])
        if record["vocabularies"]:
            shown = ("known", "admitted", "expired", "forgotten", "pending", "cardinality")
            print_table(
                [
                    {"vocabulary": name, **{key: one[key] for key in shown}}
                    for name, one in record["vocabularies"].items()
                ]
            )
        print(f"{'promoted' if record['promoted'] else 'not promoted'}; champion: {record['champion']}")
    print_json_line(record)
