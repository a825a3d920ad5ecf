"""The processes of a run: what they agree on. In a process without a process group, everything is its own.

The calls are collective: every rank makes them, in the same order.
"""

from __future__ import annotations

import contextlib
import datetime
import gc
import importlib
import os
import re
import threading
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from recsys_embed.errors import RankError
from recsys_embed.rendezvous import meet
from recsys_embed.share import Share

_BEAT_SECONDS, _START_SECONDS = 1.0, 300.0


@contextlib.contextmanager
def joined(device: str, *, timeout: float) -> Iterator[None]:
    """Take part in the process group that torchrun has made room for, be it of one rank; nothing without torchrun.

    NCCL where ``device`` is CUDA, gloo otherwise. ``timeout`` is how many seconds an agreement may take: what the ranks
    do between two of them may differ by no more. With NCCL, torch itself ends a process that waited longer.

    Raises:
        RankError: another rank did not answer in that time, or has ended.
    """
    launched = int(os.environ.get("WORLD_SIZE", "1")) > 1 or (dist.is_available() and dist.is_torchelastic_launched())
    if not launched or dist.is_initialized():
        yield
        return
    # Its functions' defaults keep the group of the time when they were imported, which TorchRec does: here, of none.
    importlib.import_module("torch.distributed.nn.functional")
    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.set_device(local())
    try:
        store, rank, world = meet(max(timeout, _START_SECONDS))
        wait = datetime.timedelta(seconds=timeout)
        dist.init_process_group("nccl" if cuda else "gloo", store=store, rank=rank, world_size=world, timeout=wait)
        yield
    except Exception as error:
        if (cause := _failed_group(error)) is None:
            raise
        raise RankError(f"rank {os.environ.get('RANK', '?')}: {_told(cause, timeout)}") from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    # Its threads end with the last that refers to it. One that lets go of a tensor while Python ends, aborts. Not after
    # an error: torchrun leaves a rank little time to tell it.
    gc.collect()


def _failed_group(error: BaseException | None) -> BaseException | None:
    """The error of the process group that ``error`` is or came from; gloo's begin with a place in its sources."""
    while error is not None and not isinstance(error, dist.DistError) and "/gloo/" not in str(error):
        error = error.__cause__
    return error


def _told(cause: BaseException, timeout: float) -> str:
    goes_on = "the same command goes on from the last checkpoint"
    if re.search("timed? ?out", str(cause), re.IGNORECASE):
        return f"another rank did not answer within sharding.timeout_seconds = {timeout:g}: it hangs; {goes_on}"
    return f"another rank has ended, and said why if it could; {goes_on}"


@contextlib.contextmanager
def alone() -> Iterator[bool]:
    """Let the first rank do the block's work, for however long, while the others wait at its end: whether this is it.

    The first one shows every second that its process is alive, so that the others need no patience beyond the process
    group's. Its block may make no collective call.
    """
    if count() == 1:
        yield True
        return
    there = device()
    if own():
        yield False
        while int(largest(torch.zeros(1, device=there))):
            pass
        return
    with _beating(there):
        yield True
    largest(torch.zeros(1, device=there))


@contextlib.contextmanager
def _beating(there: torch.device) -> Iterator[None]:
    """Tell the other ranks, by a thread, that this one is busy."""
    done = threading.Event()
    failures: list[RuntimeError] = []

    def beat() -> None:
        while not done.wait(_BEAT_SECONDS) and not failures:
            try:
                largest(torch.ones(1, device=there))
            except RuntimeError as error:  # another rank has ended
                failures.append(error)

    thread = threading.Thread(target=beat, name="recsys_embed.ranks", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    if failures:
        raise failures[0]


def local() -> int:
    """This process's place among those of its machine, from 0: the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def share() -> Share:
    """This rank's piece of what is divided."""
    return Share(own(), count())


def device() -> torch.device:
    """Where small agreements are made."""
    nccl = count() > 1 and dist.get_backend() == "nccl"
    return torch.device("cuda", torch.cuda.current_device()) if nccl else torch.device("cpu")


def count() -> int:
    """How many ranks there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def own() -> int:
    """This process's rank, from 0."""
    return dist.get_rank() if count() > 1 else 0


def summed(tensor: Tensor) -> Tensor:
    """The sum over ranks, of one shape on all of them."""
    if count() == 1:
        return tensor
    total = tensor.clone()
    dist.all_reduce(total)
    return total


def largest(tensor: Tensor) -> Tensor:
    """The elementwise maximum over ranks, of one shape on all of them."""
    if count() == 1:
        return tensor
    most = tensor.clone()
    dist.all_reduce(most, dist.ReduceOp.MAX)
    return most


def told(text: str) -> str:
    """What the first rank says, whatever the others do."""
    if count() == 1:
        return text
    said = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8) if own() == 0 and text else torch.empty(0)
    return bytes(gathered(said.to(torch.uint8).to(device())).tolist()).decode()


def sent(tensor: Tensor, rank: int) -> Tensor:
    """What one rank holds, on all of them: of one shape and dtype, written into ``tensor``."""
    if count() > 1:
        dist.broadcast(tensor, rank)
    return tensor


def everywhere(holds: bool) -> bool:
    """Whether it holds on all ranks."""
    return not int(largest(torch.tensor([not holds], device=device()).int()))


def gathered(tensor: Tensor) -> Tensor:
    """All ranks' tensors one after another, in the order of ranks; their first dimensions may differ."""
    if count() == 1:
        return tensor
    mine = torch.tensor([tensor.shape[0]], device=tensor.device)
    lengths = [torch.empty_like(mine) for _ in range(count())]
    dist.all_gather(lengths, mine)
    longest = max(int(length) for length in lengths)
    padded = tensor.new_zeros(longest, *tensor.shape[1:])
    padded[: tensor.shape[0]] = tensor
    parts = [torch.empty_like(padded) for _ in lengths]
    dist.all_gather(parts, padded)
    return torch.cat([part[: int(length)] for part, length in zip(parts, lengths, strict=True)])
