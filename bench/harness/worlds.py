"""One training by different numbers of ranks, side by side: all processes live at once and step in turns.

A machine that is busy for a while is then busy for all of them: what is compared are steps of the same few seconds.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from bench.harness.draws import zipf_ranks
from bench.harness.steps import PARTS, TimedStep
from recsys_embed import EmbeddingLayer, Feature, ranks
from recsys_embed.config import DLRMConfig, TrainingConfig
from recsys_embed.data.batches import Batch
from recsys_embed.ids import Ids
from recsys_embed.models import build_model
from recsys_embed.recommender import Recommender
from recsys_embed.share import Share
from recsys_embed.tables.base import UpdateRule

NUMERIC = 13
BATCHES = 4
SECONDS = 300
"""How long a process waits for its turn."""


@dataclass(frozen=True)
class Setup:
    """So many ranks of one training, on a back end."""

    name: str
    ranks: int
    backend: str

    @property
    def threads(self) -> int:
        """Of each rank: they share the cores."""
        return max(1, (os.cpu_count() or 1) // self.ranks)


SETUPS = (Setup("one process", 1, "fused"), Setup("1 rank", 1, "sharded"), Setup("2 ranks", 2, "sharded"))
"""A process as it is without torchrun; the same kernels through TorchRec; and two ranks that exchange."""


@dataclass(frozen=True)
class Scale:
    """The model, the same for all; ``steps`` a turn, ``rounds`` turns each."""

    features: int
    rows: int
    dim: int
    batch: int
    rounds: int
    steps: int


def compare(setups: Sequence[Setup], scale: Scale) -> list[dict[str, Any]]:
    """For each setup: samples a second, the parts of a step, and its speed in units of the first's.

    Times are medians over all steps, of means over ranks. The speed is the median of the ratios round by round, with
    their quartiles.
    """
    seats = [(place, rank) for place, setup in enumerate(setups) for rank in range(setup.ranks)]
    turns = torch.multiprocessing.get_context("spawn").Barrier(len(seats))
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.spawn(work, (seats, setups, scale, turns, folder), nprocs=len(seats))
        told = [
            [json.loads(_told_by(folder, place, rank).read_text(encoding="utf-8")) for rank in range(setup.ranks)]
            for place, setup in enumerate(setups)
        ]
    return summary(setups, scale, told)


def work(seat: int, seats: Sequence[tuple[int, int]], setups: Sequence[Setup], scale: Scale, turns: Any, folder: str):
    """One rank of one setup: a turn to warm up, then ``rounds`` of them."""
    place, rank = seats[seat]
    setup = setups[place]
    threads = torch.get_num_threads()
    torch.set_num_threads(setup.threads)
    if setup.backend == "sharded":
        where = f"file://{folder}/meeting-{place}"
        dist.init_process_group("gloo", init_method=where, rank=rank, world_size=setup.ranks)
    try:
        model = model_of(setup.backend, scale)
        timed = TimedStep(model, TrainingConfig(batch_size=scale.batch))
        batches = batches_of(scale, Share(rank, setup.ranks))
        rounds: list[list[dict[str, float]]] = []
        for _ in range(scale.rounds + 1):
            for turn in range(len(setups)):
                turns.wait(SECONDS)
                if turn == place:
                    rounds.append([timed(batches[n % BATCHES]) for n in range(scale.steps)])
        told = {"rounds": rounds[1:], **tables_of(model.embedding)}
        _told_by(folder, place, rank).write_text(json.dumps(told), encoding="utf-8")
    finally:
        torch.set_num_threads(threads)
        if dist.is_initialized():
            dist.destroy_process_group()


def model_of(backend: str, scale: Scale) -> Recommender:
    """Full tables and a DLRM; the same initial weights in every process."""
    features = [Feature(f"f{n}", scale.rows) for n in range(scale.features)]
    layer = EmbeddingLayer(features, scale.dim, backend=backend)
    torch.manual_seed(0)
    model = build_model(DLRMConfig(dim=scale.dim), num_features=scale.features, num_dense=NUMERIC)
    return Recommender(layer, model)


def batches_of(scale: Scale, share: Share) -> list[Batch]:
    """A rank's share of a few global batches, of ids ranked by frequency."""
    generator = torch.Generator().manual_seed(0)
    first, last = share.of(scale.batch)
    found = []
    for _ in range(BATCHES):
        ids = zipf_ranks(scale.features, scale.rows, scale.batch, generator).to(torch.int32)
        dense = torch.randn(scale.batch, NUMERIC, generator=generator)
        label = (torch.rand(scale.batch, generator=generator) < 0.25).float()
        found.append(Batch(Ids(ids[:, first:last].contiguous(), scale.features), dense[first:last], label[first:last]))
    return found


def tables_of(layer: EmbeddingLayer) -> dict[str, Any]:
    """What this rank holds: bytes of rows and optimizer state, and how many tables are placed in which way."""
    rule = layer.tables.rule
    assert isinstance(rule, UpdateRule)
    placements = getattr(layer.tables, "placements", None)
    if placements is None:
        return {"bytes": int(layer.ledger()["train_bytes"].sum()), "placements": {}}
    kinds = [one.kind for one in placements]
    return {
        "bytes": sum(one.bytes_on(ranks.own(), rule) for one in placements),
        "placements": {kind: kinds.count(kind) for kind in sorted(set(kinds))},
    }


def summary(setups: Sequence[Setup], scale: Scale, told: Sequence[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """A dict of plain values for each setup, of what its ranks have told."""
    base: list[float] = []
    found = []
    for setup, by_rank in zip(setups, told, strict=True):
        steps = [  # [rounds][steps] of parts, means over ranks
            [_mean(parts) for parts in zip(*turns, strict=True)]
            for turns in zip(*(one["rounds"] for one in by_rank), strict=True)
        ]
        each = [parts for turn in steps for parts in turn]
        by_round = [statistics.median(sum(parts.values()) for parts in turn) for turn in steps]
        base = base or by_round
        speeds = [first / own for first, own in zip(base, by_round, strict=True)]
        low, middle, high = statistics.quantiles(speeds, n=4) if len(speeds) > 1 else speeds * 3
        step = statistics.median(sum(parts.values()) for parts in each)
        found.append(
            {
                **asdict(setup),
                "threads_per_rank": setup.threads,
                "samples_per_second": round(scale.batch / step),
                "speed": round(middle, 3),
                "speed_quartiles": [round(low, 3), round(high, 3)],
                "step_ms": round(1e3 * step, 2),
                "parts_ms": {p: round(1e3 * statistics.median(parts[p] for parts in each), 2) for p in PARTS},
                "bytes_per_rank": [one["bytes"] for one in by_rank],
                "placements": by_rank[0]["placements"],
            }
        )
    return found


def _mean(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    return {part: statistics.fmean(one[part] for one in parts) for part in PARTS}


def _told_by(folder: str, place: int, rank: int) -> Path:
    return Path(folder) / f"told-{place}-{rank}.json"
