"""Python code in a process of its own, which may die."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def environment(**extra: str) -> dict[str, str]:
    """This process's environment with the repository to import from, on one thread."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **extra}


def call(code: str, *arguments: object, timeout: float = 300, **extra: str) -> tuple[int, list[Any], str]:
    """Run code; its exit code, what it printed (a JSON value a line) and its standard error."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment(**extra),
        cwd=ROOT,
        check=False,
    )
    return done.returncode, _lines(done.stdout), done.stderr[-2000:]


def command(arguments: Sequence[object], **extra: str) -> subprocess.Popen[str]:
    """Start ``recsys-embed`` with these arguments, in a process group of its own."""
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "recsys_embed", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(**extra),
        cwd=ROOT,
        start_new_session=True,
    )


def _lines(text: str) -> list[Any]:
    found = []
    for line in text.splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found
