"""Functions on several ranks: processes forked from one that has imported everything, which takes seconds a rank."""

from __future__ import annotations

import logging
import os
import signal
import socket
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from recsys_embed import ranks
from recsys_embed.errors import RecsysEmbedError

PRELOADED = ["recsys_embed.jobs", "recsys_embed.training.trainer", "torchrec", "torch._dynamo"]
"""By whichever process the ranks are forked from."""

_FORKS = get_context("forkserver")
_FORKS.set_forkserver_preload(PRELOADED)


@dataclass(frozen=True)
class Outcome:
    """What a rank came to: a value, or an error by type and text, or, where a signal ended it, just a negative code."""

    code: int | None
    value: Any = None
    error: str = ""
    text: str = ""


def on_ranks(
    count: int, function: Callable[..., Any], *arguments: Any, patience: float = 60, seconds: float = 300
) -> list[Outcome]:
    """Call a function on so many ranks of one process group; what each of them came to.

    Args:
        count: how many.
        function: a function of a module; its arguments and what it returns are pickled.
        patience: of the process group.
        seconds: for all of it; the code of a rank that takes longer, and is then killed, is None.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = []
    for rank in range(count):
        ours, theirs = _FORKS.Pipe(duplex=False)
        child = _FORKS.Process(target=_work, args=(rank, count, port, patience, theirs, function, arguments))
        child.start()
        theirs.close()
        children.append((child, ours))
    deadline = time.monotonic() + seconds
    outcomes = []
    for child, ours in children:
        told: tuple[Any, ...] = ()
        try:
            if ours.poll(max(0.0, deadline - time.monotonic())):
                told = ours.recv()
        except EOFError:
            pass  # it was killed
        child.join(max(0.0, deadline - time.monotonic()))
        code = child.exitcode
        if code is None:
            child.kill()
            child.join()
        outcomes.append(Outcome(code, *told))
    return outcomes


def _work(
    rank: int,
    count: int,
    port: int,
    patience: float,
    pipe: Connection,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    import torch

    torch.set_num_threads(1)
    logging.getLogger("torch.fx").setLevel(logging.ERROR)  # warns of a function of its own that TorchRec calls
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        with ranks.joined("cpu", timeout=patience):
            told = (function(*arguments), "", "")
    except Exception as error:
        ours = isinstance(error, RecsysEmbedError)
        told = (None, type(error).__name__, str(error) if ours else traceback.format_exc())
    pipe.send(told)
