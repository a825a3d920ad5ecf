"""The commands: thin. What is printed goes to standard output, progress and logs to standard error."""

from __future__ import annotations

import contextlib
import inspect as introspection
import json
import logging
import os
import re
import shutil
import signal
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from recsys_embed.errors import ConfigError, DataError, RecsysEmbedError

if TYPE_CHECKING:
    from recsys_embed.config import Config, TrackingConfig

# Torch and pandas take seconds to import: commands import what they need themselves.

app = typer.Typer(
    name="recsys-embed",
    help="Embedding tables for recommenders under a byte budget: compress, compare, train, serve.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ConfigArgument = Annotated[Path, typer.Argument(metavar="CONFIG", help="A TOML config.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="A.B=VALUE", help="Override a key of the config.")]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="The folder to write.")]
FromRun = Annotated[str | None, typer.Option("--from-run", metavar="RUN_ID", help="The config of an MLflow run.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress.")]


class Terminated(KeyboardInterrupt):
    """SIGTERM: handled like Ctrl-C, so that whatever an interrupt would save is saved."""


def main() -> None:
    """The console script."""

    def terminate(number: int, frame: object) -> NoReturn:
        raise Terminated

    signal.signal(signal.SIGTERM, terminate)
    app()


@contextlib.contextmanager
def exit_codes(*, quiet: bool = False) -> Iterator[None]:
    """End the process as the interface promises: one message and a code for our own errors, 130 or 143 if interrupted.

    Other exceptions are defects and keep their traceback.
    """
    with _logs(quiet):
        try:
            yield
        except RecsysEmbedError as error:
            print(f"recsys-embed: {error}", file=sys.stderr)
            raise SystemExit(error.exit_code) from None
        except KeyboardInterrupt as error:
            text = str(error) or "interrupted; the same command goes on from here"
            print(f"recsys-embed: {text}", file=sys.stderr)
            raise SystemExit(
                143 if isinstance(error, Terminated) or isinstance(error.__cause__, Terminated) else 130
            ) from None


@contextlib.contextmanager
def _logs(quiet: bool) -> Iterator[None]:
    """Our own log lines on standard error, for the time of a command."""
    logger = logging.getLogger("recsys_embed")
    handler = logging.StreamHandler(sys.stderr)
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.level, logger.propagate = before


# --- data ----------------------------------------------------------------------------------------------------


@app.command()
def doctor(as_json: Json = False) -> None:
    """Versions, whether they fit each other, and the command that mends what does not."""
    from recsys_embed.doctor import diagnose, render

    with exit_codes():
        components = diagnose()
        if as_json:
            _print_json([asdict(component) for component in components])
        else:
            print(render(components))
        if any(component.fails for component in components):
            raise SystemExit(2)


@app.command()
def prepare(
    config: ConfigArgument, out: Out = None, overrides: Set = None, as_json: Json = False, quiet: Quiet = False
) -> None:
    """Encode raw rows into a data set."""
    from recsys_embed.data import prepare as encode

    with exit_codes(quiet=quiet):
        loaded = _config(config, overrides)
        dataset = encode(loaded.data, out or Path(f"data-{data_name(loaded)}"))
        rows = {split: dataset.rows(split) for split in ("train", "val", "test")}
        features = [{"feature": one.name, "cardinality": one.cardinality} for one in dataset.features]
        if as_json:
            told = {"path": str(dataset.path), "fingerprint": dataset.fingerprint, "rows": rows, "features": features}
            _print_json(told)
        else:
            _print_table(features)
            print(", ".join(f"{count:,} {split}" for split, count in rows.items()), "rows")
            print(dataset.path)


# --- training ------------------------------------------------------------------------------------------------


