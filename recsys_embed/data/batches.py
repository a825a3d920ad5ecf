"""Batches from columns, cut without a step of Python per row.

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
from recsys_embed.data.columns import Columns
from recsys_embed.ids import Ids


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


def gather(columns: Columns, rows: np.ndarray, count: int) -> Iterator[Batch]:
    """Cut ``rows`` into ``count`` batches of one size."""
    return cut(columns.take(rows.astype(np.intp)), count)


def cut(columns: Columns, count: int) -> Iterator[Batch]:
    """All rows in their order, as ``count`` batches of one size."""
    jagged = any(isinstance(ids, Bag) for ids in columns.ids)
    size = len(columns) // count
    dense = np.empty((len(columns), len(columns.dense)), np.float32)
    for i, column in enumerate(columns.dense):
        dense[:, i] = column
    numbers = [columns.label, *([] if columns.weight is None else [columns.weight])]
    return map(
        Batch,
        _jagged(columns.ids, count, size) if jagged else _matrix(columns.ids, count, size),
        torch.from_numpy(dense).view(count, size, len(columns.dense)).unbind(),
        *(torch.from_numpy(np.ascontiguousarray(one)).view(count, size).unbind() for one in numbers),
    )


def _matrix(features: tuple[np.ndarray | Bag, ...], count: int, size: int) -> Iterator[Ids]:
    values = np.empty((count, len(features), size), _id_type(features))  # [K, F, B]
    for f, column in enumerate(features):
        assert isinstance(column, np.ndarray)
        values[:, f] = column.reshape(count, size)
    for batch in torch.from_numpy(values).unbind():
        yield Ids(batch, len(features))


def _id_type(features: tuple[np.ndarray | Bag, ...]) -> np.dtype[Any]:
    """One for all ids of a batch."""
    kinds = [ids.values.dtype if isinstance(ids, Bag) else ids.dtype for ids in features]
    return np.result_type(np.int32, *kinds)


def _jagged(features: tuple[np.ndarray | Bag, ...], count: int, size: int) -> Iterator[Ids]:
    lengths = np.ones((count, len(features), size), np.int64)  # [K, F, B]
    for f, column in enumerate(features):
        if isinstance(column, Bag):
            lengths[:, f] = np.diff(column.offsets).reshape(count, size)
    begins = offsets_of(lengths.ravel())
    values = np.empty(begins[-1], _id_type(features))
    starts = begins[:-1].reshape(lengths.shape)
    for f, column in enumerate(features):
        to = starts[:, f].ravel()
        if isinstance(column, Bag):
            there = lengths[:, f].ravel()
            values[spans(to, there)] = column.values
        else:
            values[to] = column
    each = len(features) * size
    edges = begins[:: max(each, 1)][: count + 1] if each else np.zeros(count + 1, np.int64)
    local = np.zeros((count, each + 1), np.int64)  # every batch's own offsets
    local[:, 1:] = begins[1:].reshape(count, each) - edges[:count, None]
    parts = torch.from_numpy(values).split(np.diff(edges).tolist())
    for part, offsets in zip(parts, torch.from_numpy(local).unbind(), strict=True):
        yield Ids(part, len(features), offsets)
