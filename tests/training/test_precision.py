"""Products of the model in less than float32: while it is trained, and there alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from recsys_embed.training.metrics import auc
from recsys_embed.training.trainer import predict, train
from tests.training.runs import build, settings

PRECISIONS = ["fp32", "medium", "bf16"]


@pytest.mark.parametrize("precision", PRECISIONS)
def test_it_learns_the_planted_table(toy: Any, precision: str) -> None:
    data = toy(rows=16_000)
    config = settings(epochs=6, precision=precision)
    model = build(config, data)
    train(model, data, config.training, progress=False)
    labels = data.labels("test")
    assert auc(labels, data.truth["test"]) - auc(labels, predict(model, data, "test", 512)) < 0.015


@pytest.mark.parametrize("precision", PRECISIONS)
def test_training_alone_is_less_precise(toy: Any, precision: str) -> None:
    """Of the layers' outputs, torch's setting, and everything that stays."""
    data, seen = toy(), set[tuple[bool, torch.dtype, str]]()
    config = settings(epochs=1, precision=precision)
    model = build(config, data)
    before = torch.get_float32_matmul_precision()

    def note(module: nn.Module, given: Any, made: Tensor) -> None:
        seen.add((module.training, made.dtype, torch.get_float32_matmul_precision()))

    for module in model.interaction.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(note)
    train(model, data, config.training, progress=False)
    half = torch.bfloat16 if precision == "bf16" else torch.float32
    during = "medium" if precision == "medium" else "highest"
    assert seen == {(True, half, during), (False, torch.float32, before)}
    assert torch.get_float32_matmul_precision() == before
    assert {tensor.dtype for tensor in model.state_dict().values() if tensor.is_floating_point()} == {torch.float32}
