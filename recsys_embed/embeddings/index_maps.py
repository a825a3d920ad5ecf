"""The closed set of index maps: how ids become row numbers, as data.

Shapes: F features, S slots, B samples, N occurrences. A map holds constants ``[F, S]`` and turns a batch of ids into
row numbers ``[F, S, B]`` (``[S, N]`` where jagged) in a few broadcast operations for all features at once. Because a
map is data and not code, it can be counted, tested for injectivity, and fused into a native read.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recsys_embed.features import Ids
from recsys_embed.hashing import MAX_ROWS, hash_rows


class IndexMap(nn.Module):
    """Ids to row numbers. Constants are buffers outside the state dict: they follow from the configuration."""

    @abstractmethod
    def forward(self, ids: Ids) -> Tensor:
        """Row numbers ``[F, S, B]``, or ``[S, N]`` where jagged."""


class Identity(IndexMap):
    """Row = id, one slot."""

    def forward(self, ids: Ids) -> Tensor:
        """The ids themselves, with an axis for the one slot; no copy."""
        return ids.lanes()


class Hash(IndexMap):
    """Row = hash of the id, with a seed and a number of rows per feature and slot."""

    seeds: Tensor
    rows: Tensor

    def __init__(self, seeds: Sequence[Sequence[int]], rows: Sequence[Sequence[int]]) -> None:
        super().__init__()
        _check_rows(rows)
        self.register_buffer("seeds", torch.tensor(seeds, dtype=torch.int64), persistent=False)
        self.register_buffer("rows", torch.tensor(rows, dtype=torch.int64), persistent=False)

    def forward(self, ids: Ids) -> Tensor:
        """See :func:`recsys_embed.hashing.hash_rows`."""
        return hash_rows(ids.lanes(), ids.spread(self.seeds), ids.spread(self.rows))


class Blocks(IndexMap):
    """Slots in blocks of ``length`` neighbouring rows of one table, each block beginning at a hash of the id.

    Slot s reads row (hash of block s div length + s mod length) mod rows: a block may begin at any row and goes round
    the end of the table. The last block is shorter where ``length`` does not divide the number of slots.
    """

    seeds: Tensor
    rows: Tensor
    block_of: Tensor
    shifts: Tensor

    def __init__(self, seeds: Sequence[Sequence[int]], rows: int, length: int, slots: int) -> None:
        """``seeds [F, blocks]``; ``length <= rows``, so that the rows of a block are distinct."""
        super().__init__()
        _check_rows([[rows]])
        if not 1 <= length <= rows:
            raise ValueError(f"a block of a table of {rows} rows has between 1 and {rows} of them, got {length}")
        slot = torch.arange(slots)
        self.register_buffer("seeds", torch.tensor(seeds, dtype=torch.int64), persistent=False)
        self.register_buffer("rows", torch.tensor(rows), persistent=False)
        self.register_buffer("block_of", slot // length, persistent=False)
        # How far the slot is from going round: negative row numbers are those that do not reach the end.
        self.register_buffer("shifts", (slot % length - rows).unsqueeze(1), persistent=False)

    def forward(self, ids: Ids) -> Tensor:
        """See :func:`recsys_embed.hashing.hash_rows`."""
        starts = hash_rows(ids.lanes(), ids.spread(self.seeds), self.rows)
        rows = starts.index_select(-2, self.block_of).add_(self.shifts)
        return rows.add_((rows >> 63).bitwise_and_(self.rows))


class Digits(IndexMap):
    """Row = (id div divisor) mod base: the digits of the id in a mixed radix, in integer arithmetic only.

    The remainder is the digit with divisor 1; the quotient is the digit whose base no quotient reaches. The slots of a
    feature together are complementary partitions (1909.02107, section 3): distinct ids differ in a digit.
    """

    divisors: Tensor
    bases: Tensor

    def __init__(self, divisors: Sequence[Sequence[int]], bases: Sequence[Sequence[int]]) -> None:
        super().__init__()
        _check_rows(bases)
        self.register_buffer("divisors", torch.tensor(divisors, dtype=torch.int64), persistent=False)
        self.register_buffer("bases", torch.tensor(bases, dtype=torch.int64), persistent=False)

    def forward(self, ids: Ids) -> Tensor:
        """The digits of every id."""
        quotient = torch.div(ids.lanes().to(torch.int64), ids.spread(self.divisors), rounding_mode="floor")
        return quotient.remainder_(ids.spread(self.bases))


def _check_rows(rows: Sequence[Sequence[int]]) -> None:
    for row in rows:
        for count in row:
            if not 1 <= count <= MAX_ROWS:
                raise ValueError(f"a table has between 1 and {MAX_ROWS} rows, got {count}")
