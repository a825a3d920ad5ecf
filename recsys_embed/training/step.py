"""One update: forward, finite check, backward, the optimizers, ``after_step``."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from recsys_embed import ranks
from recsys_embed.errors import DivergedError
from recsys_embed.recommender import Recommender
from recsys_embed.stages import TABLES, Step
from recsys_embed.training.feed import Labelled
from recsys_embed.training.optimizers import Optimizers
from recsys_embed.training.precision import products

EVERY_STEP = Step()
"""Everything moves, by a training batch."""


class Done(NamedTuple):
    """What an update was about, over the samples of all ranks."""

    loss: Tensor
    """The mean logloss, a scalar: sum(weight * logloss) / sum(weight)."""

    objective: float
    """What was minimised: that and the penalty."""

    samples: int
    weight: float
    """What the samples count together: as many as they are, where they have no weights."""


def step(model: Recommender, batch: Labelled, optimizers: Optimizers, what: Step = EVERY_STEP) -> Done:
    """Update what the step names.

    Each rank minimises its share, so that the sum over ranks is what one process would minimise; a rank without samples
    takes part with nothing. A batch whose weights are all zero has no loss. The penalty is a mean over samples,
    whatever they count.

    Only an update of tables counts for the layer (``after_step``), since ``maintain`` changes rows.

    Raises:
        DivergedError: what would be minimised is not finite, or a gradient is not; nothing has changed.
    """
    with products(model.precision):
        own, done = _objective(model, batch)
        if not math.isfinite(done.objective):
            optimizers.zero_grad()
            raise DivergedError(f"the loss is {done.objective}")
        torch.autograd.backward(own)
    optimizers.step(what.trains)
    if TABLES in what.trains:
        model.embedding.after_step()
    return done


def total_logloss(logits: Tensor, batch: Labelled) -> Tensor:
    """The summed logloss of a batch, each sample times its weight."""
    return functional.binary_cross_entropy_with_logits(logits, batch.label, weight=batch.weight, reduction="sum")


def _objective(model: Recommender, batch: Labelled) -> tuple[Tensor, Done]:
    """What this rank minimises, and what all of them do."""
    logits, samples = model(batch), batch.label.shape[0]
    if ranks.count() == 1 and batch.weight is None:
        loss = functional.binary_cross_entropy_with_logits(logits, batch.label)
        objective = loss + model.embedding.penalty()
        return objective, Done(loss.detach(), objective.item(), samples, samples)
    total = total_logloss(logits, batch)
    penalty = model.embedding.penalty() * samples  # penalties are means over a rank's samples
    counted = torch.tensor(samples).to(total) if batch.weight is None else batch.weight.sum(dtype=torch.float64)
    own = torch.stack([total.detach().double(), penalty.detach().double(), torch.tensor(samples).to(total), counted])
    losses, penalties, every, weight = ranks.summed(own).tolist()
    share = 1 / weight if weight else 0.0
    loss = losses * share
    done = Done(torch.tensor(loss), loss + penalties / every, int(every), weight)
    return total * share + penalty / every, done
