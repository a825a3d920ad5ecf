"""A planted data set that fits in memory, for the trainer."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from recsys_embed.data.batches import Batch
from recsys_embed.data.columns import Columns
from recsys_embed.data.loader import batches
from recsys_embed.features import Feature
from recsys_embed.share import WHOLE, Share


class Toy:
    """A planted data set in memory: labels are drawn from a table of logits that a model can learn.

    Features user (30 ids) and item (20 ids); user 29 and item 19 are rare. ``bayes`` scores the true probabilities.
    With ``weighted``, a third of the rows of each split have weight 0, and the others any.
    """

    fingerprint = "toy"
    features = (Feature("user", 30), Feature("item", 20))

    def __init__(
        self,
        *,
        rows: int = 8000,
        seed: int = 0,
        shuffled_labels: bool = False,
        num_dense: int = 1,
        weighted: bool = False,
    ) -> None:
        draw = np.random.default_rng(seed)
        users, items = draw.normal(size=(30, 2)), draw.normal(size=(20, 2))
        self.split: dict[str, Columns] = {}
        self.truth: dict[str, np.ndarray] = {}
        for split, count in (("train", rows), ("val", rows // 4), ("test", rows // 4)):
            user, item = (draw.integers(0, n, count).astype(np.int32) for n in (30, 20))
            dense = draw.normal(size=count).astype(np.float32)
            logits = 2 * (users[user] * items[item]).sum(1) + users[user, 0] - items[item, 1] + dense * bool(num_dense)
            truth = 1 / (1 + np.exp(-logits))
            label = (draw.uniform(size=count) < truth).astype(np.float32)
            if shuffled_labels:
                draw.shuffle(label)
            self.truth[split] = truth
            weight = (draw.gamma(1, 5, count) * (draw.random(count) > 1 / 3)).astype(np.float32) if weighted else None
            self.split[split] = Columns((user, item), (dense,) * num_dense, label, weight)
        self.num_dense = num_dense
        self.touched: list[str] = []

    def rows(self, split: str) -> int:
        return len(self.split[split])

    def labels(self, split: str) -> np.ndarray:
        self.touched.append(split)
        return self.split[split].label

    def weights(self, split: str) -> np.ndarray | None:
        self.touched.append(split)
        return self.split[split].weight

    def buckets(self, split: str) -> np.ndarray:
        self.touched.append(split)
        return (np.arange(self.rows(split)) % 4).astype(np.int8)

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
        self.touched.append(split)
        yield from batches(self.split[split], batch_size, shuffle_seed, start, share, memory)


@pytest.fixture(scope="session")
def toy() -> type[Toy]:
    return Toy
