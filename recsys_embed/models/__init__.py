"""Click-through-rate models. A model is handed vectors and dense columns, and returns logits; one file each."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from recsys_embed.config import DCNv2Config, DLRMConfig, ModelConfig, Node
from recsys_embed.models.dcn_v2 import DCNv2
from recsys_embed.models.dlrm import DLRM

__all__ = ["DLRM", "DCNv2", "build_model"]

# To add a model: its config in config.py, its file here, and this line.
_MODELS: dict[type[Node], Callable[..., nn.Module]] = {DCNv2Config: DCNv2, DLRMConfig: DLRM}


def build_model(config: ModelConfig, *, num_features: int, num_dense: int, padded: bool = False) -> nn.Module:
    """The model that ``config`` describes: ``forward(vectors [B, F, D], dense [B, n]) → logits [B]``.

    With ``padded`` its input has a width that suits the processor while it is trained; see
    :mod:`recsys_embed.models.mlp`.
    """
    options = config.model_dump(exclude={"name"})
    return _MODELS[type(config)](num_features, num_dense, **options, padded=padded)
