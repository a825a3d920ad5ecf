"""How fast a shipped model answers: one row at a time, and in batches.

A request is encoded rows, its answer their probabilities. Turning raw rows into ids costs the same under every strategy
and is left out. The model is warm, and computes on one thread: so numbers do not depend on who else measures.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from typing import Any

import numpy as np
import torch

from recsys_embed.data import EncodedDataset
from recsys_embed.data.loader import batches
from recsys_embed.provenance import processor
from recsys_embed.recommender import Recommender

THREADS = 1
REQUESTS, BATCHES = 100, 10
"""Answers that a median is over: to single rows, and to batches."""

_WARM_UP = 5


def serving_speed(model: Recommender, dataset: EncodedDataset, batch_size: int) -> dict[str, Any]:
    """The columns of ``results.csv`` on serving. Requests are rows of the test split, from all over it."""
    batch = min(batch_size, dataset.rows("test"))
    return {
        "latency_single_row_microseconds": 1e6 * _seconds(model, dataset, 1, REQUESTS),
        "predict_rows_per_second": batch / _seconds(model, dataset, batch, BATCHES),
        "serving": {"processor": processor() or "unknown", "threads": THREADS, "batch": batch, "requests": REQUESTS},
    }


def _seconds(model: Recommender, dataset: EncodedDataset, size: int, repeats: int) -> float:
    """The median over ``repeats`` answers to ``size`` rows each, after a few that are not counted."""
    last = dataset.rows("test") - 1
    rows = np.linspace(0, last, min(repeats, (last + 1) // size) * size).astype(np.int64)
    requests = cycle(list(batches(dataset.columns("test").take(rows), size)))
    model.eval()
    seconds = []
    with _one_thread(), torch.inference_mode():
        for request in islice(requests, _WARM_UP + repeats):
            begin = time.perf_counter()
            model.probabilities(model(request)).numpy()
            seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds[_WARM_UP:])


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
