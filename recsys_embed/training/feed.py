"""The batches of a run: the one place where training reads rows.

Batches are addressable: by epoch and number in the training split, by number alone in the validation split, whose
batches are drawn without end. A run that goes on at any place sees what one that never stopped sees.

Shapes: B samples of a batch.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys_embed import ranks
from recsys_embed.errors import DataError
from recsys_embed.recommender import Inputs
from recsys_embed.share import WHOLE, Share

_VAL_STREAM = 1


class Labelled(Inputs, Protocol):
    """A batch with its labels."""

    @property
    def label(self) -> Tensor:
        """``[B]`` float32, 0 or 1."""

    @property
    def weight(self) -> Tensor | None:
        """``[B]`` float32, not negative; None where every sample counts 1."""

    def to(self, device: torch.device) -> Labelled:
        """The batch on a device."""


class Dataset(Protocol):
    """What training reads of an encoded data set; a split is "train", "val" or "test"."""

    @property
    def fingerprint(self) -> str:
        """Identifies the contents."""

    def rows(self, split: str) -> int:
        """How many rows a split has."""

    def labels(self, split: str) -> NDArray[np.float32]:
        """``[rows]``, 0 or 1."""

    def weights(self, split: str) -> NDArray[np.float32] | None:
        """``[rows]``, what each counts; None where every row counts 1."""

    def buckets(self, split: str) -> NDArray[np.int8]:
        """``[rows]``: 0 head, 1 torso, 2 tail, 3 unseen."""

    def batches(
        self,
        split: str,
        batch_size: int,
        *,
        shuffle_seed: int | None = None,
        start: int = 0,
        share: Share = WHOLE,
        memory: int | None = None,
    ) -> Iterator[Labelled]:
        """All rows once, in file order or shuffled, but for the first ``start`` batches, which are not read; of each
        batch only the ``share``, which may be empty. A shuffle holds at most ``memory`` bytes of rows."""


class Feed:
    """Batches for updates, on the run's device; on several ranks, each one's share of every batch.

    ``memory``: the most bytes of rows that a shuffle holds.
    """

    def __init__(self, dataset: Dataset, batch_size: int, seed: int, device: torch.device, memory: int) -> None:
        for split in ("train", "val"):
            if not dataset.rows(split):
                raise DataError(f"the {split} split has no rows")
        self._dataset, self._batch_size, self._seed, self._device = dataset, batch_size, seed, device
        self._memory = memory
        self.batches_per_epoch = math.ceil(dataset.rows("train") / batch_size)
        self._val_batches = math.ceil(dataset.rows("val") / batch_size)

    def train(self, epoch: int, start: int) -> Iterator[Labelled]:
        """The batches of an epoch (from 1), in its own order, from number ``start`` (from 0) on."""
        return self._shuffled("train", shuffle_seed(self._seed, epoch), start)

    def val(self, start: int) -> Iterator[Labelled]:
        """Batches of the validation split from number ``start`` (from 0) on, without end: pass after pass, each in an
        order of its own."""
        first, skipped = divmod(start, self._val_batches)
        for number in itertools.count(first):
            yield from self._shuffled("val", shuffle_seed(self._seed, number, _VAL_STREAM), skipped)
            skipped = 0

    def _shuffled(self, split: str, seed: int, start: int) -> Iterator[Labelled]:
        for batch in self._dataset.batches(
            split, self._batch_size, shuffle_seed=seed, start=start, share=ranks.share(), memory=self._memory
        ):
            yield batch.to(self._device)


def shuffle_seed(seed: int, epoch: int, *stream: int) -> int:
    """The seed of an epoch's shuffle: a run that resumes at any epoch sees the order of one that never stopped."""
    return int(np.random.SeedSequence([seed % 2**64, epoch, *stream]).generate_state(1, np.uint64)[0] >> 1)
