"""Ctrl-C and SIGTERM end a run between two states, and say how to go on."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop. ``exit_code`` is the shell's: 130 for Ctrl-C, 143 for SIGTERM."""

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class _Terminated(KeyboardInterrupt):
    pass


@contextlib.contextmanager
def interruptible(explain: Callable[[], str]) -> Iterator[None]:
    """Turn Ctrl-C, and SIGTERM where nobody else handles it, into :class:`Interrupted` with ``explain()`` as text."""

    def terminate(number: int, frame: FrameType | None) -> None:
        raise _Terminated

    ours = threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if ours:
        signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except Interrupted:
        raise
    except KeyboardInterrupt as stop:
        code = 128 + (signal.SIGTERM if isinstance(stop, _Terminated) else signal.SIGINT)
        raise Interrupted(explain(), exit_code=int(code)) from stop
    finally:
        if ours:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
