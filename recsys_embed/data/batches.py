"""Batches from columns, gathered block by block without a step of Python per row.

Shapes: F features, B samples, K batches of a block, N id occurrences.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recsys_embed.data.bags import Bag, offsets_of, spans
from recsys_embed.features import Ids
from recsys_embed.ranks import WHOLE, Share

# Numbers gathered at once. A batch cut out of a block costs a microsecond or two, and going column by column through
# many rows keeps a column in the cache, where row by row through all columns misses it each time.
BLOCK_NUMBERS = 1 << 22


@dataclass(frozen=True)
class Batch:
    """``ids`` of B samples, ``dense [B, n]`` float32, ``label [B]`` float32 and, where samples are weighted,
    ``weight [B]`` float32.

    The tensors are views of arrays that the neighbouring batches share.
    """

    ids: Ids
    dense: Tensor
    label: Tensor
    weight: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The batch on a device; itself where it is there already."""
        if self.label.device == device:
            return self
        weight = None if self.weight is None else self.weight.to(device)
        return Batch(self.ids.to(device), self.dense.to(device), self.label.to(device), weight)


@dataclass(frozen=True)
class Columns:
    """Encoded rows by column: per feature ids ``[rows]`` (int32; hashes int64) or a :class:`Bag`; dense columns, label
    and, where rows are weighted, weight float32."""

    ids: tuple[np.ndarray | Bag, ...]
    dense: tuple[np.ndarray, ...]
    label: np.ndarray
    weight: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.label)

    @property
    def numbers(self) -> tuple[np.ndarray, ...]:
        """The columns that are no ids, in the order of the file: dense, label, and weight where there is one."""
        return (*self.dense, self.label, *(() if self.weight is None else (self.weight,)))

    def take(self, rows: np.ndarray) -> Columns:
        """Some of the rows, in the order given."""
        return Columns(
            tuple(ids.take(rows) if isinstance(ids, Bag) else ids[rows] for ids in self.ids),
            tuple(column[rows] for column in self.dense),
            self.label[rows],
            None if self.weight is None else self.weight[rows],
        )


def batches(
    columns: Columns, batch_size: int, shuffle_seed: int | None = None, start: int = 0, share: Share = WHOLE
) -> Iterator[Batch]:
    """All rows once, in file order or in an order that the seed fixes; the last batch may be short.

    The first ``start`` batches are left out, without reading their rows. With a ``share``, that piece of every batch,
    without reading the rest: as many batches, of which some may be empty.
    """
    count = len(columns)
    order = np.arange(count, dtype=np.int32 if count < 2**31 else np.int64)
    if shuffle_seed is not None:
        np.random.default_rng(shuffle_seed).shuffle(order)
    whole = count - count % batch_size
    width = len(columns.ids) + len(columns.dense) + 1
    block = max(1, BLOCK_NUMBERS // (width * batch_size)) * batch_size
    first = start * batch_size
    for begin in range(first, whole, block):
        rows = order[begin : min(begin + block, whole)].reshape(-1, batch_size)
        yield from gather(columns, rows[:, slice(*share.of(batch_size))].reshape(-1), len(rows))
    if max(whole, first) < count:
        yield from gather(columns, order[whole:][slice(*share.of(count - whole))], 1)


def gather(columns: Columns, rows: np.ndarray, count: int) -> Iterator[Batch]:
    """Cut ``rows`` into ``count`` batches of one size."""
    rows = rows.astype(np.intp)  # once, not for every column
    jagged = any(isinstance(ids, Bag) for ids in columns.ids)
    size = len(rows) // count
    dense = np.empty((len(rows), len(columns.dense)), np.float32)
    for i, column in enumerate(columns.dense):
        dense[:, i] = column[rows]
    weights = [] if columns.weight is None else [torch.from_numpy(columns.weight[rows]).view(count, size).unbind()]
    return map(
        Batch,
        _jagged(columns.ids, rows, count) if jagged else _matrix(columns.ids, rows, count),
        torch.from_numpy(dense).view(count, size, len(columns.dense)).unbind(),
        torch.from_numpy(columns.label[rows]).view(count, size).unbind(),
        *weights,
    )


def _matrix(features: tuple[np.ndarray | Bag, ...], rows: np.ndarray, count: int) -> Iterator[Ids]:
    values = np.empty((count, len(features), len(rows) // count), _id_type(features))  # [K, F, B]
    for f, column in enumerate(features):
        assert isinstance(column, np.ndarray)
        values[:, f] = column[rows].reshape(count, -1)
    for batch in torch.from_numpy(values).unbind():
        yield Ids(batch, len(features))


def _id_type(features: tuple[np.ndarray | Bag, ...]) -> np.dtype[Any]:
    """One for all ids of a batch."""
    kinds = [ids.values.dtype if isinstance(ids, Bag) else ids.dtype for ids in features]
    return np.result_type(np.int32, *kinds)


def _jagged(features: tuple[np.ndarray | Bag, ...], rows: np.ndarray, count: int) -> Iterator[Ids]:
    size = len(rows) // count
    lengths = np.ones((count, len(features), size), np.int64)  # [K, F, B]
    for f, column in enumerate(features):
        if isinstance(column, Bag):
            lengths[:, f] = column.lengths(rows).reshape(count, size)
    begins = offsets_of(lengths.ravel())
    values = np.empty(begins[-1], _id_type(features))
    starts = begins[:-1].reshape(lengths.shape)
    for f, column in enumerate(features):
        to = starts[:, f].ravel()
        if isinstance(column, Bag):
            there = lengths[:, f].ravel()
            values[spans(to, there)] = column.values[spans(column.offsets[rows], there)]
        else:
            values[to] = column[rows]
    each = len(features) * size
    edges = begins[:: max(each, 1)][: count + 1] if each else np.zeros(count + 1, np.int64)
    local = np.zeros((count, each + 1), np.int64)  # every batch's own offsets
    local[:, 1:] = begins[1:].reshape(count, each) - edges[:count, None]
    parts = torch.from_numpy(values).split(np.diff(edges).tolist())
    for part, offsets in zip(parts, torch.from_numpy(local).unbind(), strict=True):
        yield Ids(part, len(features), offsets)
