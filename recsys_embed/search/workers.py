"""Processes beside the one that was started, which take trials of the same study."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import torch

from recsys_embed.config import Config
from recsys_embed.report.run import opened
from recsys_embed.report.workers import start_worker
from recsys_embed.search.samplers import open_study
from recsys_embed.search.space import Space
from recsys_embed.search.trials import Trials
from recsys_embed.training.interrupt import Interrupted


@contextlib.contextmanager
def helped(config: Config, method: str, dataset: Path, out: Path) -> Iterator[None]:
    """Run the block while ``search.workers - 1`` more processes take trials; they end with it, and when all is over.

    One that dies takes nobody with it: its trial is taken up by another when its heartbeat has stopped.
    """
    more = config.search.workers - 1
    if not more:
        yield
        return
    threads, before = max(1, (os.cpu_count() or 1) // (more + 1)), torch.get_num_threads()
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=_take_trials, args=(config, method, dataset, out, threads)) for _ in range(more)
    ]
    for process in processes:
        process.start()
    torch.set_num_threads(threads)
    try:
        yield
    except BaseException:
        for process in processes:
            process.terminate()
        raise
    finally:
        torch.set_num_threads(before)
        for process in processes:
            process.join()


def _take_trials(config: Config, method: str, dataset: Path, out: Path, threads: int) -> None:
    start_worker(threads)
    data = opened(dataset)
    study = open_study(config, method, data.fingerprint, out)
    space = Space.of(config, data.features)
    with contextlib.suppress(Interrupted):
        Trials(config, method, space, data, out, study, progress=False).run()
