"""Ranks that hang, end or work alone: the others wait as long as they should, and say what happened."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch

from recsys_embed import ranks
from recsys_embed.errors import RankError
from tests.processes import on_processes

TIMEOUT = 2.0


def hang(folder: Path) -> None:
    """The second rank does not answer before the first has given it up."""
    if not ranks.own():
        ranks.everywhere(True)
    while ranks.own() and not (folder / "hang-0.json").exists():
        time.sleep(0.05)


def wrapped(folder: Path) -> None:
    """As where a checkpoint is put back: the cause is kept, its type is not."""
    if ranks.own():
        return
    try:
        ranks.everywhere(True)
    except RuntimeError as error:
        raise ValueError("does not fit") from error


def end(folder: Path) -> None:
    if not ranks.own():
        ranks.everywhere(True)


def fail(folder: Path) -> None:
    """A failure of the first rank's own, while the others wait for it."""
    with ranks.alone() as first:
        if first:
            raise ValueError("its own")


def busy(folder: Path) -> None:
    """Longer than anybody waits for an answer."""
    with ranks.alone() as first:
        if first:
            time.sleep(2 * TIMEOUT)
    assert float(ranks.summed(torch.ones(1))) == 2.0


CASES: tuple[Callable[[Path], None], ...] = (hang, wrapped, end, fail, busy)


def work(rank: int, ports: list[int], folder: Path) -> None:
    """All cases on one rank, each in a process group of its own; what was raised, as type and text."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    (folder / f"started-{rank}").touch()
    while not (folder / f"started-{1 - rank}").exists():
        time.sleep(0.05)
    for case, port in zip(CASES, ports, strict=True):
        os.environ["MASTER_PORT"] = str(port)
        told = ["", ""]
        try:
            with ranks.joined("cpu", timeout=TIMEOUT):
                case(folder)
        except Exception as error:
            told = [type(error).__name__, str(error)]
        (folder / f"{case.__name__}-{rank}.json").write_text(json.dumps(told))


Raised = Callable[[Callable[[Path], None]], list[list[str]]]


@pytest.fixture(scope="module")
def raised(tmp_path_factory: pytest.TempPathFactory) -> Raised:
    """The type and text of what each of two ranks raised in a case; empty for nothing."""
    folder = tmp_path_factory.mktemp("ranks")
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in CASES]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        ports = [one.getsockname()[1] for one in sockets]
    on_processes(work, (ports, folder), 2)
    return lambda case: [json.loads((folder / f"{case.__name__}-{rank}.json").read_text()) for rank in range(2)]


def test_a_rank_that_hangs_is_given_up(raised: Raised) -> None:
    first, _ = raised(hang)
    assert first[0] == RankError.__name__
    assert first[1].startswith("rank 0: another rank did not answer within sharding.timeout_seconds = 2: it hangs;")


@pytest.mark.parametrize("case", [end, wrapped])
def test_a_rank_that_ends_is_noticed(case: Callable[[Path], None], raised: Raised) -> None:
    first, second = raised(case)
    assert second == ["", ""]
    assert first[0] == RankError.__name__
    assert first[1].startswith("rank 0: another rank has ended")


def test_an_error_of_the_first_ranks_own_keeps_its_type(raised: Raised) -> None:
    first, second = raised(fail)
    assert first == ["ValueError", "its own"]
    assert second[0] == RankError.__name__


def test_the_first_rank_may_work_alone_for_long(raised: Raised) -> None:
    assert raised(busy) == [["", ""], ["", ""]]


def test_one_process_is_the_first_and_needs_nobody() -> None:
    with ranks.joined("cpu", timeout=TIMEOUT), ranks.alone() as first:
        assert first
