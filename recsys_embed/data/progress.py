"""The progress bar of a preparation: its passes, rows a second, time left; on stderr, and on a terminal only."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Rich


class Progress:
    """A line for each pass."""

    def __init__(self, rich: Rich | None) -> None:
        self._rich = rich

    def stage(self, name: str, size: int) -> Callable[[int, int], None]:
        """A new pass over so many bytes; what is returned is told of every part's bytes and rows, when it is done."""
        if self._rich is None:
            return lambda *_: None
        rich, since, seen = self._rich, time.perf_counter(), 0
        task = rich.add_task(name, total=size or None, note="")

        def done(size: int, count: int) -> None:
            nonlocal seen
            seen += count
            rate = seen / max(time.perf_counter() - since, 1e-9)
            rich.update(task, advance=size, note=f"{seen:,} rows  {rate:,.0f} rows/s")

        return done


@contextlib.contextmanager
def progress_bar(*, shown: bool) -> Iterator[Progress]:
    """Rich decides what a terminal is: ``FORCE_COLOR`` makes it draw anywhere."""
    console = Console(stderr=True)
    if not (shown and console.is_terminal):
        yield Progress(None)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn())
    with Rich(*columns, console=console, transient=True) as rich:
        yield Progress(rich)
