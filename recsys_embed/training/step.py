"""One update: forward, finite check, backward, the optimizers, ``after_step``."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from recsys_embed import ranks
from recsys_embed.errors import DivergedError
from recsys_embed.recommender import Recommender
from recsys_embed.stages import TABLES, Step
from recsys_embed.training.feed import Labelled
from recsys_embed.training.optimizers import Optimizers

EVERY_STEP = Step()
"""Everything moves, by a training batch."""


def step(
    model: Recommender, batch: Labelled, optimizers: Optimizers, what: Step = EVERY_STEP
) -> tuple[Tensor, float, int]:
    """Update what the step names. Returns the mean logloss, a scalar tensor, what was minimised (that and the
    penalty), and the number of samples.

    On several ranks these are of all ranks' samples. Each rank minimises its share, so that the sum over ranks is what
    one process would minimise; a rank without samples takes part with nothing.

    Only an update of tables counts for the layer (``after_step``), since ``maintain`` changes rows.

    Raises:
        DivergedError: what would be minimised is not finite, or a gradient is not; nothing has changed.
    """
    loss, objective, value, samples = _objective(model, batch)
    if not math.isfinite(value):
        optimizers.zero_grad()
        raise DivergedError(f"the loss is {value}")
    torch.autograd.backward(objective)
    optimizers.step(what.trains)
    if TABLES in what.trains:
        model.embedding.after_step()
    return loss.detach(), value, samples


def _objective(model: Recommender, batch: Labelled) -> tuple[Tensor, Tensor, float, int]:
    """The mean logloss; what this rank minimises; what all ranks do; the samples of all ranks."""
    logits, samples = model(batch), batch.label.shape[0]
    if ranks.count() == 1:
        loss = functional.binary_cross_entropy_with_logits(logits, batch.label)
        objective = loss + model.embedding.penalty()
        return loss, objective, objective.item(), samples
    total = functional.binary_cross_entropy_with_logits(logits, batch.label, reduction="sum")
    penalty = model.embedding.penalty() * samples  # penalties are means over a rank's samples
    own = torch.stack([total.detach().double(), penalty.detach().double(), torch.tensor(samples).to(total)])
    losses, penalties, every = ranks.summed(own).tolist()
    loss = torch.tensor(losses / every)
    return loss, (total + penalty) / every, (losses + penalties) / every, int(every)
