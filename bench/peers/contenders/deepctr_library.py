"""DeepCTR-Torch: its feature columns, its ``fit`` and ``predict``, with Adam over everything.

DeepFM is its own, whose linear part is given the numbers alone; its last layers have no bias. It has no DLRM, and its
DCN is the parallel one: these two are the others' dense halves on its ``BaseModel``. Its penalties, 1e-5 by default,
are set to 0, as the others have none. Its loss is a sum over the batch, which Adam does not see.
"""

from __future__ import annotations

import common
import models
import numpy as np
import torch
from deepctr_torch.inputs import DenseFeat, SparseFeat
from deepctr_torch.models import DeepFM
from deepctr_torch.models.basemodel import BaseModel


def main() -> None:
    one, clock = common.asked(), common.Clock()
    numbers = [DenseFeat(name, 1) for name in common.NUMERIC]
    sizes = zip(common.CATEGORICAL, one.cardinalities, strict=True)
    ids = [SparseFeat(name, size, embedding_dim=one.dim) for name, size in sizes]
    if one.model == "deepfm":
        model = DeepFM(numbers, ids + numbers, dnn_hidden_units=models.HIDDEN, l2_reg_linear=0, l2_reg_embedding=0)
    else:
        model = Handed(ids + numbers, one)
    model.compile(torch.optim.Adam(model.parameters(), lr=one.dense_lr), "binary_crossentropy")
    model.optim.register_step_post_hook(clock.tick)
    columns, label = read(one.train)
    model.fit(columns, label, batch_size=one.batch, epochs=1, verbose=0, shuffle=False)
    columns, label = read(one.val)
    common.write_scores(one, model.predict(columns, one.batch), label)
    common.answer(clock, "Adam", "deepctr-torch")


def read(path: str) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Columns by name and labels, as ``fit`` wants them. It casts ids to float32: exact below 2**24."""
    table = common.pq.read_table(path)
    columns = {name: table[name].to_numpy() for name in (*common.NUMERIC, *common.CATEGORICAL)}
    return columns, table[common.LABEL].to_numpy().copy()


class Handed(BaseModel):
    """Its lookups, and a dense half that is handed their vectors."""

    def __init__(self, columns: list, one) -> None:
        super().__init__([], columns, l2_reg_linear=0, l2_reg_embedding=0)
        self.inner = models.build(one.model, one.dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        vectors, numbers = self.input_from_feature_columns(x, self.dnn_feature_columns, self.embedding_dict)
        logits = self.inner(torch.cat(vectors, 1), torch.cat(numbers, 1))
        return self.out(logits.unsqueeze(1))


if __name__ == "__main__":
    main()
