"""Rows of a table by their numbers.

A vector is gathered from by ``index_select`` and a matrix by ``embedding``, as ``bench/gather.py`` measures: of a
matrix of one column torch's ``embedding`` takes more than twice as long, and with its gradient several times;
indexing by a tensor takes longer than either.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def gather(source: Tensor, rows: Tensor) -> Tensor:
    """``source [R, W]`` of any type at row numbers ``[...]`` in ``[0, R)``: ``[..., W]``, connected to ``source``."""
    if source.shape[1] == 1:
        return source.view(-1).index_select(0, rows.reshape(-1)).view(*rows.shape, 1)
    return F.embedding(rows, source)
