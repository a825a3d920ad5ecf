"""Magnitude pruning: train, keep the weights that are largest, train on. The baseline of learned dimension search.

A benchmark of lightweight embeddings (2406.17335) has it beside methods that learn what to keep, several of which it
beats. Nothing is learned but the rows.

DIFF: K is exact over all vocabularies of the strategy, set by the budget. The benchmark prunes to 50, 80 or 95 %.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from recsys_embed.config import MagnitudeConfig
from recsys_embed.embeddings.pruned import Pruned
from recsys_embed.stages import Stage


class Magnitude(Pruned):
    """Table ``[n, D]`` of each vocabulary while training; shipped as its K largest weights and a bit for each weight.

    A vector is ``e * mask[id]``.
    """

    paper: ClassVar[str] = "2406.17335"
    use: ClassVar[str] = "the plain baseline of pruning: training takes full tables and one more stage, no search"
    prunes_after = "warm_up"

    config: MagnitudeConfig

    def shaped(self, rows: Tensor, block: Tensor) -> Tensor:
        """The rows as they are."""
        return rows

    def stages(self) -> tuple[Stage, ...]:
        """Warm up everything; retrain what was kept."""
        return (Stage("warm_up", epochs=self.config.warm_up_epochs), Stage("retrain"))
