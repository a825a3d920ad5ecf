"""``recsys-embed report``."""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recsys_embed.cli.configs import data_name, read_config
from recsys_embed.cli.exits import exit_codes
from recsys_embed.cli.options import FromRun, Json, Out, Quiet, Set
from recsys_embed.cli.printing import print_json
from recsys_embed.errors import ConfigError, DataError

if TYPE_CHECKING:
    from recsys_embed.config import Config

_LOG = logging.getLogger("recsys_embed")


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
            print_json({"report": str(page)} | ({} if rows is None else {"results": rows.to_dict(orient="records")}))
        else:
            if rows is not None:
                print(f"{len(rows)} runs: " + ", ".join(f"{n} {s}" for s, n in rows["status"].value_counts().items()))
            print(page)
        raise SystemExit(code)


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
        tree = _inferred(path, label)
        config = parse_config(tree | ({"study": {"budgets": [_typed(budget)]}} if budget else {}), changes)
    else:
        config = read_config(path, overrides, from_run=from_run)
    if budget is not None and budget not in map(str, config.study.budgets):
        budgets = (*config.study.budgets, _typed(budget))
        config = config.model_copy(update={"study": config.study.model_copy(update={"budgets": budgets})})
    return config


def _inferred(path: Path, label: str) -> dict[str, Any]:
    """The tree of a config for the rows at ``path``, with its warnings on standard error.

    Raises:
        DataError: the label's values are not clear, or no column is a feature to embed.
    """
    from recsys_embed.inspection import advice, config_tree, inspect_rows

    found = inspect_rows(path, label=label)
    tree = config_tree(found)
    for warning in advice(found):
        _LOG.warning("warning: %s", warning.message)
    if "label" not in tree["data"]:
        assert found.label is not None
        problem = f"{found.label.problem}; write a config (`recsys-embed inspect`) that says what is positive"
        raise DataError(problem, file=str(path), column=label)
    if not {"categorical", "multi_valued"} & set(tree["data"]):
        raise DataError("no column looks categorical: write a config that names them", file=str(path))
    return tree


def _typed(budget: str) -> int | float | str:
    """A budget from the command line as it would be in a config: a bare number is a number."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(budget)
    return budget


def _page_again(results: Path, out: Path | None, budget: str | None) -> Path:
    """Write the page from results that are there, into another folder if one is given."""
    from recsys_embed.report.page import write_page
    from recsys_embed.report.results import PREDICTIONS, RESULTS
    from recsys_embed.report.trials import TRIALS
    from recsys_embed.search.table import SEARCH

    source = results if results.is_dir() else results.parent
    if results.is_file() and results.name != RESULTS:
        raise DataError(f"is not called {RESULTS}", file=str(results))
    if out is not None and out.resolve() != source.resolve():
        if not (source / RESULTS).is_file():
            raise DataError("there is no such file", file=str(source / RESULTS))
        out.mkdir(parents=True, exist_ok=True)
        for name in (RESULTS, TRIALS, SEARCH, "config.toml"):
            if (source / name).exists():
                shutil.copyfile(source / name, out / name)
        if (source / PREDICTIONS).is_dir():
            shutil.copytree(source / PREDICTIONS, out / PREDICTIONS, dirs_exist_ok=True)
        source = out
    return write_page(source, budget=budget)
