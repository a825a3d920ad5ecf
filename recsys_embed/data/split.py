"""Which split a row belongs to."""

from __future__ import annotations

import numpy as np

from recsys_embed.config import SplitConfig
from recsys_embed.data.chunks import Chunk

SPLITS = ("train", "val", "test")


def split_of(chunk: Chunk, config: SplitConfig, first: int) -> np.ndarray:
    """The split of every row of a chunk, ``[rows]`` int8 into :data:`SPLITS`; ``first`` is its first row's number
    counted from 0 over all files.

    Raises:
        DataError: a split column says something other than train, val or test.
    """
    if chunk.split is not None:
        return np.full(len(chunk), SPLITS.index(chunk.split), np.int8)
    if config.random is not None:
        chance = uniform(config.seed, first, len(chunk))
        edges = np.cumsum(config.random)[:2]
        splits: np.ndarray = np.searchsorted(edges, chance, side="right").astype(np.int8)
        return splits
    assert config.column is not None
    names = chunk.text(config.column).dictionary_encode()
    known = [SPLITS.index(name) if name in SPLITS else -1 for name in names.dictionary.to_pylist()]
    codes = names.indices.fill_null(len(known)).to_numpy(zero_copy_only=False)
    splits = np.array([*known, -1], np.int8)[codes]
    if (splits < 0).any():
        index = int((splits < 0).argmax())
        raise chunk.error("a split is train, val or test", config.column, index, names[index].as_py() or "")
    return splits


def uniform(seed: int, first: int, count: int) -> np.ndarray:
    """Numbers in [0, 1) for rows ``first``, ``first + 1``, …, ``[count]`` float64: a function of seed and row alone.

    The row's place in a splitmix64 sequence, so that the size of the chunks makes no difference.
    """
    start = _mix(np.array([seed % 2**64], np.uint64))
    rows = np.arange(first + 1, first + count + 1, dtype=np.uint64)
    mixed = _mix(start + rows * np.uint64(0x9E3779B97F4A7C15))
    return np.asarray((mixed >> np.uint64(11)) * 2.0**-53)


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))
