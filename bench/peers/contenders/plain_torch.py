"""Plain PyTorch: a module for each feature.

``sparse``: ``nn.EmbeddingBag(sparse=True)`` and ``torch.optim.Adagrad``, element by element, since torch has none by
rows. Else ``nn.Embedding`` and ``torch.optim.Adam``, which moves every row at every step.
"""

from __future__ import annotations

import common
import torch
from torch import Tensor, nn


def main() -> None:
    one, clock = common.asked(), common.Clock()
    make = (lambda n: nn.EmbeddingBag(n, one.dim, mode="sum", sparse=True)) if one.sparse else plain(one.dim)
    tables = nn.ModuleList(make(size) for size in one.cardinalities)
    for table in tables:
        nn.init.uniform_(table.weight, -common.BOUND, common.BOUND)
    optimizer: torch.optim.Optimizer
    if one.sparse:
        torch.sparse.check_sparse_tensor_invariants.disable()  # as it is by default, where torch warns of it
        optimizer = torch.optim.Adagrad(tables.parameters(), lr=one.tables_lr)
    else:
        optimizer = torch.optim.Adam(tables.parameters(), lr=one.dense_lr)

    def read(ids: Tensor) -> Tensor:
        columns = ids.unsqueeze(2) if one.sparse else ids
        return torch.stack([table(column) for table, column in zip(tables, columns, strict=True)], 1)

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad()

    half = common.train_by_hand(one, clock, read, update)
    common.score(one, lambda ids, dense: half(read(ids), dense))
    common.answer(clock, "Adagrad" if one.sparse else "Adam")


def plain(dim: int):
    return lambda n: nn.Embedding(n, dim)


if __name__ == "__main__":
    main()