@app.command()
def train(
    config: Annotated[Path | None, typer.Argument(metavar="CONFIG", help="A TOML config.")] = None,
    out: Out = None,
    from_run: FromRun = None,
    overrides: Set = None,
    as_json: Json = False,
    quiet: Quiet = False,
    continue_from: Annotated[Path | None, typer.Option("--continue", metavar="MODEL", help="Not built yet.")] = None,
    data: Annotated[Path | None, typer.Option("--data", metavar="NEW", help="Not built yet.")] = None,
) -> None:
    """Train one model: prepare, train, evaluate, export, track. The same command goes on with an interrupted one."""
    with exit_codes(quiet=quiet):
        if continue_from is not None or data is not None:
            _not_built("train --continue", "`train CONFIG` trains a model from the beginning")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            _not_built("training on several processes", "`train CONFIG` trains in one")
        loaded = _config(config, overrides, from_run=from_run)
        from recsys_embed import jobs

        folder = out or Path(f"train-{config.stem if config else from_run}")
        model, trained = jobs.train(loaded, folder, progress=not quiet)
        row = trained.row
        if as_json:
            _print_json({"model_dir": str(model), **row, "history": trained.result.history})
            return
        shown = ("strategy", "budget_requested", "serve_bytes", "val_auc", "test_auc", "test_logloss", "epochs")
        _print_table([{name: row[name] for name in shown}])
        print(model)


@app.command()
def report(
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG|DATA", help="A TOML config, or the rows, with --label.")
    ] = None,
    planted: Annotated[bool, typer.Option("--planted", help="Data with a known best AUC; needs no config.")] = False,
    label: Annotated[str | None, typer.Option("--label", metavar="COL", help="The label's column, with DATA.")] = None,
    budget: Annotated[str | None, typer.Option("--budget", metavar="SIZE", help="The budget to recommend for.")] = None,
    results: Annotated[
        Path | None, typer.Option("--from", metavar="CSV", help="Write the page again from a results.csv; no training.")
    ] = None,
    out: Out = None,
    from_run: FromRun = None,
    overrides: Set = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """The compression study: every strategy at every budget, and a page that says which to use."""
    with exit_codes(quiet=quiet):
        given = [name for name, value in {"CONFIG or DATA": config, "--planted": planted, "--from": results,
                                          "--from-run": from_run}.items() if value]  # fmt: skip
        if len(given) != 1:
            raise ConfigError(
                f"report needs exactly one of CONFIG, DATA with --label, --planted, --from and --from-run; got "
                f"{' and '.join(given) or 'none'}"
            )
        if results is not None:
            page, rows, code = _page_again(results, out, budget), None, 0
        else:
            loaded = _study(config, planted, label, budget, from_run, overrides)
            from recsys_embed import jobs

            done = jobs.report(loaded, out or Path(f"report-{data_name(loaded)}"), budget=budget, progress=not quiet)
            page, rows, code = done.page, done.results, done.exit_code
        if as_json:
            _print_json({"report": str(page)} | ({} if rows is None else {"results": rows.to_dict(orient="records")}))
        else:
            if rows is not None:
                print(f"{len(rows)} runs: " + ", ".join(f"{n} {s}" for s, n in rows["status"].value_counts().items()))
            print(page)
        raise SystemExit(code)


@app.command()
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
            _print_json({"scores": [score for part in score_frames(predictor, rows) for score in part.tolist()]})
            return
        count = predict_file(predictor, rows, out)
        if as_json:
            _print_json({"rows": count, "out": str(out)})
        elif out is not None:
            print(f"{count} rows")
            print(out)


# --- looking around ------------------------------------------------------------------------------------------


@app.command()
def budget(
    config: ConfigArgument, out: Out = None, overrides: Set = None, as_json: Json = False, quiet: Quiet = False
) -> None:
    """What fits every budget of the study, without training."""
    with exit_codes(quiet=quiet):
        loaded = _config(config, overrides)
        from recsys_embed import jobs
        from recsys_embed.report.study import check_names, prepare_into

        check_names(loaded, loaded.study.strategies)
        dataset = prepare_into(loaded, out or Path(f"report-{data_name(loaded)}"))
        rows = jobs.fits(loaded, dataset.features)
        if as_json:
            _print_json(rows)
            return
        for row in rows:
            sizes = row.pop("settings", {})
            row["rows"] = ", ".join(f"{name} {count:,}" for name, count in sizes.items())
        _print_table(rows, ("strategy", "budget", "serve_bytes", "kept_fraction", "coarse", "nearest_bytes", "rows"))


