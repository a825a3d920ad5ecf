"""``torchrun -m recsys_embed train`` on two ranks, in the background, to be disturbed."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread
from typing import Any

from bench.injections.artifacts import saved_steps
from bench.injections.children import ROOT, environment
from bench.injections.tally import NotBuiltError

RANKS = 2


class Job:
    """A job that is under way from the beginning; ``restarts``: how often torchrun may start its ranks again.

    Raises:
        NotBuiltError: psutil, which finds its processes, is not installed.
    """

    def __init__(self, config: Path, out: Path, *, restarts: int = 0) -> None:
        if importlib.util.find_spec("psutil") is None:
            raise NotBuiltError("psutil, of the extra dev, is not installed")
        self._out = out
        launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}", f"--max-restarts={restarts}"]
        command = ["recsys_embed", "train", str(config), "--out", str(out), "--quiet"]
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", *launcher, "-m", *command],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
            cwd=ROOT,
            start_new_session=True,
        )
        self._lines: list[tuple[float, str]] = []
        self._reader = Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self._lines.append((time.perf_counter(), line))

    @property
    def errors(self) -> str:
        """What torchrun and the ranks have written to standard error."""
        return "".join(line for _, line in self._lines)

    def heard(self, text: str, seconds: float) -> float | None:
        """When ``text`` was written to standard error; None where it is not within so many seconds from now."""
        deadline = time.perf_counter() + seconds
        while True:
            ended = self._process.poll() is not None
            for moment, line in list(self._lines):
                if text in line:
                    return moment
            if ended or time.perf_counter() > deadline:
                return None
            time.sleep(0.02)

    def saves(self, count: int, seconds: float) -> bool:
        """Wait for so many new checkpoints; False where the job ends without, or takes longer."""
        deadline, before, seen = time.perf_counter() + seconds, saved_steps(self._out), set[str]()
        while len(seen) < count:
            seen |= saved_steps(self._out) - before
            if self._process.poll() is not None or time.perf_counter() > deadline:
                return False
            time.sleep(0.01)
        return True

    def rank(self, number: int) -> Any:
        """The process of a rank, as psutil has it."""
        import psutil

        alive = [one for one in psutil.Process(self._process.pid).children() if one.status() != "zombie"]
        return {one.environ().get("RANK"): one for one in alive}[str(number)]

    def ended(self, seconds: float) -> int | None:
        """The exit code; None where the job takes longer, and is then killed."""
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
            for one in [self._process, *self.left()]:
                one.kill()
        self._reader.join(10)
        return code

    def left(self) -> list[Any]:
        """Processes of the job that are alive: those whose command names its folder."""
        import psutil

        every = psutil.process_iter(["cmdline", "status"])
        return [p for p in every if str(self._out) in (p.info["cmdline"] or []) and p.info["status"] != "zombie"]
