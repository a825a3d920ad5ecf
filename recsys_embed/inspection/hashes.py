"""64-bit hashes of cells and of row numbers."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import xxhash

from recsys_embed.data.text_hash import GOLDEN, hash_text, mix64


def hash_cells(values: pa.Array, name: str) -> np.ndarray:
    """Of strings without nulls, ``[n]`` uint64; ``name`` makes those of one column independent of another's."""
    return hash_text(values, xxhash.xxh3_64_intdigest(name.encode()))


def hash_rows(first: int, count: int) -> np.ndarray:
    """Of rows ``first``, ``first + 1``, …, ``[count]`` uint64: their places in a splitmix64 sequence."""
    return mix64(np.arange(first + 1, first + count + 1, dtype=np.uint64) * GOLDEN)
