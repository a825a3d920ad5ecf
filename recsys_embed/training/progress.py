"""The progress bar: loss, validation AUC, samples a second, time left; on stderr, and on a terminal only."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

_SECONDS_BETWEEN = 0.2


class Bar:
    """Counts samples; draws, where it draws at all, five times a second at most."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._next, self._auc = progress, 0.0, ""
        self._done, self._drawn, self._since, self._description = 0, 0, time.perf_counter(), ""
        self._task = TaskID(0) if progress is None else progress.add_task("", total=total, note="")

    def begin(self, description: str, done: int) -> None:
        """A new epoch, after ``done`` samples of the run."""
        self._description, self._done, self._drawn, self._since = description, done, done, time.perf_counter()

    def advance(self, samples: int, loss: float) -> None:
        """A step is done."""
        self._done += samples
        if self._progress is None:
            return
        now = time.perf_counter()
        if now >= self._next:
            rate = (self._done - self._drawn) / max(now - self._since, 1e-9)
            self._drawn, self._since, self._next = self._done, now, now + _SECONDS_BETWEEN
            note = f"loss {loss:.4f}{self._auc}  {rate:,.0f} samples/s"
            self._progress.update(self._task, completed=self._done, description=self._description, note=note)
            self._progress.refresh()

    def validated(self, auc: float) -> None:
        """An epoch has been evaluated."""
        self._auc = f"  val AUC {auc:.4f}"


@contextlib.contextmanager
def bar(total: int, *, shown: bool) -> Iterator[Bar]:
    """A bar over ``total`` samples. Rich decides what a terminal is: ``FORCE_COLOR`` makes it draw anywhere."""
    console = Console(stderr=True)
    if not (shown and console.is_terminal):
        yield Bar(None, total)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[note]}"), TimeRemainingColumn())
    with Progress(*columns, console=console, auto_refresh=False, transient=True) as progress:
        yield Bar(progress, total)
