"""DNIS: which dimensions matter for ids of which frequency, found by gradient on the validation split.

Cheng et al., "Differentiable Neural Input Search for Recommender Systems", 2020 (2006.04466), later AutoSrh. The choice
of a width for every id is relaxed to importances alpha in [0, 1], one for each dimension of each block of ids of like
frequency (section 3.2); weights and alpha take turns, a step on a training batch and one on a validation batch
(section 3.3); then the weights with the smallest |alpha e| are dropped and what is left is trained again.

Shapes: n ids of a vocabulary, D width, L blocks of all vocabularies, K weights kept.

Blocks of a vocabulary hold equally many ids (the paper's choice on MovieLens); see
:mod:`recsys_embed.embeddings.blocks`.

DIFF: alpha's update is of first order; the paper's second-order term, off by default in the authors' code too, is not
built.
DIFF: the L1 penalty falls on the blocks that a batch has read. The authors' falls on all; since a gradient is divided
by its own block's mean, a block that is not read would then shrink by the full rate at every step.
DIFF: K is exact over all vocabularies of the strategy, by |alpha e|. The authors threshold |e|, or alpha.
DIFF: weights are trained on after pruning from where they were, with alpha fixed and until validation stops improving;
the authors fine-tune before pruning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from recsys_embed.config import DnisConfig
from recsys_embed.embeddings.base import Lookup
from recsys_embed.embeddings.pruned import Pruned
from recsys_embed.features import Feature
from recsys_embed.stages import TABLES, SmallOptimizer, Stage, Step


class Dnis(Pruned):
    """Table ``[n, D]`` of each vocabulary while training; shipped as K weights, a bit for each weight and row starts.

    A vector is ``e * alpha[block] * mask[id]``, with alpha ``[L, D]``.
    """

    paper: ClassVar[str] = "2006.04466"
    use: ClassVar[str] = "the served size is what matters: training takes full tables, and a search before pruning"
    prunes_after = "search"

    config: DnisConfig

    def __init__(
        self, features: Sequence[Feature], dim: int, *, kept: int, config: DnisConfig, label: str = "dnis"
    ) -> None:
        super().__init__(features, dim, kept=kept, config=config, label=label, blocks=config.blocks)
        self.alpha = nn.Parameter(torch.ones(sum(self._block_counts.values()), dim))

    def shaped(self, rows: Tensor, block: Tensor) -> Tensor:
        """The rows, times the importances of their blocks."""
        return rows * self.alpha[block]

    def penalty(self, rows: Mapping[str, Tensor], lookup: Lookup) -> Tensor | None:
        """L1 on alpha, of the blocks that were read."""
        if not self.config.alpha_l1:
            return None
        read = torch.zeros(self.alpha.shape[0], dtype=self.alpha.dtype, device=self.alpha.device)
        read[lookup.aux["block"].flatten()] = 1
        return self.config.alpha_l1 * (self.alpha.abs().sum(1) @ read)

    def stages(self) -> tuple[Stage, ...]:
        """Warm up everything; search, with the model as it is; retrain what was kept."""
        search = (Step("train", frozenset({TABLES})), Step("val", frozenset({"alpha"})))
        return (
            Stage("warm_up", epochs=self.config.warm_up_epochs),
            Stage("search", search, epochs=self.config.search_epochs),
            Stage("retrain"),
        )

    def small_optimizers(self) -> dict[str, SmallOptimizer]:
        """Alpha by SGD, in [0, 1]; moved by the validation loss alone."""
        return {"alpha": SmallOptimizer(self.config.alpha_lr, "sgd", bounds=(0.0, 1.0))}

    def normalise(self, name: str, gradient: Tensor) -> Tensor:
        """Divided by its block's mean, so that rarely read blocks move as fast as frequent ones."""
        return gradient / (gradient.abs().mean(dim=1, keepdim=True) + 1e-8)
