"""What the machine allows an embedding step on CPU: rows at random and a copy, measured on the tables themselves.

The shortest step reads every distinct row once, writes all vectors, reads all gradients, and reads and writes every
distinct row and its optimizer state once; these phases add up.
"""

from __future__ import annotations

import ctypes
import statistics
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.harness.bandwidth import FLOAT, copy_bandwidth

_ROWS, _TURNS = 4_000_000, 5  # lines of several times what a cache holds


@cache
def _functions() -> Any:
    source = Path(__file__).with_name("limits.cpp")
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder, "limits.so")
        flags = ["-std=c++17", "-O3", "-march=native", "-fPIC", "-shared", "-pthread"]
        subprocess.run(["g++", *flags, str(source), "-o", str(built)], check=True)
        functions = ctypes.CDLL(str(built))
    functions.random_rows.restype = ctypes.c_double
    return functions


def rows_per_second(store: Tensor, *, write: bool) -> float:
    """Of ``store [n, width]``, with torch's number of threads; what is written is what was read."""
    rows = torch.randint(store.shape[0], (_ROWS,), generator=torch.Generator().manual_seed(0))
    pointers = ctypes.c_void_p(store.data_ptr()), ctypes.c_void_p(rows.data_ptr())
    number = ctypes.c_int64
    seconds = statistics.median(
        _functions().random_rows(
            pointers[0],
            number(store.shape[1]),
            pointers[1],
            number(_ROWS),
            number(torch.get_num_threads()),
            number(write),
        )
        for _ in range(_TURNS)
    )
    return _ROWS / seconds


def shortest_step(weights: Tensor, state: Tensor, distinct: float, vectors: int) -> dict[str, float]:
    """Milliseconds of a forward pass and an update with so many distinct rows and ``vectors`` floats in and out."""
    copied = copy_bandwidth(torch.device("cpu"), 2**28, _TURNS)
    read, written, kept = (
        rows_per_second(one, write=write) for one, write in ((weights, False), (weights, True), (state, True))
    )
    moved = vectors * FLOAT / copied
    return {
        "copy_gb_per_second": round(copied / 1e9, 1),
        "million_rows_read_per_second": round(read / 1e6, 1),
        "million_rows_written_per_second": round(written / 1e6, 1),
        "million_states_written_per_second": round(kept / 1e6, 1),
        "forward_ms": round(1e3 * (distinct / read + moved), 3),
        "update_ms": round(1e3 * (distinct / written + distinct / kept + moved), 3),
    }
