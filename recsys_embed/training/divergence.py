"""Where it came from, when a loss or a gradient is not finite.

Shapes: B samples of a batch, F features, D width of a vector.
"""

from __future__ import annotations

import torch

from recsys_embed import ranks
from recsys_embed.errors import DivergedError
from recsys_embed.recommender import Recommender
from recsys_embed.training.feed import Labelled
from recsys_embed.training.precision import products
from recsys_embed.training.step import total_logloss


def located(error: DivergedError, model: Recommender, batch: Labelled, step: int, place: str) -> DivergedError:
    """The error with its step, its batch and, where that can be told, the first feature that is not finite."""
    message, feature = f"step {step} ({place}): {error}", error.feature
    if feature is None:
        feature, where = _first_bad_input(model, batch)
        message = f"{message}{where}; no row was changed"
    return DivergedError(message, step=step, feature=feature)


def _first_bad_input(model: Recommender, batch: Labelled) -> tuple[str | None, str]:
    """The feature and samples whose vectors, or else whose vectors' gradients, are not finite."""
    if ranks.count() > 1 and bool(torch.isfinite(batch.dense).all()):
        return None, f" (seen from rank {ranks.own()}, whose dense columns are finite)"  # to read rows is collective
    if not bool(torch.isfinite(batch.dense).all()):
        sample, column = torch.isfinite(batch.dense).logical_not().nonzero()[0].tolist()
        return None, f"; dense column {column} of sample {sample} is {batch.dense[sample, column].item()}"
    vectors = model.embedding(batch.ids)
    with products(model.precision):
        loss = total_logloss(model.interaction(vectors, batch.dense), batch)
        gradient = torch.autograd.grad(loss, vectors)[0] if vectors.requires_grad else vectors
    for what, tensor in (("vectors", vectors), ("gradients", gradient)):
        bad = torch.isfinite(tensor).all(dim=2).logical_not()  # [B, F]
        if bool(bad.any()):
            feature = int(bad.any(dim=0).nonzero()[0])
            name = model.embedding.features[feature].name
            samples = bad[:, feature].nonzero().flatten().tolist()
            shown = ", ".join(map(str, samples[:5])) + (", …" if len(samples) > 5 else "")
            return name, f"; the {what} of feature {name!r} are not finite in samples {shown}"
    return None, "; the vectors of all features are finite"
