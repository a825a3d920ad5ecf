"""One update: forward, finite check, backward, the optimizers, ``after_step``."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from recsys_embed.errors import DivergedError
from recsys_embed.recommender import Recommender
from recsys_embed.stages import TABLES, Step
from recsys_embed.training.feed import Labelled
from recsys_embed.training.optimizers import Optimizers

EVERY_STEP = Step()
"""Everything moves, by a training batch."""


def step(model: Recommender, batch: Labelled, optimizers: Optimizers, what: Step = EVERY_STEP) -> tuple[Tensor, float]:
    """Update what the step names. Returns the mean logloss, a scalar tensor, and what was minimised: that and the
    penalty.

    Only an update of tables counts for the layer (``after_step``), since ``maintain`` changes rows.

    Raises:
        DivergedError: what would be minimised is not finite, or a gradient is not; nothing has changed.
    """
    loss = functional.binary_cross_entropy_with_logits(model(batch), batch.label)
    objective = loss + model.embedding.penalty()
    value = objective.item()
    if not math.isfinite(value):
        optimizers.zero_grad()
        raise DivergedError(f"the loss is {value}")
    torch.autograd.backward(objective)
    optimizers.step(what.trains)
    if TABLES in what.trains:
        model.embedding.after_step()
    return loss.detach(), value
