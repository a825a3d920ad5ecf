"""F2: of two ranks one dies in its write of a checkpoint, or its disk refuses.

Before the write, in the middle of its file, or after it; SIGKILL, or an error of a full disk. No checkpoint may be
published, the older one stays whole, the other rank ends with an error of ours within thirty seconds, and the next save
leaves nothing behind. A kill counts where the rank ended by it, a refusal where it was raised.
"""

from __future__ import annotations

import errno
import os
import signal
import time
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from bench.injections.artifacts import fresh
from bench.injections.forks import on_ranks
from bench.injections.tally import Scale, Tally
from recsys_embed import ranks
from recsys_embed.training import checkpoints

MOMENTS = ("before", "within", "after")
NOTICED = 30.0


def inject(scale: Scale, folder: Path) -> Tally:
    """A kill and a refusal of rank 1 within its write; or twenty of both ranks, at all moments."""
    tally = Tally()
    for turn in range(scale.of(2, 20)):
        kill, pair = turn % 2 == 0, turn // 2
        victim, moment = (pair + 1) % 2, MOMENTS[(pair + 1) % 3]
        home = fresh(folder / "checkpoints")
        place = f"{'killed' if kill else 'refused'} {moment} the write of rank {victim}"
        _fine(home, 1, tally, place)
        begin = time.perf_counter()
        outcomes = on_ranks(2, _save, home, 2, (victim, moment, kill), seconds=2 * NOTICED)
        took = time.perf_counter() - begin
        fired = outcomes[victim].code == -signal.SIGKILL if kill else outcomes[victim].error == "CheckpointError"
        tally.injected += fired
        other = outcomes[1 - victim]
        if other.error == ("RankError" if kill else "CheckpointError") and took < NOTICED:
            tally.detected += fired
        else:
            tally.breach(f"{place}: the other ends with {other.code}, {other.error!r} after {took:.1f} s: {other.text}")
        with warnings.catch_warnings(record=True) as skipped:
            warnings.simplefilter("always")
            found = checkpoints.newest(home)
        if found is None:
            tally.lost += 1
        elif found.step != 1 or skipped or not _whole(found):
            tally.silent += 1
            tally.breach(f"{place}: step {found.step} was published")
        else:
            tally.recovered += fired
        _fine(home, 3, tally, place)
        if left := [path.name for path in home.iterdir() if not path.name.startswith("step-")]:
            tally.breach(f"{place}: {left} is left after the next save")
    return tally


def _fine(home: Path, step: int, tally: Tally, place: str) -> None:
    for outcome in on_ranks(2, _save, home, step):
        if outcome.code or outcome.error:
            tally.breach(f"{place}: step {step} cannot be saved: {outcome.error} {outcome.text}")


def _whole(found: checkpoints.Checkpoint) -> bool:
    tensors = found.tensors
    return torch.equal(tensors["rows"], torch.arange(200_000.0).view(-1, 2)) and bool((tensors["same"] == 1).all())


def _save(home: Path, step: int, fault: tuple[int, str, bool] | None = None) -> None:
    if fault is not None and fault[0] == ranks.own():
        _break(*fault[1:])
    own = torch.arange(200_000.0).view(-1, 2)[slice(*ranks.share().of(100_000))]
    checkpoints.save(home, step, {"same": torch.ones(1000)}, {}, dealt={"rows": own})


def _break(moment: str, kill: bool) -> None:
    """Let this process's next write of tensors fail."""
    sound = checkpoints.save_file

    def broken(tensors: Mapping[str, Tensor], path: Path) -> None:
        if moment != "before":
            sound(dict(tensors), path)
        if moment == "within":
            os.truncate(path, path.stat().st_size // 2)
        if kill:
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    checkpoints.save_file = broken
