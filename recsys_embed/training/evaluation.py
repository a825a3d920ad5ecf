"""What a model predicts for a split, and how good that is; the weights stay as they are.

Shapes: N rows of a split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recsys_embed.errors import DataError
from recsys_embed.recommender import Recommender
from recsys_embed.training.feed import Dataset
from recsys_embed.training.metrics import auc, evaluate, logloss

_BATCH = 8192


def predict(model: Recommender, dataset: Dataset, split: str, batch_size: int) -> NDArray[np.float64]:
    """Probabilities ``[N]`` of a split, in the order of its rows."""
    return _probabilities(list(_logits(model, dataset, split, batch_size)))


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
        scores = _probabilities(logits)
        return auc(self._labels, scores), logloss(self._labels, scores)

    def report(self, model: Recommender) -> dict[str, float]:
        """All metrics, by frequency bucket too."""
        scores = predict(model, self._dataset, "val", self._batch_size)
        return evaluate(self._labels, scores, self._dataset.buckets("val"))


def _logits(model: Recommender, dataset: Dataset, split: str, batch_size: int) -> Iterator[Tensor]:
    training, device = model.training, model.embedding.device
    model.eval()
    try:
        for batch in dataset.batches(split, batch_size):
            with torch.no_grad():
                yield model(batch.to(device)).cpu()
    finally:
        model.train(training)


def _probabilities(logits: list[Tensor]) -> NDArray[np.float64]:
    if not logits:
        return np.zeros(0)
    scores: NDArray[np.float64] = torch.sigmoid(torch.cat(logits).double()).numpy()
    return scores
