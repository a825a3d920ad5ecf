"""TorchRec's modules, called by hand.

``fused``: ``FusedEmbeddingBagCollection``, FBGEMM's operator below TorchRec's interface, by ``optimizer`` Adagrad or
row-wise Adagrad. Else ``EmbeddingBagCollection``: ``nn.EmbeddingBag`` with dense gradients, by Adam or TorchRec's
row-wise Adagrad.
"""

from __future__ import annotations

from typing import Any

import common
import torch
from torch import Tensor
from torchrec import EmbeddingBagCollection, EmbeddingBagConfig, KeyedJaggedTensor
from torchrec.modules.fused_embedding_modules import FusedEmbeddingBagCollection
from torchrec.optim.rowwise_adagrad import RowWiseAdagrad


def main() -> None:
    one, clock = common.asked(), common.Clock()
    keys = list(common.CATEGORICAL)
    configs = [
        EmbeddingBagConfig(
            name=f"t_{name}",
            num_embeddings=size,
            embedding_dim=one.dim,
            feature_names=[name],
            weight_init_min=-common.BOUND,  # the fused module ignores init_fn
            weight_init_max=common.BOUND,
        )
        for name, size in zip(keys, one.cardinalities, strict=True)
    ]
    tables: Any
    if one.fused:
        kind = torch.optim.Adagrad if one.optimizer == "Adagrad" else RowWiseAdagrad
        options = {"lr": one.tables_lr, "eps": 1e-8}
        tables = FusedEmbeddingBagCollection(configs, kind, options, device=torch.device("cpu"))
        update = nothing
    else:
        tables = EmbeddingBagCollection(tables=configs, device=torch.device("cpu"))
        if one.optimizer == "Adam":
            update = updating(torch.optim.Adam(tables.parameters(), lr=one.dense_lr))
        else:
            update = updating(RowWiseAdagrad(tables.parameters(), lr=one.tables_lr, eps=1e-8))

    def read(ids: Tensor) -> Tensor:
        features, batch = ids.shape
        jagged = KeyedJaggedTensor(
            keys, ids.reshape(-1), lengths=torch.ones(features * batch, dtype=torch.int32), stride=batch
        )
        vectors: Tensor = tables(jagged).values()
        return vectors.view(batch, features, -1)

    half = common.train_by_hand(one, clock, read, update)
    common.score(one, lambda ids, dense: half(read(ids), dense))
    common.answer(clock, one.optimizer, "torchrec", "fbgemm-gpu-cpu")


def nothing() -> None:
    pass


def updating(optimizer: torch.optim.Optimizer) -> Any:
    def update() -> None:
        optimizer.step()
        optimizer.zero_grad()

    return update


if __name__ == "__main__":
    main()