@app.command()
def strategies(as_json: Json = False) -> None:
    """The embedding strategies: paper, options, smallest size, when to use."""
    from recsys_embed.config import STRATEGIES
    from recsys_embed.embeddings import CLASSES

    with exit_codes():
        rows = [
            {
                "name": name,
                "what": _first_line(CLASSES[node]),
                "paper": CLASSES[node].paper,
                "options": _options_of(node),
                "needs": "a tables optimizer" if CLASSES[node].maintain_every else "nothing",
                "smallest": _first_line(CLASSES[node].least),
                "use": CLASSES[node].use,
            }
            for name, node in STRATEGIES.items()
        ]
        _print_json(rows) if as_json else _print_table(rows)


@app.command()
def models(as_json: Json = False) -> None:
    """The click-through-rate models."""
    from recsys_embed.config import DCNv2Config, DLRMConfig
    from recsys_embed.models import build_model

    with exit_codes():
        rows = []
        for node in (DCNv2Config, DLRMConfig):
            module = introspection.getmodule(type(build_model(node(), num_features=2, num_dense=1)))
            paper = re.search(r"arXiv:([\d.]+\d)", (module and module.__doc__) or "")
            rows.append(
                {
                    "name": node.model_fields["name"].default,
                    "what": _first_line(node),
                    "paper": paper[1] if paper else "",
                    "options": _options_of(node),
                }
            )
        _print_json(rows) if as_json else _print_table(rows)


# --- not built yet -------------------------------------------------------------------------------------------


@app.command()
def inspect(file: Annotated[Path, typer.Argument(metavar="FILE")]) -> None:
    """Infer a schema from a file. Not built yet."""
    with exit_codes():
        _not_built("inspect", "`report DATA --label COL` guesses a schema and writes it to config.toml")


@app.command()
def search(config: ConfigArgument) -> None:
    """Search widths. Not built yet."""
    with exit_codes():
        _not_built("search", "`report CONFIG` compares strategies and budgets")


@app.command()
def plan(
    config: ConfigArgument,
    world_size: Annotated[int, typer.Option("--world-size", metavar="N")] = 1,
    device_memory: Annotated[str | None, typer.Option("--device-memory", metavar="SIZE")] = None,
) -> None:
    """Plan sharding without the hardware. Not built yet."""
    with exit_codes():
        _not_built("plan", "`budget CONFIG` tells what fits one machine")


def _not_built(what: str, instead: str) -> NoReturn:
    names = ", ".join(
        str(command.name or command.callback.__name__)
        for command in app.registered_commands
        if command.callback is not None and "Not built yet" not in (command.callback.__doc__ or "")
    )
    raise ConfigError(f"{what} is not built yet; {instead}. There are the commands {names}")


# --- configs -------------------------------------------------------------------------------------------------


def _config(path: Path | None, overrides: Sequence[str] | None, *, from_run: str | None = None) -> Config:
    from recsys_embed.config import load_config, parse_config

    changes = tuple(overrides or ())
    if (path is None) == (from_run is None):
        raise ConfigError("give either CONFIG or --from-run RUN_ID")
    if path is not None:
        return load_config(path, changes)
    assert from_run is not None
    from recsys_embed.tracking import fetch_config

    text = fetch_config(from_run, _tracking(changes))
    return parse_config(tomllib.loads(text), changes, source=f"run {from_run}")


def _tracking(overrides: Sequence[str]) -> TrackingConfig:
    """Where to look for a run: the tracking keys among the overrides."""
    from recsys_embed.config import parse_config

    wanted = tuple(one for one in overrides if one.startswith("tracking."))
    return parse_config({"data": {"planted": {}}}, wanted, source="--set").tracking


