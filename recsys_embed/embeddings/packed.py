"""Sparse rows as they are shipped: the values that were kept, a bit for every weight, and where rows begin.

Shapes: R rows of all tables, D width, P = ceil(D / 8), K values kept, F features, B samples, N id occurrences.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from recsys_embed.embeddings.bits import count_bits, pack_bits, packed_bytes, unpack_bits
from recsys_embed.features import Feature
from recsys_embed.ids import Ids
from recsys_embed.pooling import pool_occurrences

GROUP = 32
"""Rows that share a start: the start of a row is found by counting the bits of up to 31 rows before it, which costs an
eighth of a byte a row instead of four bytes."""

MOST = 2**31 - 1
"""The most values: starts are 32-bit integers."""


class PackedRows(nn.Module):
    """Rows of sparse tables. Bytes: 4 K + R ceil(D / 8) + 4 ceil(R / 32).

    ``values [K]`` float32 are those of row 0, then of row 1, and so on; ``mask [R, P]`` uint8 has a bit for each weight
    of a row; ``starts`` int32 says where in ``values`` each 32nd row begins.

    Args:
        features: in the order of the ids that :meth:`forward` takes.
        first_rows: the row of id 0, for each feature.
        rows: R.
        width: D.
        kept: K. The form is empty until :meth:`of` or ``load_state_dict`` fills it.
    """

    values: Tensor
    mask: Tensor
    starts: Tensor
    first_rows: Tensor

    def __init__(
        self, features: Sequence[Feature], first_rows: Sequence[int], rows: int, width: int, kept: int
    ) -> None:
        super().__init__()
        self.features, self.width = tuple(features), width
        self.register_buffer("values", torch.zeros(kept))
        self.register_buffer("mask", torch.zeros(rows, packed_bytes(width), dtype=torch.uint8))
        self.register_buffer("starts", torch.zeros(-(-rows // GROUP), dtype=torch.int32))
        self.register_buffer("first_rows", torch.tensor(first_rows).unsqueeze(1), persistent=False)

    @classmethod
    def of(
        cls,
        features: Sequence[Feature],
        first_rows: Sequence[int],
        width: int,
        rows: Iterable[Tensor],
        kept: Iterable[Tensor],
    ) -> PackedRows:
        """Pack ``rows`` in parts ``[n, D]``, all tables one after another, of which the weights ``kept`` (booleans of
        the same shapes) stay."""
        values, masks = [], []
        for part, keep in zip(rows, kept, strict=True):
            values.append(part[keep])
            masks.append(pack_bits(keep))
        mask = torch.cat(masks)
        ends = count_bits(mask).cumsum(0)
        starts = torch.cat([ends.new_zeros(1), ends])[:-1:GROUP]
        packed = cls(features, first_rows, mask.shape[0], width, sum(part.numel() for part in values))
        packed.load_state_dict({"values": torch.cat(values), "mask": mask, "starts": starts.to(torch.int32)})
        return packed.to(mask.device)

    @staticmethod
    def sizes(rows: int, width: int, kept: int) -> dict[str, int]:
        """Bytes of each part, from the numbers alone."""
        return {"values": 4 * kept, "mask": rows * packed_bytes(width), "starts": 4 * -(-rows // GROUP)}

    def forward(self, ids: Ids) -> Tensor:
        """Vectors ``[B, F, D]`` of ids that are known to lie in ``[0, cardinality)``."""
        rows = ids.by_vector(ids.lanes().to(torch.int64) + ids.spread(self.first_rows)).squeeze(-1)
        vectors = self._unpacked(rows)
        return vectors if ids.offsets is None else pool_occurrences(self.features, ids, vectors)

    def _unpacked(self, rows: Tensor) -> Tensor:
        """Vectors ``[..., D]`` of rows ``[...]``."""
        bits = unpack_bits(self.mask[rows], self.width)
        group = rows.div(GROUP, rounding_mode="floor")
        before = group.unsqueeze(-1) * GROUP + torch.arange(GROUP - 1, device=rows.device)  # [..., 31]
        counts = count_bits(self.mask[before.clamp_max(self.mask.shape[0] - 1)])
        begin = self.starts[group] + (counts * (before < rows.unsqueeze(-1))).sum(-1)
        places = begin.unsqueeze(-1) + bits.cumsum(-1) - 1
        return self.values[places.clamp_min(0)].masked_fill(~bits, 0)
