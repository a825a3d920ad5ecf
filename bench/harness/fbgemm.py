"""FBGEMM's operator on CPU, as one would call it by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def operator(tables: Sequence[tuple[int, int]], lanes: Sequence[int]) -> Any:
    """Row-wise Adagrad over tables of so many rows and columns; ``lanes`` say which table each feature reads."""
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    made = SplitTableBatchedEmbeddingBagsCodegen(
        [(rows, width, EmbeddingLocation.HOST, ComputeDevice.CPU) for rows, width in tables],
        feature_table_map=list(lanes),
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=0.01,
        eps=1e-8,
        pooling_mode=PoolingMode.SUM,
    )
    made.init_embedding_weights_uniform(-0.05, 0.05)
    return made
