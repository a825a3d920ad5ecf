"""This project: its layer of full tables, its optimizers and its step, with all their checks.

``backend`` is the layer's. DLRM and DCN-v2 are this project's, DeepFM, which it has not, is the others'.
"""

from __future__ import annotations

import common
import models
import torch
from torch import Tensor, nn

from recsys_embed import ConfigError, EmbeddingLayer, Feature
from recsys_embed.config import DCNv2Config, DLRMConfig, TrainingConfig
from recsys_embed.data.batches import Batch
from recsys_embed.ids import Ids
from recsys_embed.models import build_model
from recsys_embed.recommender import Recommender
from recsys_embed.training.optimizers import Optimizers
from recsys_embed.training.step import step


def main() -> None:
    one, clock = common.asked(), common.Clock()
    rows = common.Rows(one.train)
    features = [Feature(name, size) for name, size in zip(common.CATEGORICAL, one.cardinalities, strict=True)]
    config = TrainingConfig(
        batch_size=one.batch,
        precision=one.precision,
        optimizer={"tables": "rowwise_adagrad", "tables_lr": one.tables_lr, "dense_lr": one.dense_lr},
    )
    try:
        layer = EmbeddingLayer(features, one.dim, backend=one.backend)
        half = dense_half(one.model, one.dim, padded=one.precision != "bf16")
        model = Recommender(layer, half, precision=one.precision)
        optimizers = Optimizers(model, config)
    except ConfigError as error:  # a back end that this version or machine has not
        common.leave_out(str(error))
    for ids, dense, label in rows.batches(one.batch):
        step(model, batch(ids, dense, label), optimizers)
        clock.tick()
    model.eval()
    common.score(one, lambda ids, dense: model(batch(ids, dense, dense[:, 0])))
    common.answer(clock, "row-wise Adagrad", "recsys-embed", tables=type(layer.tables).__name__)


def batch(ids: Tensor, dense: Tensor, label: Tensor) -> Batch:
    return Batch(Ids(ids, len(common.CATEGORICAL)), dense, label)


def dense_half(name: str, dim: int, *, padded: bool) -> nn.Module:
    if name == "deepfm":
        return models.build(name, dim, "fp32")
    sizes = {
        "dlrm": DLRMConfig(name="dlrm", dim=dim, bottom=list(models.BOTTOM), top=list(models.HIDDEN)),
        "dcn_v2": DCNv2Config(name="dcn_v2", dim=dim, cross_layers=models.CROSS_LAYERS, hidden=list(models.HIDDEN)),
    }
    torch.manual_seed(0)
    return build_model(sizes[name], num_features=models.FEATURES, num_dense=models.NUMERIC, padded=padded)


if __name__ == "__main__":
    main()
