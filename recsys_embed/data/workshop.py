"""Where parts are worked on: a hidden folder beside the target that survives a kill, and the processes."""

from __future__ import annotations

import contextlib
import json
import math
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recsys_embed.data.counting import result
from recsys_embed.data.parts import PART_BYTES, Part
from recsys_embed.data.progress import Progress
from recsys_embed.data.rows import Job
from recsys_embed.errors import ConfigError, DataError
from recsys_embed.files import atomic_write, only_writer, typed_errors

PLAN = "plan.json"


@contextlib.contextmanager
def workshop(out: Path, plan: dict[str, Any]) -> Iterator[Path]:
    """A folder for what is not finished yet. Where it holds work on the same ``plan`` that was cut off, this goes on;
    of another plan, it is emptied. It is removed at the end, after an error of the input, and where no part is done.

    Raises:
        CheckpointError: another process prepares the same target, or the disk refuses; names it.
    """
    work = _place(out)
    text = json.dumps(plan, sort_keys=True)
    with only_writer(work), typed_errors(out):
        try:
            known = work / PLAN
            if not known.is_file() or known.read_text(encoding="utf-8") != text:
                empty(work)
                atomic_write(known, text)
            yield work
        except BaseException as error:
            if isinstance(error, (DataError, ConfigError)) or not any(work.glob("*-?????.json")):
                shutil.rmtree(work, ignore_errors=True)
            raise
        shutil.rmtree(work, ignore_errors=True)


def discard(out: Path) -> None:
    """Remove what a process left behind that was killed when all was done but this."""
    if _place(out).is_dir():
        with only_writer(_place(out)):
            shutil.rmtree(_place(out), ignore_errors=True)


def _place(out: Path) -> Path:
    return out.with_name(f".work-{out.name}")


def empty(folder: Path) -> None:
    """Remove all that a folder holds."""
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


@dataclass(frozen=True)
class Crew:
    """Runs a function over the parts of a job: in this process, or in those of an executor."""

    executor: Executor | None

    def run(
        self, stage: str, work: Callable[[Job, int], int], job: Job, bar: Progress, count: int | None = None
    ) -> None:
        """Do the parts that have no result yet, or as many things as ``count`` says; the bar is told of each.

        Raises:
            DataError: the first, in the order of the parts, that one of them raised.
        """
        sizes = [part.size for part in job.parts] if count is None else [1] * count
        todo = [index for index in range(len(sizes)) if not result(job, stage, index).is_file()]
        done = bar.stage(stage, sum(sizes))
        if self.executor is None:
            for index in todo:
                done(sizes[index], work(job, index))
            return
        futures = {self.executor.submit(work, job, index): index for index in todo}
        try:
            for future in as_completed(futures):
                if future.exception() is not None:
                    break
                done(sizes[futures[future]], future.result())
        finally:
            for future in futures:
                future.cancel()
            wait(futures)  # none that has begun writes any more
        for future, _ in sorted(futures.items(), key=lambda item: item[1]):
            if not future.cancelled():
                future.result()


def processes(parts: Sequence[Part], workers: int | None = None) -> int:
    """``workers``, or one a core as far as each has a whole part's bytes to work on; no more than there are parts."""
    worth = math.ceil(sum(part.size for part in parts) / PART_BYTES)  # a few small files are done before one starts
    return max(1, min(workers or min(os.cpu_count() or 1, worth), len(parts)))


@contextlib.contextmanager
def crew(job: Job, workers: int | None, executor: Executor | None) -> Iterator[Crew]:
    """As many processes as :func:`processes` says, or those of an executor."""
    if executor is not None or not job.source.shared:
        yield Crew(executor if job.source.shared else None)
        return
    count = processes(job.parts, workers)
    if count == 1:
        yield Crew(None)
        return
    with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield Crew(pool)
