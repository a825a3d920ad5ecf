"""The setting of a measurement: allocator, machine, versions, threads."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

ALLOCATOR = {
    "THP_MEM_ALLOC_ENABLE": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": "34359738368",
}
"""Without these, outputs over 32 MB are mapped and page-faulted at every step, and that is what one would measure."""


def set_allocator() -> None:
    """Start this process anew unless it has these settings: the C library reads them when a process starts."""
    if any(os.environ.get(key) != value for key, value in ALLOCATOR.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ALLOCATOR})


def facts(*libraries: str) -> dict[str, Any]:
    """Date, machine, the allocator's settings as they are, and the versions of Python, torch and the distributions
    named, for a result."""
    import torch

    from recsys_embed.provenance import processor

    versions = {"python": platform.python_version(), "torch": torch.__version__}
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": {"cpu": processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "versions": versions | {name: version for name in libraries if (version := _version(name))},
        "allocator": {key: os.environ[key] for key in ALLOCATOR if key in os.environ},
    }


def heading(result: Mapping[str, Any]) -> list[str]:
    """The first lines of a result on the terminal: when, where, and with what."""
    about = [f"{name}: {result[name]}" for name in ("machine", "versions", "setting") if name in result]
    return [result["date"], *about]


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