def _study(
    path: Path | None,
    planted: bool,
    label: str | None,
    budget: str | None,
    from_run: str | None,
    overrides: Sequence[str] | None,
) -> Config:
    """The config of a study, from whatever the user gave."""
    from recsys_embed.config import parse_config

    changes = tuple(overrides or ())
    if planted:
        from recsys_embed.report.study import PLANTED

        config = parse_config(json.loads(json.dumps(PLANTED)), changes, source="--planted")
    elif path is not None and (label is not None or (path.exists() and path.suffix.lower() != ".toml")):
        if label is None:
            raise ConfigError(f"{str(path)!r} is no TOML config; to compare on these rows, name the label: --label COL")
        from recsys_embed.infer import infer_config

        tree = infer_config(path, label)
        config = parse_config(tree | ({"study": {"budgets": [_typed(budget)]}} if budget else {}), changes)
    else:
        config = _config(path, overrides, from_run=from_run)
    if budget is not None and budget not in map(str, config.study.budgets):
        budgets = (*config.study.budgets, _typed(budget))
        config = config.model_copy(update={"study": config.study.model_copy(update={"budgets": budgets})})
    return config


def _typed(budget: str) -> int | float | str:
    """A budget from the command line as it would be in a config: a bare number is a number."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(budget)
    return budget


def _page_again(results: Path, out: Path | None, budget: str | None) -> Path:
    from recsys_embed.report.page import write_page
    from recsys_embed.report.results import PREDICTIONS, RESULTS

    source = results if results.is_dir() else results.parent
    if results.is_file() and results.name != RESULTS:
        raise DataError(f"is not called {RESULTS}", file=str(results))
    if out is not None and out.resolve() != source.resolve():
        if not (source / RESULTS).is_file():
            raise DataError("there is no such file", file=str(source / RESULTS))
        out.mkdir(parents=True, exist_ok=True)
        for name in (RESULTS, "config.toml"):
            if (source / name).exists():
                shutil.copyfile(source / name, out / name)
        if (source / PREDICTIONS).is_dir():
            shutil.copytree(source / PREDICTIONS, out / PREDICTIONS, dirs_exist_ok=True)
        source = out
    return write_page(source, budget=budget)


def data_name(config: Config) -> str:
    """A short name of the data, for default folders."""
    if config.data.planted is not None:
        return "planted"
    path = config.data.path or (config.data.split.files or {})["train"]
    name = Path(path).name.split(".")[0]
    return name if name and not set(name) & set("*?[") else Path(path).parent.name or "data"


# --- printing ------------------------------------------------------------------------------------------------


def _print_json(document: Any) -> None:
    """One strict JSON document: NaN is null."""

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {str(key): plain(one) for key, one in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(one) for one in value]
        if hasattr(value, "item"):
            value = value.item()
        return None if isinstance(value, float) and value - value != 0 else value

    print(json.dumps(plain(document), indent=1, ensure_ascii=False, allow_nan=False))


def _print_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str] | None = None) -> None:
    from rich.console import Console
    from rich.table import Table

    names = list(columns or rows[0])
    table = Table(box=None, pad_edge=False)
    for name in names:
        table.add_column(name.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row.get(name)) for name in names))
    Console(width=None if sys.stdout.isatty() else 160, markup=False, highlight=False).print(table)


def _cell(value: Any) -> str:
    if value is None or value is False:
        return ""
    if value is True:
        return "yes"
    if isinstance(value, float):
        return f"{value:.4f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _first_line(cls: object) -> str:
    return (introspection.getdoc(cls) or "").split("\n\n")[0].replace("\n", " ")


def _options_of(node: type[Any]) -> str:
    fields = node.model_fields
    return ", ".join(f"{name} = {field.default!r}" for name, field in fields.items() if name != "name")
