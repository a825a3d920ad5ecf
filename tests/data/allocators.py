"""Where a test measures memory in a process of its own: allocators that give back at once what is freed.

What they otherwise keep for later, by thread, depends on how threads take turns.
"""

from __future__ import annotations

import os


def giving_back() -> dict[str, str]:
    """The environment of such a process."""
    kept = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    return {**os.environ, **kept}
