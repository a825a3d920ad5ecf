"""Ranks of tests: processes forked from one that has imported everything, which takes seconds a rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bench.injections.forks import PRELOADED


def on_processes(work: Callable[..., None], arguments: tuple[Any, ...], count: int) -> None:
    """Call a function of a module with each rank and the arguments, in so many processes.

    Raises:
        ProcessRaisedException: one of them raised; the others are ended.
    """
    torch.multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    torch.multiprocessing.start_processes(work, arguments, nprocs=count, start_method="forkserver")
