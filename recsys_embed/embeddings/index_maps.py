"""The closed set of index maps: how ids become row numbers, as data.

Shapes: F features, S slots, B samples, N occurrences. A map holds constants ``[F, S]`` and turns a batch of ids into
row numbers ``[F, S, B]`` (``[S, N]`` where jagged) in a few broadcast operations for all features at once. Because a
map is data and not code, it can be counted, tested for injectivity, and fused into a native read.

Constants are buffers outside the state dict: they follow from the configuration. What changes in training is in it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from recsys_embed.hashing import MAX_ROWS, hash_rows
from recsys_embed.ids import Ids
from recsys_embed.native.choice import address
from recsys_embed.tables.source import Numbering, Source


@dataclass(frozen=True)
class Odds:
    """Of a map that draws rows by hashing, for two ids of a feature: logarithms ``[F, S]`` that add up over slots.

    Over the slots of one table ``miss`` is the log of the chance that the one id reads none of its rows that the other
    reads at a given slot; over all slots ``same`` is that of the chance that they read the same rows.
    """

    miss: Tensor
    same: Tensor


class IndexMap(nn.Module):
    """Ids to row numbers."""

    numbering: ClassVar[Numbering | None] = None
    """How a read makes the row numbers by itself, with ``constants``; None where it cannot."""

    constants: Tensor | None
    """``int64 [2, F, S]``: those of the numbering, where it has any."""

    def __init__(self, constants: Sequence[Sequence[Sequence[int]]] | None = None) -> None:
        super().__init__()
        held = None if constants is None else torch.tensor(constants, dtype=torch.int64)
        self.register_buffer("constants", held, persistent=False)

    @abstractmethod
    def forward(self, ids: Ids) -> Tensor:
        """Row numbers ``[F, S, B]``, or ``[S, N]`` where jagged."""

    def odds(self) -> Odds | None:
        """Over hash seeds; None where rows are not drawn."""
        return None


class RowNumbers(Mapping[str, Tensor]):
    """The row numbers of a batch, by read: made when somebody asks, which a read that makes them by itself does not."""

    def __init__(self, index_maps: Mapping[str, IndexMap], ids: Ids) -> None:
        self._maps, self._ids = index_maps, ids

    def __getitem__(self, name: str) -> Tensor:
        rows: Tensor = self._maps[name](self._ids)
        return rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._maps)

    def __len__(self) -> int:
        return len(self._maps)

    def source(self, name: str) -> Source | None:
        """What a read can make them of; None where it cannot."""
        one, ids = self._maps[name], self._ids
        if one.numbering is None:
            return None

        def rows() -> Tensor:
            return in_lanes(self[name], jagged=ids.offsets is not None)

        return Source(ids.features, ids.values, one.numbering, one.constants, rows)


def in_lanes(rows: Tensor, *, jagged: bool) -> Tensor:
    """Row numbers ``[F, S, B]``, or ``[S, N]`` where jagged, in the order of lanes: ``[F*S, B]``, or ``[S*N]``."""
    return rows.reshape(-1) if jagged else rows.flatten(0, 1)


class Identity(IndexMap):
    """Row = id, one slot."""

    numbering: ClassVar[Numbering | None] = "as_they_are"

    def forward(self, ids: Ids) -> Tensor:
        """The ids themselves, with an axis for the one slot; no copy."""
        return ids.lanes()


class Stretch(IndexMap):
    """Row = id - first for the ids in ``[first, last)`` of each feature, -1 for others: a stretch has its own table."""

    first: Tensor
    last: Tensor

    def __init__(self, bounds: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        for name, constants in zip(("first", "last"), zip(*bounds, strict=True), strict=True):
            self.register_buffer(name, torch.tensor(constants).unsqueeze(1), persistent=False)

    def forward(self, ids: Ids) -> Tensor:
        """The place of every id in the stretch."""
        return _within(ids.lanes(), ids.spread(self.first), ids.spread(self.last))

    def row(self, ids: Tensor, feature: int) -> Tensor:
        """The place of ids of one feature, of any shape."""
        return _within(ids, self.first[feature], self.last[feature])


def _within(ids: Tensor, first: Tensor, last: Tensor) -> Tensor:
    return torch.where((ids >= first) & (ids < last), ids - first, -1)


class Hash(IndexMap):
    """Row = hash of the id, with a seed and a number of rows per feature and slot."""

    numbering: ClassVar[Numbering | None] = "hashes"
    constants: Tensor

    def __init__(self, seeds: Sequence[Sequence[int]], rows: Sequence[Sequence[int]]) -> None:
        _check_rows(rows)
        super().__init__([seeds, rows])

    @property
    def seeds(self) -> Tensor:
        """Of the hashes, ``[F, S]``."""
        return self.constants[0]

    @property
    def rows(self) -> Tensor:
        """How many rows there are, ``[F, S]``."""
        return self.constants[1]

    def forward(self, ids: Ids) -> Tensor:
        """See :func:`recsys_embed.hashing.hash_rows`."""
        return hash_rows(ids.lanes(), ids.spread(self.seeds), ids.spread(self.rows))

    def odds(self) -> Odds:
        """A draw per slot."""
        rows = self.rows.double()
        return Odds(torch.log1p(-1 / rows), -rows.log())


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

    def odds(self) -> Odds:
        """A draw per block, whose slots have an equal part of it each."""
        rows, length = self.rows.double(), self.block_of.bincount()[self.block_of].double()
        shape = self.seeds.shape[0], -1
        return Odds((torch.log1p(-length / rows) / length).expand(shape), (-rows.log() / length).expand(shape))


class Digits(IndexMap):
    """Row = (id div divisor) mod base: the digits of the id in a mixed radix, in integer arithmetic only.

    The remainder is the digit with divisor 1; the quotient is the digit whose base no quotient reaches. The slots of a
    feature together are complementary partitions (1909.02107, section 3): distinct ids differ in a digit.
    """

    numbering: ClassVar[Numbering | None] = "digits"
    constants: Tensor

    def __init__(self, divisors: Sequence[Sequence[int]], bases: Sequence[Sequence[int]]) -> None:
        _check_rows(bases)
        super().__init__([divisors, bases])

    @property
    def divisors(self) -> Tensor:
        """``[F, S]``."""
        return self.constants[0]

    @property
    def bases(self) -> Tensor:
        """``[F, S]``."""
        return self.constants[1]

    def forward(self, ids: Ids) -> Tensor:
        """The digits of every id."""
        return _digits(ids.lanes(), ids.spread(self.divisors), ids.spread(self.bases))

    def digit(self, ids: Tensor, feature: int, slot: int) -> Tensor:
        """One digit of the ids of one feature, of any shape."""
        return _digits(ids, self.divisors[feature, slot], self.bases[feature, slot])


def _digits(ids: Tensor, divisors: Tensor, bases: Tensor) -> Tensor:
    found = address(ids, divisors, bases, digits=True)
    if found is not None:
        return found
    return torch.div(ids.to(torch.int64), divisors, rounding_mode="floor").remainder_(bases)


class Sketch(IndexMap):
    """Row = the pointer that a bucket of cells holds for the id, or -1: a table of few ids, of bounded size.

    ``w`` buckets of ``c`` cells; an id of any feature has one key, which it may hold in any cell of one bucket. A cell
    is a key (-1: empty), a score and a pointer (-1: none). :mod:`recsys_embed.embeddings.hot_sketch` changes them.

    Args:
        offsets: a feature's first key; features of one vocabulary have the same. An id's key is offset + id.
        keys: how many keys there are; where they fit, they are held as int32.
        buckets, cells: w and c.
        seed: of the hash from keys to buckets.
    """

    keys: Tensor
    scores: Tensor
    pointers: Tensor
    _offsets: Tensor
    _seed: Tensor
    _buckets: Tensor

    def __init__(self, offsets: Sequence[int], keys: int, buckets: int, cells: int, seed: int) -> None:
        super().__init__()
        _check_rows([[buckets]])
        empty = torch.full((buckets, cells), -1, dtype=torch.int32)
        self.register_buffer("keys", empty.to(_key_type(keys)))
        self.register_buffer("scores", torch.zeros(buckets, cells))
        self.register_buffer("pointers", empty.clone())
        for name, constants in (("_offsets", [[o] for o in offsets]), ("_seed", seed), ("_buckets", buckets)):
            self.register_buffer(name, torch.tensor(constants, dtype=torch.int64), persistent=False)

    @staticmethod
    def cell_bytes(keys: int) -> int:
        """Bytes of a cell where there are so many keys."""
        return _key_type(keys).itemsize + 4 + 4

    def keys_of(self, ids: Ids) -> Tensor:
        """Keys, ``[F, 1, B]`` or ``[1, N]``."""
        return ids.lanes() + ids.spread(self._offsets)

    def buckets_of(self, keys: Tensor) -> Tensor:
        """The bucket of each key, of any shape."""
        return hash_rows(keys, self._seed, self._buckets)

    def pointers_of(self, keys: Tensor) -> Tensor:
        """The pointer of each key, or -1, as int64. A key stands in one cell at most."""
        bucket = self.buckets_of(keys).view(-1)
        here = self.keys.index_select(0, bucket) == keys.reshape(-1, 1)
        found = self.pointers.index_select(0, bucket).masked_fill_(~here, -1).amax(1)
        return found.view(keys.shape).to(torch.int64)

    def forward(self, ids: Ids) -> Tensor:
        """The pointers of the ids."""
        return self.pointers_of(self.keys_of(ids))


def _key_type(keys: int) -> torch.dtype:
    return torch.int32 if keys <= 2**31 else torch.int64


def _check_rows(rows: Sequence[Sequence[int]]) -> None:
    for row in rows:
        for count in row:
            if not 1 <= count <= MAX_ROWS:
                raise ValueError(f"a table has between 1 and {MAX_ROWS} rows, got {count}")
