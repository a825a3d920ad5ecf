"""Memory of a process and all below it."""

from __future__ import annotations

import contextlib

import psutil


def tree_memory(process: psutil.Process) -> int:
    """Bytes that they hold: private pages, and of shared ones each process's part (PSS). 0 once it is gone."""
    total = 0
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                total += one.memory_full_info().pss
    return total
