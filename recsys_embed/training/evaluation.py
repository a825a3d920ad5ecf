"""What a model predicts for a split, and how good that is; the weights stay as they are.

Shapes: N rows of a split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys_embed import ranks
from recsys_embed.errors import DataError
from recsys_embed.recommender import Recommender
from recsys_embed.training.feed import Dataset
from recsys_embed.training.metrics import auc, evaluate, logloss

_BATCH = 8192


def predict(model: Recommender, dataset: Dataset, split: str, batch_size: int) -> NDArray[np.float64]:
    """Probabilities ``[N]`` of a split, in the order of its rows."""
    return _probabilities(list(_logits(model, dataset, split, batch_size)), dataset.rows(split), batch_size)


class Validation:
    """The validation split as a judge of weights.

    Raises:
        DataError: every label is the same, so that nothing can be ranked.
    """

    def __init__(self, dataset: Dataset, batch_size: int) -> None:
        self._dataset, self._batch_size = dataset, max(batch_size, _BATCH)
        self._labels = dataset.labels("val")
        if self._labels.min() == self._labels.max():
            raise DataError(f"every label of the val split is {self._labels[0]:g}: nothing can be ranked")

    def judge(self, model: Recommender, stop: Callable[[], bool]) -> tuple[float, float] | None:
        """AUC and logloss; None where ``stop`` was true on the way.

        Raises:
            DivergedError: a prediction is not finite.
        """
        logits = []
        for part in _logits(model, self._dataset, "val", self._batch_size):
            if stop():
                return None
            logits.append(part)
        scores = _probabilities(logits, len(self._labels), self._batch_size)
        return auc(self._labels, scores), logloss(self._labels, scores)

    def report(self, model: Recommender) -> dict[str, float]:
        """All metrics, by frequency bucket too."""
        scores = predict(model, self._dataset, "val", self._batch_size)
        return evaluate(self._labels, scores, self._dataset.buckets("val"))


def _logits(model: Recommender, dataset: Dataset, split: str, batch_size: int) -> Iterator[Tensor]:
    training, device = model.training, model.embedding.device
    model.eval()
    try:
        for batch in dataset.batches(split, batch_size, share=ranks.share()):
            with torch.no_grad():
                yield model(batch.to(device)).cpu()
    finally:
        model.train(training)


def _probabilities(logits: list[Tensor], count: int, batch_size: int) -> NDArray[np.float64]:
    """``[N]``, from this rank's logits of every batch and the other ranks'."""
    if not logits:
        return np.zeros(0)
    mine = torch.cat(logits).double()
    if ranks.count() > 1:
        pieces = [
            torch.arange(count)[start : start + batch_size][slice(*ranks.share().of(min(batch_size, count - start)))]
            for start in range(0, count, batch_size)
        ]
        there = ranks.device()
        rows, found = (ranks.gathered(one.to(there)).cpu() for one in (torch.cat(pieces), mine))
        mine = torch.empty_like(found)
        mine[rows] = found
    scores: NDArray[np.float64] = torch.sigmoid(mine).numpy()
    return scores
