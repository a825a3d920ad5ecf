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
    return _probabilities(model, list(_logits(model, dataset, split, batch_size)), dataset.rows(split), batch_size)


def counts(dataset: Dataset, split: str, negative_rate: float) -> NDArray[np.float64] | None:
    """What each row of a split counts in the metrics, ``[N]``; None where all count 1.

    That is its own weight, and where negatives are down-sampled a negative row stands for ``1 / negative_rate``: so
    the metrics are, but for chance, those of the rows there were.
    """
    own = dataset.weights(split)
    if negative_rate == 1:
        return None if own is None else own.astype(np.float64)
    stands_for = np.where(dataset.labels(split) > 0, 1.0, 1 / negative_rate)
    return stands_for if own is None else stands_for * own


class Validation:
    """The validation split as a judge of a model's weights; rows count as :func:`counts` says.

    Raises:
        DataError: every label is the same, so that nothing can be ranked.
    """

    def __init__(self, dataset: Dataset, batch_size: int, negative_rate: float = 1.0) -> None:
        self._dataset, self._batch_size = dataset, max(batch_size, _BATCH)
        self._labels, self._counts = dataset.labels("val"), counts(dataset, "val", negative_rate)
        seen = self._labels if self._counts is None else self._labels[self._counts > 0]
        if not len(seen):
            raise DataError("every weight of the val split is 0: nothing can be ranked")
        if seen.min() == seen.max():
            raise DataError(f"every label of the val split is {seen[0]:g}: nothing can be ranked")

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
        scores = _probabilities(model, logits, len(self._labels), self._batch_size)
        return auc(self._labels, scores, self._counts), logloss(self._labels, scores, self._counts)

    def report(self, model: Recommender) -> dict[str, float]:
        """All metrics, by frequency bucket too."""
        scores = predict(model, self._dataset, "val", self._batch_size)
        return evaluate(self._labels, scores, self._dataset.buckets("val"), self._counts)


def _logits(model: Recommender, dataset: Dataset, split: str, batch_size: int) -> Iterator[Tensor]:
    training, device = model.training, model.embedding.device
    model.eval()
    try:
        for batch in dataset.batches(split, batch_size, share=ranks.share()):
            with torch.no_grad():
                yield model(batch.to(device)).cpu()
    finally:
        model.train(training)


def _probabilities(model: Recommender, logits: list[Tensor], count: int, batch_size: int) -> NDArray[np.float64]:
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
    scores: NDArray[np.float64] = model.probabilities(mine).numpy()
    return scores
