"""A recommender: an embedding layer and the model that is handed its vectors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from recsys_embed import ranks
from recsys_embed.config import Config
from recsys_embed.data.vectors import contents
from recsys_embed.features import Feature
from recsys_embed.ids import Ids
from recsys_embed.layer import EmbeddingLayer
from recsys_embed.models import build_model


class Inputs(Protocol):
    """What a recommender reads of a batch."""

    @property
    def ids(self) -> Ids:
        """The categorical features."""

    @property
    def dense(self) -> Tensor:
        """``[B, n]`` float32; n may be 0."""


class Recommender(nn.Module):
    """Ids and dense columns in, logits out.

    ``settings`` describe how it was built, in plain values and but for the back end: a checkpoint of other settings is
    not continued.

    ``negative_rate`` w is the probability with which negative rows were kept before training. A model of the rows that
    are left predicts q, where p = q / (q + (1 - q) / w) is the probability over the rows there were (He et al.,
    "Practical Lessons from Predicting Clicks on Ads at Facebook", 2014, section 6.3): its odds are w times as large,
    so that its logit is that of q plus log(w). Nothing changes in training, and no order of predictions.
    DIFF: the alternative is to train on negatives that count 1 / w each. It aims at p wherever the model cannot follow
    the truth, at the price of a few rows with large gradients; a column of weights says it.

    ``precision`` is that of :class:`~recsys_embed.config.TrainingConfig`, which a training sets: with ``"bf16"`` the
    model's layers, but not the embedding layer, compute in bfloat16 while they are trained; ``"medium"`` is seen to by
    the training step, for all that torch multiplies in it.
    ``in_training``, where it is set, is called instead of the model then: the same, but compiled.
    """

    in_training: Callable[[Tensor, Tensor], Tensor] | None = None

    def __init__(
        self,
        embedding: EmbeddingLayer,
        interaction: nn.Module,
        *,
        settings: dict[str, Any] | None = None,
        negative_rate: float = 1.0,
        precision: str = "fp32",
    ) -> None:
        super().__init__()
        self.embedding, self.interaction = embedding, interaction
        self.settings, self.negative_rate, self.precision = settings or {}, negative_rate, precision

    def forward(self, batch: Inputs) -> Tensor:
        """Logits ``[B]`` float32 over the rows that are trained on."""
        vectors = self.embedding(batch.ids)
        interaction = self.in_training if self.training and self.in_training is not None else self.interaction
        bf16 = self.precision == "bf16" and self.training
        with torch.autocast(vectors.device.type, torch.bfloat16, enabled=bf16):
            logits: Tensor = interaction(vectors, batch.dense)
        return logits.float()

    @property
    def shift(self) -> float:
        """What is added to a logit for the rows there were before negatives were down-sampled."""
        return math.log(self.negative_rate)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Probabilities ``[B]`` over the rows there were, of logits as :meth:`forward` gives them; float64, so that
        large logits keep their order."""
        return torch.sigmoid(logits.double() + self.shift)

    def shipped_state(self) -> dict[str, Tensor]:
        """The state dict of what is shipped; see :meth:`EmbeddingLayer.shipped_state`.
        :func:`shipped_recommender` holds it."""
        embedding = {f"embedding.{name}": tensor for name, tensor in self.embedding.shipped_state().items()}
        return embedding | {f"interaction.{name}": tensor for name, tensor in self.interaction.state_dict().items()}


def build_recommender(
    config: Config, features: Sequence[Feature], num_dense: int, *, shipped: bool = False
) -> Recommender:
    """The recommender that ``config`` describes, with its initial weights, or without where a shipped one is loaded.

    Those of the model are drawn by ``training.seed`` and those of the tables by ``embedding.seed``; torch's own
    generator is left as it was. The vectors of ``embedding.initial`` come when the tables lie where they are trained:
    see :mod:`recsys_embed.training.initial`.

    Raises:
        BudgetError: no size of the strategy fits the budget.
        ConfigError: features, patterns or options that do not fit each other.
        DataError: a file of initial vectors is not there.
    """
    options = dict(config.embedding)
    initial = options.pop("initial")
    if ranks.count() > 1 and options["backend"] == "auto" and config.training.optimizer.tables != "adam":
        options["backend"] = "sharded"  # as "auto" is on several ranks, but no rank ever holds a whole table
    embedding = EmbeddingLayer(features, config.model.dim, **options, sharding=config.sharding, shipped=shipped)
    padded = config.training.precision != "bf16"  # to which it brings nothing
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        interaction = build_model(config.model, num_features=len(features), num_dense=num_dense, padded=padded)
    tree = config.model_dump(mode="json", include={"model", "embedding"})
    del tree["embedding"]["backend"], tree["embedding"]["initial"]
    if initial and not shipped:
        tree["embedding"]["initial"] = contents(initial)
    rate = config.data.negative_rate
    if rate < 1:
        tree["negative_rate"] = rate
    return Recommender(embedding, interaction, settings=tree, negative_rate=rate, precision=config.training.precision)


def shipped_recommender(
    config: Config, features: Sequence[Feature], num_dense: int, state: Mapping[str, Tensor]
) -> Recommender:
    """What is served of the recommender that ``config`` describes: on CPU, whatever back end trained it, with tables
    held as they are stored. They are read by the native kernels where these are there, else by plain PyTorch; always so
    where the config asks for the reference back end.

    Raises:
        RuntimeError: ``state`` is not what :meth:`Recommender.shipped_state` gives for this config.
    """
    backend = "reference" if config.embedding.backend == "reference" else "native"
    own = config.embedding.model_copy(update={"backend": backend})
    model = build_recommender(config.model_copy(update={"embedding": own}), features, num_dense, shipped=True)
    only = {f"embedding.{name}" for name in model.embedding.training_only}
    unshipped = {name: tensor for name, tensor in model.state_dict().items() if name in only}
    model.load_state_dict({**unshipped, **state})
    return model.eval()
