"""What FBGEMM's kernels ask of whoever calls them, by the fused back end and by TorchRec alike.

Rows are padded to a multiple of four floats. Row-wise Adagrad averages over the padded width, which would move rows of
width 30 by 3.3 % too far: gradients and rate are corrected, so that the sums it keeps and its update are the logical
ones. Sums that are kept in units of their own could not be saved and put back to the same bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from recsys_embed.errors import ConfigError
from recsys_embed.tables.base import UpdateRule

MULTIPLE = 4
"""Rows, and pieces of rows, are stored in multiples of this many floats."""

WIDEST = 1024
"""Rows wider than this come back wrong."""

OPTIMIZERS = {"sgd": "EXACT_SGD", "adagrad": "EXACT_ADAGRAD", "rowwise_adagrad": "EXACT_ROWWISE_ADAGRAD"}
"""The ``EmbOptimType`` of the rules that its kernels train by; the others it has not."""


def padded(width: int) -> int:
    """Floats that a row of this width takes.

    >>> padded(30), padded(32)
    (32, 32)
    """
    return -(-width // MULTIPLE) * MULTIPLE


def too_wide(width: int) -> str | None:
    """Why rows of this width cannot be held, or None."""
    return f"FBGEMM returns wrong rows above width {WIDEST}, got {width}" if width > WIDEST else None


def correction(rule: UpdateRule, width: int) -> float:
    """What gradients are multiplied by, and the learning rate is divided by."""
    return math.sqrt(padded(width) / width) if rule.name == "rowwise_adagrad" else 1.0


def optimizer_of(rule: UpdateRule) -> Any:
    """The ``EmbOptimType`` of a rule."""
    from fbgemm_gpu.split_embedding_configs import EmbOptimType

    return EmbOptimType[OPTIMIZERS[rule.name]]


def refuse_to_move(kind: str, fn: Callable[[Tensor], Tensor], device: torch.device) -> None:
    """Kernels stay where they were made: refuse a move of their module to another device or type.

    Raises:
        ConfigError: ``fn`` would move them.
    """
    there = torch.zeros(0, device=device)
    moved = fn(there)
    if (moved.device, moved.dtype) != (there.device, there.dtype):
        raise ConfigError(
            f"{kind} tables stay on {there.device} in {there.dtype}: move the layer before optimizer() is called"
        )
