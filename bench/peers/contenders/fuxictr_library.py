"""FuxiCTR: its Parquet loader (Ray), its embedding layer, its ``fit``, with Adam over everything.

Its wheel has no DeepFM: the dense half is the others', on its ``BaseModel`` and ``FeatureEmbedding``. Its own models
make a vector of every number too; here numbers are numbers, as for the others. It clips gradients, and after the last
step it saves the weights and loads them again; that is as it comes.
"""

from __future__ import annotations

import os
import tempfile

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import common
import models
import numpy as np
import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.dataloaders import RankDataLoader
from fuxictr.pytorch.layers import FeatureEmbedding
from fuxictr.pytorch.models import BaseModel


def main() -> None:
    one, clock = common.asked(), common.Clock()
    with tempfile.TemporaryDirectory() as folder:
        features = FeatureMap("planted", folder)
        features.labels = [common.LABEL]
        features.features.update({name: {"source": "", "type": "numeric"} for name in common.NUMERIC})
        for name, size in zip(common.CATEGORICAL, one.cardinalities, strict=True):
            features.features[name] = {"source": "", "type": "categorical", "vocab_size": size}
        features.num_fields = features.get_num_fields()
        features.set_column_index()
        os.makedirs(os.path.join(folder, "planted"))
        model = Handed(features, folder, one)
        model.optimizer.register_step_post_hook(clock.tick)
        train, val = RankDataLoader(
            features,
            stage="train",
            train_data=one.train,
            valid_data=one.val,
            batch_size=one.batch,
            shuffle=False,
            data_format="parquet",
        )
        model.fit(train, epochs=1, validation_data=val)
    common.write_scores(one, model.scores, model.labels)
    common.answer(clock, "Adam", "fuxictr", "ray", "polars")


class Handed(BaseModel):
    """Its embedding layer, and a dense half that is handed its vectors."""

    def __init__(self, features: FeatureMap, folder: str, one) -> None:
        super().__init__(features, model_root=folder, metrics=["AUC"], verbose=0)
        self.embedding = FeatureEmbedding(features, one.dim, not_required_feature_columns=list(common.NUMERIC))
        self.inner = models.build(one.model, one.dim)
        self.compile("adam", "binary_crossentropy", one.dense_lr)
        self.scores = self.labels = np.zeros(0)

    def forward(self, inputs: dict) -> dict:
        columns = self.get_inputs(inputs)
        numbers = torch.stack([columns[name].float() for name in common.NUMERIC], 1)
        logits = self.inner(self.embedding(columns), numbers)
        return {"y_pred": torch.sigmoid(logits).unsqueeze(1)}

    def evaluate_metrics(self, y_true, y_pred, metrics, group_id=None):
        self.labels, self.scores = y_true, y_pred
        return super().evaluate_metrics(y_true, y_pred, metrics, group_id)


if __name__ == "__main__":
    main()
