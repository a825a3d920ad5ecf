"""64-bit hashes of cells and of row numbers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import xxhash


def hash_cells(values: pa.Array, name: str) -> np.ndarray:
    """Of strings without nulls, ``[n]`` uint64; ``name`` makes those of one column independent of another's."""
    seed = np.uint64(xxhash.xxh3_64_intdigest(name.encode()))
    hashed = pd.util.hash_array(values.to_numpy(zero_copy_only=False), categorize=False)
    return _mix(np.asarray(hashed, np.uint64) ^ seed)


def hash_rows(first: int, count: int) -> np.ndarray:
    """Of rows ``first``, ``first + 1``, …, ``[count]`` uint64: their places in a splitmix64 sequence."""
    return _mix(np.arange(first + 1, first + count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))
