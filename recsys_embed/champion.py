"""The model that a night continues, judged on the rows of the night as it stands: with the ids that it knew.

DIFF from scoring raw rows with its own encoder: rows are encoded once, by the encoder of the night, whose ids are then
translated into its own. A value that has lost its id this night, and got no other, counts as unseen for both models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from recsys_embed.data import EncodedDataset, Encoder
from recsys_embed.data.batches import Batch
from recsys_embed.ids import Ids
from recsys_embed.promotion import METRICS
from recsys_embed.recommender import Recommender
from recsys_embed.share import WHOLE, Share
from recsys_embed.training.evaluation import counts, predict
from recsys_embed.training.metrics import evaluate


class AsBefore:
    """The rows of a night with the ids of the encoder ``before`` it: what that did not know is id 0, the unseen one."""

    def __init__(self, dataset: EncodedDataset, before: Encoder) -> None:
        self._dataset = dataset
        now = dataset.encoder.vocabularies
        own = {name: torch.from_numpy(now[name].ids_in(before.vocabularies[name])) for name in now}
        self._own = [own.get(feature.vocab) for feature in dataset.features]

    @property
    def fingerprint(self) -> str:
        """That of the rows."""
        return self._dataset.fingerprint

    def rows(self, split: str) -> int:
        """How many rows a split has."""
        return self._dataset.rows(split)

    def labels(self, split: str) -> NDArray[np.float32]:
        """``[rows]``."""
        return self._dataset.labels(split)

    def weights(self, split: str) -> NDArray[np.float32] | None:
        """``[rows]``, or None."""
        return self._dataset.weights(split)

    def buckets(self, split: str) -> NDArray[np.int8]:
        """``[rows]``, as the new model knows them."""
        return self._dataset.buckets(split)

    def batches(
        self,
        split: str,
        batch_size: int,
        *,
        shuffle_seed: int | None = None,
        start: int = 0,
        share: Share = WHOLE,
        memory: int | None = None,
    ) -> Iterator[Batch]:
        """See :meth:`EncodedDataset.batches`."""
        for batch in self._dataset.batches(
            split, batch_size, shuffle_seed=shuffle_seed, start=start, share=share, memory=memory
        ):
            yield replace(batch, ids=self._before(batch.ids))

    def _before(self, ids: Ids) -> Ids:
        values = ids.values.clone()
        bounds = [] if ids.offsets is None else ids.bounds()
        for place, own in enumerate(self._own):
            if own is not None:
                here = values[place] if ids.offsets is None else values[bounds[place] : bounds[place + 1]]
                here.copy_(own[here.long()])
        return replace(ids, values=values)


def scores_of(model: Recommender, dataset: EncodedDataset | AsBefore, batch_size: int) -> dict[str, float]:
    """The metrics of :data:`~recsys_embed.promotion.METRICS` on the rows of a night."""
    found: dict[str, float] = {}
    for split in ("val", "test"):
        scores = predict(model, dataset, split, batch_size)
        measured = evaluate(dataset.labels(split), scores, weights=counts(dataset, split, model.negative_rate))
        found |= {f"{split}_{name}": value for name, value in measured.items() if f"{split}_{name}" in METRICS}
    return found


def scores_in(row: Mapping[str, float], val: Mapping[str, float]) -> dict[str, float]:
    """The same metrics of a training: from its row of results, and from what validation said."""
    found = {f"val_{name}": value for name, value in val.items()} | dict(row)
    return {name: found[name] for name in METRICS}
