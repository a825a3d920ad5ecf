"""PEP: soft thresholds, learned by the training loss together with the rows, decide which weights are worth keeping.

Liu et al., "Learnable Embedding Sizes for Recommender Systems", 2021 (2101.07577). A weight v is seen by the model as
``sign(v) · relu(|v| - g(s))`` (section 3.2), with g the sigmoid. The loss moves s through every weight beyond its
threshold: where weights matter less than what they cost, thresholds rise, and weights below them get no gradient.

What makes thresholds rise besides the loss is, as in the authors' code, decay on s in its Adam: it draws s to 0, and so
thresholds to 0.5, until the loss withstands it. It is what raises the thresholds of blocks that are hardly read.

Shapes: n ids of a vocabulary, D width, L blocks of all vocabularies, K weights kept.

Blocks of a vocabulary hold equally many ids; see :mod:`recsys_embed.embeddings.blocks`. The paper's thresholds are
global, by dimension, by id, or by id and dimension; one block gives those by dimension, for each vocabulary.

DIFF: s starts at -8 instead of -150, where the fp32 gradient of the sigmoid is 0, so that the loss would never move it
and the decay alone would need more than 100,000 steps to get to where thresholds matter. It has a learning rate of its
own, a hundred times the authors' for everything, so that thresholds reach the size of weights within a few hundred
steps, and ten times their decay, which falls on s alone.
DIFF: K is exact over all vocabularies of the strategy, by |v| - g(s), after a fixed number of epochs. The authors
search until so few weights are left, which may never be.
DIFF: weights are trained on from where they were, shrunk by their thresholds, which are gone then. The authors retrain
from the initial weights (a lottery ticket), model included.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from recsys_embed.config import PepConfig
from recsys_embed.embeddings.base import Rows, TableAccess
from recsys_embed.embeddings.pruned import Pruned
from recsys_embed.features import Feature
from recsys_embed.stages import EVERYTHING, SmallOptimizer, Stage, Step


class Pep(Pruned):
    """Table ``[n, D]`` of each vocabulary while training; shipped as K weights, a bit for each weight and row starts.

    A vector is ``soft(e, g(s[block])) * mask[id]``, with s ``[L, D]``.
    """

    paper: ClassVar[str] = "2101.07577"
    use: ClassVar[str] = "as dnis, but nothing is learned on the validation split: thresholds move by the training loss"
    prunes_after = "search"

    config: PepConfig

    def __init__(
        self, features: Sequence[Feature], dim: int, *, kept: int, config: PepConfig, label: str = "pep"
    ) -> None:
        super().__init__(features, dim, kept=kept, config=config, label=label, blocks=config.blocks)
        self.s = nn.Parameter(torch.full((sum(self._block_counts.values()), dim), config.s_start))

    def shaped(self, rows: Tensor, block: Tensor) -> Tensor:
        """The rows, shrunk towards zero by the thresholds of their blocks."""
        return soft_threshold(rows, self.s.sigmoid()[block])

    def worth(self, rows: Tensor, block: Tensor) -> Tensor:
        """How far beyond its threshold a weight is; 1 is added, above which no threshold is, so that none is
        negative."""
        return rows.abs() - self.s.sigmoid()[block] + 1

    def settle(self, tables: TableAccess) -> None:
        """Rows are shrunk for good, and thresholds 0: retraining moves every kept weight."""
        for name, ids, rows, block in self.parts(tables):
            tables.put_rows(name, ids, Rows(self.shaped(rows.weights.detach(), block), rows.state))
        self.s.fill_(-torch.inf)

    def stages(self) -> tuple[Stage, ...]:
        """Search by training everything, thresholds too; retrain what was kept."""
        search = (Step("train", EVERYTHING | {"s"}),)
        return (Stage("search", search, epochs=self.config.search_epochs), Stage("retrain"))

    def small_optimizers(self) -> dict[str, SmallOptimizer]:
        """Adam, with decay in the gradient."""
        return {"s": SmallOptimizer(self.config.s_lr, "adam", decay=self.config.s_decay)}


def soft_threshold(values: Tensor, threshold: Tensor) -> Tensor:
    """``sign(v) · relu(|v| - t)`` of values and thresholds ``t >= 0``. A threshold of 0 changes no value and no
    gradient, that of a value 0 included.

    >>> soft_threshold(torch.tensor([-0.5, 0.1, 0.3]), torch.tensor([0.2, 0.2, 0.0]))
    tensor([-0.3000,  0.0000,  0.3000])
    """
    return torch.where(values.abs() >= threshold, values - values.sign() * threshold, 0.0)
