"""``recsys-embed download``."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from recsys_embed.cli.exits import exit_codes
from recsys_embed.cli.options import Json, Quiet
from recsys_embed.cli.printing import print_json
from recsys_embed.download import DATASETS, Progress


def download(
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"One of {', '.join(DATASETS)}.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="The folder to write into.")] = Path("."),
    url: Annotated[str | None, typer.Option("--url", metavar="URL", help="The folder of a mirror.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Download a public data set, or go on with it, and check it."""
    with exit_codes(quiet=quiet):
        from recsys_embed import download as downloads

        with _bar(name, shown=not quiet) as progress:
            path = downloads.download(name, out, url=url, progress=progress)
        published = DATASETS[name]
        if as_json:
            print_json({"path": str(path), "md5": published.md5, "format": published.format})
        else:
            print(f"read by [data] format = {published.format!r}")
            print(path)


@contextlib.contextmanager
def _bar(name: str, *, shown: bool) -> Iterator[Progress | None]:
    """Bytes, speed and time left, on a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    if not (shown and console.is_terminal):
        yield None
        return
    columns = (TextColumn(name), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Bar(*columns, console=console, transient=True) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
