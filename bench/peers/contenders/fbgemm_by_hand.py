"""FBGEMM's table-batched embeddings, called by hand: row-wise Adagrad within the backward pass.

Its CPU build runs on one thread. ``halves = 2`` makes two operators of 13 tables each and calls them in two Python
threads, forward and backward, which is what someone with two cores would do next.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import common
import torch
from torch import Tensor


def main() -> None:
    one, clock = common.asked(), common.Clock()
    threads = int(one.halves)
    cut = -(-len(one.cardinalities) // threads)
    operators = [
        operator(one.cardinalities[start : start + cut], one) for start in range(0, len(one.cardinalities), cut)
    ]
    tables = Whole(operators[0]) if threads == 1 else Halves(operators)
    half = common.train_by_hand(one, clock, tables.read, tables.update)
    common.score(one, lambda ids, dense: half(tables.read(ids), dense))
    common.answer(clock, "row-wise Adagrad", "fbgemm-gpu-cpu")


def operator(cardinalities: Sequence[int], one: Any) -> Any:
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import BoundsCheckMode, EmbeddingLocation, PoolingMode
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    made = SplitTableBatchedEmbeddingBagsCodegen(
        [(size, one.dim, EmbeddingLocation.HOST, ComputeDevice.CPU) for size in cardinalities],
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=one.tables_lr,
        eps=1e-8,
        pooling_mode=PoolingMode.SUM,
        bounds_check_mode=BoundsCheckMode.NONE,
    )
    made.init_embedding_weights_uniform(-common.BOUND, common.BOUND)
    return made


class Whole:
    """All tables in one operator; the update is in the backward pass of the loss."""

    def __init__(self, made: Any) -> None:
        self._made = made

    def read(self, ids: Tensor) -> Tensor:
        return read(self._made, ids)

    def update(self) -> None:
        pass


class Halves:
    """An operator for each thread. The loss ends at leaves; then each thread runs its own backward pass."""

    def __init__(self, made: Sequence[Any]) -> None:
        self._made, self._pool = made, ThreadPoolExecutor(len(made))
        self._pending: list[tuple[Tensor, Tensor]] = []

    def read(self, ids: Tensor) -> Tensor:
        learning = torch.is_grad_enabled()

        def one(work: tuple[Any, Tensor]) -> Tensor:
            with torch.set_grad_enabled(learning):
                return read(*work)

        found = list(self._pool.map(one, zip(self._made, ids.chunk(len(self._made)), strict=True)))
        if not learning:
            return torch.cat(found, 1)
        leaves = [vectors.detach().requires_grad_() for vectors in found]
        self._pending = list(zip(found, leaves, strict=True))
        return torch.cat(leaves, 1)

    def update(self) -> None:
        list(self._pool.map(lambda pair: pair[0].backward(pair[1].grad), self._pending))
        self._pending = []


def read(made: Any, ids: Tensor) -> Tensor:
    """Ids ``[T, B]`` of the operator's tables to vectors ``[B, T, D]``, a view of what it gives."""
    offsets = torch.arange(ids.numel() + 1, dtype=ids.dtype)
    vectors: Tensor = made(ids.reshape(-1), offsets)
    return vectors.view(ids.shape[1], ids.shape[0], -1)


if __name__ == "__main__":
    main()
