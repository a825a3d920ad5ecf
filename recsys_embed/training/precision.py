"""How products of float32 matrices are computed while a model is trained."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def products(precision: str) -> Iterator[None]:
    """Within the block factors are rounded where that is faster, if ``precision`` is ``"medium"``, else never; what the
    caller had set is put back. All threads of the process see it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium" if precision == "medium" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
