"""Cells in several processes, of which any may be killed."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from recsys_embed.report.run import Cell

_LOG = logging.getLogger("recsys_embed")
Document = dict[str, Any]
"""What is saved of a cell: its row and its history."""


def in_processes(
    cells: Sequence[Cell],
    workers: int,
    work: Callable[[Cell], Document],
    *,
    done: Callable[[Cell, Document], None],
    died: Callable[[Cell], Document],
) -> None:
    """Run cells in worker processes and hand each to ``done`` with the document that ``work`` made of it there.

    When a process is killed, the pool breaks and nobody can say which cell did it: each that was running is tried once
    more alone, and the one that breaks its pool again is the one that failed, with the document that ``died`` makes.
    """
    todo = deque(cells)
    while todo:
        for suspect in _drain(todo, workers, workers, work, done):
            _LOG.warning("%s: its process died; once more, alone", suspect)
            if _drain(deque([suspect]), 1, workers, work, done):
                done(suspect, died(suspect))


def _drain(
    todo: deque[Cell],
    processes: int,
    share: int,
    work: Callable[[Cell], Document],
    done: Callable[[Cell, Document], None],
) -> list[Cell]:
    """Run cells off ``todo`` until none is left or the pool breaks; return the cells that were lost with it."""
    threads = max(1, (os.cpu_count() or 1) // share)
    context = multiprocessing.get_context("spawn")
    lost: list[Cell] = []
    running: dict[Future[Document], Cell] = {}
    with ProcessPoolExecutor(processes, mp_context=context, initializer=start_worker, initargs=(threads,)) as pool:
        try:
            while not lost and (todo or running):
                while todo and len(running) < processes:
                    cell = todo.popleft()
                    try:
                        running[pool.submit(work, cell)] = cell
                    except BrokenProcessPool:
                        lost.append(cell)
                        break
                ready, _ = wait(running, return_when=ALL_COMPLETED if lost else FIRST_COMPLETED)
                if any(isinstance(future.exception(), BrokenProcessPool) for future in ready):
                    ready, _ = wait(running)
                for future in ready:
                    cell = running.pop(future)
                    if isinstance(future.exception(), BrokenProcessPool):
                        lost.append(cell)
                    else:
                        done(cell, future.result())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.terminate()
            raise
    return lost


def start_worker(threads: int) -> None:
    """Divide the processors, and die with the parent: a pool's workers would otherwise wait for it for ever."""
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    torch.set_num_threads(threads)

    def follow() -> None:
        parent = multiprocessing.parent_process()
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
