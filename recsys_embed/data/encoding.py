"""The last pass: a part's rows, as counting kept them, encoded, to their places in the files of the splits."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from recsys_embed.data.bags import Bag
from recsys_embed.data.blocks import read_blocks
from recsys_embed.data.counting import COUNTS, ENCODED, finish, rows_path, runs_path
from recsys_embed.data.encoder import Encoder
from recsys_embed.data.numeric import TOO_FAR
from recsys_embed.data.rows import Job
from recsys_embed.data.split import SPLITS
from recsys_embed.data.storage import WEIGHT, SplitFile
from recsys_embed.files import atomic_write, sync

DATA, ENCODER, LAYOUT = "data", "encoder", "layout.json"


def split_path(job: Job, split: str) -> Path:
    """The file of a split."""
    return Path(job.work) / DATA / f"{split}.arrow"


@dataclass(frozen=True)
class Layout:
    """The files of the splits, and where each part's rows begin in them, and its bags' values."""

    files: tuple[SplitFile, ...]
    rows: list[list[int]]  # [parts][splits]
    values: list[list[list[int]]]  # [parts][splits][F]

    @classmethod
    def create(cls, job: Job, encoder: Encoder, counted: list[dict[str, Any]]) -> Layout:
        """Lay the files out."""
        names = [f.name for f in encoder.features] + [f"dense:{name}" for name in encoder.dense]
        names += [f"label:{encoder.label.column}", *([] if job.config.weight is None else [WEIGHT + job.config.weight])]
        rows, values = [[0] * 3], [[[0] * len(encoder.features) for _ in SPLITS]]
        for one in counted:
            rows.append([sum(pair) for pair in zip(rows[-1], one["rows"], strict=True)])
            bags = [one["bags"].get(f.name, [0, 0, 0]) for f in encoder.features]
            values.append(
                [[begin + bag[s] for begin, bag in zip(values[-1][s], bags, strict=True)] for s in range(len(SPLITS))]
            )
        files = tuple(
            SplitFile.create(
                split_path(job, split),
                rows[-1][s],
                names,
                [values[-1][s][i] if f.multi_valued else None for i, f in enumerate(encoder.features)],
                [8 if f.hashed else 4 for f in encoder.features],
            )
            for s, split in enumerate(SPLITS)
        )
        return cls(files, rows, values)

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        tree = {"files": [file.tree() for file in self.files], "rows": self.rows, "values": self.values}
        atomic_write(path, json.dumps(tree))

    @classmethod
    def load(cls, path: Path) -> Layout:
        """Read what :meth:`save` wrote."""
        tree = json.loads(path.read_text(encoding="utf-8"))
        return cls(tuple(SplitFile.of(one) for one in tree["files"]), tree["rows"], tree["values"])


def encode(job: Job, index: int) -> int:
    """Encode a part's rows and write them to their places; returns the rows.

    Raises:
        DataError: a number that float32 cannot hold once it is scaled.
    """
    work = Path(job.work)
    encoder, layout = _opened(job.work, (work / LAYOUT).stat().st_mtime_ns)
    paths = [split_path(job, split) for split in SPLITS]
    at, values = list(layout.rows[index]), [list(one) for one in layout.values[index]]
    kept = runs_path(job, COUNTS, index), rows_path(job, index)
    bags, numbers = [f.multi_valued for f in encoder.features], len(encoder.scalers) + (job.config.weight is not None)
    zeros = np.zeros((len(SPLITS), len(encoder.features)), np.int64)
    for block in read_blocks(*kept, bags, numbers):
        columns = encoder.columns_of(block)
        if (far := encoder.too_far(block.numbers, columns.dense)) is not None:
            column, _, value = far
            raise job.first([index], column, TOO_FAR, lambda chunk: chunk.numbers(column) == value, value)  # noqa: B023
        if job.config.weight is not None:
            columns = replace(columns, weight=block.numbers[-1].astype(np.float32))
        for split, file in enumerate(layout.files):
            part = columns.take(np.flatnonzero(block.splits == split))
            if not len(part):
                continue
            file.write(paths[split], at[split], values[split], part)
            at[split] += len(part)
            for i, ids in enumerate(part.ids):
                values[split][i] += len(ids.values) if isinstance(ids, Bag) else 0
                zeros[split, i] += np.count_nonzero((ids.values if isinstance(ids, Bag) else ids) == 0)
    for path in paths:  # a part that is done stays so when the machine stops
        sync(path)
    finish(job, ENCODED, index, {"zeros": zeros.tolist()})
    for path in kept:
        path.unlink()
    return sum(now - before for now, before in zip(at, layout.rows[index], strict=True))


@functools.lru_cache(maxsize=1)
def _opened(work: str, _: int) -> tuple[Encoder, Layout]:
    """Read once a process; the time says whether it is still the same."""
    return Encoder.load(Path(work) / DATA / ENCODER), Layout.load(Path(work) / LAYOUT)
