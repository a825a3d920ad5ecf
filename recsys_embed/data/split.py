"""Which split a row belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_embed.config import SplitConfig
from recsys_embed.data.chunks import Chunk
from recsys_embed.data.text_hash import hash_text, mix64
from recsys_embed.data.values import CellError, to_numbers
from recsys_embed.errors import ConfigError

SPLITS = ("train", "val", "test")

_NUMBER = r"^\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*$"

Cuts = tuple[float, float] | tuple[str, str]
"""The times at which validation and test begin, as numbers or as text."""


def split_columns(config: SplitConfig) -> list[str]:
    """The raw columns that :func:`split_of` reads."""
    time = None if config.time is None else config.time.column
    return [name for name in (config.column, config.group, time) if name is not None]


def split_of(chunk: Chunk, config: SplitConfig, cuts: Cuts | None = None) -> np.ndarray:
    """The split of every row of a chunk, ``[rows]`` int8 into :data:`SPLITS`: a function of the row's file, place in
    it and cells alone. ``cuts`` are those of a split by time.

    Raises:
        DataError: a split column says something other than train, val or test; a time is missing or no number.
    """
    if chunk.split is not None:
        return np.full(len(chunk), SPLITS.index(chunk.split), np.int8)
    first = chunk.first_row - 1
    if config.random is not None:
        chance = uniform(config.seed + (chunk.file_number << 40), first, len(chunk))
        if config.group is not None:
            groups = chunk.text(config.group)
            known = groups.is_valid().to_numpy(zero_copy_only=False)
            chance = np.where(known, _unit(hash_text(groups, config.seed)), chance)
        return np.asarray(np.searchsorted(np.cumsum(config.random)[:2], chance, side="right").astype(np.int8))
    if config.every is not None:
        turn = (first + 1 + np.arange(len(chunk))) % config.every
        return np.asarray(np.where(turn == 0, 2, np.where(turn == config.every - 1, 1, 0)), np.int8)
    if config.time is not None:
        assert cuts is not None
        return _by_time(chunk, config.time.column, cuts)
    assert config.column is not None
    names = chunk.text(config.column).dictionary_encode()
    known_names = [SPLITS.index(name) if name in SPLITS else -1 for name in names.dictionary.to_pylist()]
    codes = names.indices.fill_null(len(known_names)).to_numpy(zero_copy_only=False)
    splits: np.ndarray = np.array([*known_names, -1], np.int8)[codes]
    if (splits < 0).any():
        index = int((splits < 0).argmax())
        raise chunk.error("a split is train, val or test", config.column, index, names[index].as_py() or "")
    return splits


def times_of(chunk: Chunk, column: str) -> pa.Array:
    """The times by which rows are split, as text ``[rows]``.

    Raises:
        DataError: one is missing.
    """
    cells = chunk.text(column)
    if cells.null_count:
        index = int(np.argmax(cells.is_null().to_numpy(zero_copy_only=False)))
        raise chunk.error("the time by which rows are split is missing", column, index, "")
    return cells


def _by_time(chunk: Chunk, column: str, cuts: Cuts) -> np.ndarray:
    cells = times_of(chunk, column)
    if isinstance(cuts[0], str):
        later = [pc.greater_equal(cells, cut).to_numpy(zero_copy_only=False) for cut in cuts]
    else:
        times = chunk.numbers(column)
        later = [times >= cut for cut in cuts]
    return np.asarray(np.sum(later, 0), np.int8)


def cuts_of(counted: Iterable[pa.Table], fractions: Sequence[float]) -> Cuts:
    """The cuts that leave these fractions, or as little more as whole times allow, before them.

    ``counted`` are tables of value and count. Times are numbers where all of them are, else text in the order of its
    UTF-8 bytes, in which ISO 8601 is in order.

    Raises:
        ConfigError: there are too few times to have three splits.
        CellError: some are numbers and some are not; gives one of the fewer.
    """
    table = pa.concat_tables(list(counted))
    values, counts = table["value"].combine_chunks(), table["count"].to_numpy()
    try:
        times: np.ndarray = to_numbers(values.cast(pa.string()))
    except CellError:
        numbers = pc.match_substring_regex(values, _NUMBER).to_numpy(zero_copy_only=False)
        if numbers.any():
            few = numbers if counts[numbers].sum() < counts[~numbers].sum() else ~numbers
            odd = values[int(few.argmax())].as_py()
            raise CellError("some times are numbers and some are text, so they have no order", value=odd) from None
        times = np.array(values.to_pylist(), object)
    order = np.argsort(times, kind="stable")
    times, before = times[order], np.cumsum(counts[order]) - counts[order]
    goals = np.cumsum(fractions)[:2] * counts.sum()
    # Sums of fractions are off in their last bits: .8 + .1 of ten rows is not to mean ten.
    val, test = (int(np.searchsorted(before, goal - 1e-9 * counts.sum())) for goal in goals)
    if not 0 < val < test < len(times):
        raise ConfigError(f"{len(times)} different times cannot be cut into {list(fractions)}", path="data.split.time")
    found = times[[val, test]].tolist()
    return found[0], found[1]


def uniform(seed: int, first: int, count: int) -> np.ndarray:
    """Numbers in [0, 1) for rows ``first``, ``first + 1``, …, ``[count]`` float64: a function of seed and row alone.

    The row's place in a splitmix64 sequence, so that the size of the chunks makes no difference.
    """
    start = mix64(np.array([seed % 2**64], np.uint64))
    rows = np.arange(first + 1, first + count + 1, dtype=np.uint64)
    return _unit(mix64(start + rows * np.uint64(0x9E3779B97F4A7C15)))


def _unit(bits: np.ndarray) -> np.ndarray:
    return np.asarray((bits >> np.uint64(11)) * 2.0**-53)
