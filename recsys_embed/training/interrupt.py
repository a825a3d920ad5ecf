"""Ctrl-C and SIGTERM end a run between two steps, and say how to go on."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import torch

from recsys_embed import ranks


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop. ``exit_code`` is the shell's: 130 for Ctrl-C, 143 for SIGTERM."""

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class StopRequest:
    """Whether the run was asked to stop: ``number`` is the signal's, and None until then."""

    number: int | None = None

    def __bool__(self) -> bool:
        return self.number is not None

    def agreed(self) -> bool:
        """Whether any rank was asked to; a collective call, after which all of them know."""
        if ranks.count() > 1:
            number = int(ranks.largest(torch.tensor([self.number or 0], device=ranks.device())))
            self.number = number or None
        return bool(self)


@contextlib.contextmanager
def interruptible(explain: Callable[[], str]) -> Iterator[StopRequest]:
    """Let the block ask for the first Ctrl-C or SIGTERM between its steps; raise :class:`Interrupted` where it stops.

    A second signal, or a KeyboardInterrupt of whatever else, stops it where it stands. A handler that somebody else
    has set is asked: where it raises KeyboardInterrupt, the run stops as above; where it returns, the run goes on. A
    signal that is ignored stays so. In any but the main thread no handler can be set.

    Args:
        explain: what to tell whoever interrupted, asked for at the end.
    """
    request = StopRequest()
    try:
        with _handlers(request):
            yield request
    except Interrupted:
        raise
    except KeyboardInterrupt as stop:
        code = 128 + request.number if request.number is not None else getattr(stop, "exit_code", 130)
        raise Interrupted(explain(), exit_code=code) from stop
    if request.number is not None:
        raise Interrupted(explain(), exit_code=128 + request.number)


@contextlib.contextmanager
def _handlers(request: StopRequest) -> Iterator[None]:
    before: dict[int, Any] = {}

    def ask(number: int, frame: FrameType | None) -> None:
        previous = before[number]
        if request:  # for the second time
            previous(number, frame) if callable(previous) else signal.default_int_handler(number, frame)
        if not callable(previous):
            request.number = number
            return
        try:
            previous(number, frame)
        except KeyboardInterrupt:
            request.number = number

    try:
        if threading.current_thread() is threading.main_thread():
            for number in (int(signal.SIGINT), int(signal.SIGTERM)):
                before[number] = signal.getsignal(number)
                if before[number] not in (signal.SIG_IGN, None):
                    signal.signal(number, ask)
        yield
    finally:
        for number, previous in before.items():
            if signal.getsignal(number) is ask:
                signal.signal(number, previous)
