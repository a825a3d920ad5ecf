"""Sample weights: how much each row counts in the training loss and in the metrics.

They say nothing about vocabularies, training frequencies, head, torso and tail, and scalers, which count rows.
"""

from __future__ import annotations

import numpy as np

from recsys_embed.config import DataConfig
from recsys_embed.data.chunks import Chunk
from recsys_embed.data.split import SPLITS
from recsys_embed.errors import DataError


def read_weights(chunk: Chunk, column: str) -> np.ndarray:
    """Weights ``[rows]`` float32, zeros included; those of rows that are dropped for their label, too.

    Raises:
        DataError: a cell that is missing, is no number, is negative, or that float32 cannot hold.
    """
    numbers = chunk.numbers(column)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        weights = numbers.astype(np.float32)
        lost = ~np.isfinite(weights) | ((weights == 0) & (numbers > 0))
        wrong = lost | (numbers < 0)
    if wrong.any():
        index = int(wrong.argmax())
        missing = np.isnan(numbers[index])
        reason = "is missing" if missing else "is negative" if numbers[index] < 0 else "is no float32 number"
        value = None if missing else float(numbers[index])
        raise chunk.error(f"the weight {reason}; weights are finite and not negative", column, index, value)
    return weights


class Weighted:
    """How many rows have a weight above zero: per split, of the negative and of the positive ones."""

    def __init__(self, column: str) -> None:
        self.column = column
        self.rows = np.zeros((len(SPLITS), 2), np.int64)

    def read(self, chunk: Chunk, splits: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Weights ``[rows]`` float32 of a chunk; counts its rows by their splits (−1: dropped) and labels ``[rows]``.

        Raises:
            DataError: see :func:`read_weights`.
        """
        weights = read_weights(chunk, self.column)
        for split, label in np.ndindex(*self.rows.shape):
            self.rows[split, label] += np.count_nonzero((weights > 0) & (splits == split) & (labels == label))
        return weights


def check_weighted(config: DataConfig, rows: np.ndarray) -> None:
    """Whether every split has weight on rows of both classes; ``rows [3, 2]`` are those of :class:`Weighted`.

    Raises:
        DataError: one has not: nothing could be learnt or ranked there.
    """
    for split, found in zip(SPLITS, rows, strict=True):
        if not found.all():
            kind = " positive" if found[0] else " negative" if found[1] else ""
            file = config.split.files[split] if config.split.files else config.path  # type: ignore[index]
            raise DataError(f"in split {split!r} all weights of{kind} rows are zero", file=file, column=config.weight)
