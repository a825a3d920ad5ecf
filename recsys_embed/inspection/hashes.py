"""64-bit hashes of cells and of row numbers."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa


def hash_cells(values: pa.Array) -> np.ndarray:
    """Of strings without nulls, ``[n]`` uint64."""
    return np.asarray(pd.util.hash_array(values.to_numpy(zero_copy_only=False), categorize=False), np.uint64)


def hash_rows(first: int, count: int) -> np.ndarray:
    """Of rows ``first``, ``first + 1``, …, ``[count]`` uint64: their places in a splitmix64 sequence."""
    z = np.arange(first + 1, first + count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))
