"""Products of the model in less than float32: while it is trained, and there alone."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from recsys_embed.recommender import Recommender
from recsys_embed.training.metrics import auc
from recsys_embed.training.precision import products
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


@pytest.fixture
def callers() -> Iterator[str]:
    """What the caller has set for products of his own."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    yield "high"
    torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_training_alone_is_less_precise(toy: Any, callers: str, precision: str) -> None:
    """Of the layers' outputs, torch's setting forward and backward, and everything that stays."""
    data, seen, back = toy(), set[tuple[bool, torch.dtype, str]](), set[str]()
    config = settings(epochs=1, precision=precision)
    model = build(config, data)

    def note(module: nn.Module, given: Any, made: Tensor) -> None:
        seen.add((module.training, made.dtype, torch.get_float32_matmul_precision()))
        if made.requires_grad:
            made.register_hook(lambda gradient: back.add(torch.get_float32_matmul_precision()))

    for module in model.interaction.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(note)
    train(model, data, config.training, progress=False)
    half = torch.bfloat16 if precision == "bf16" else torch.float32
    during = "medium" if precision == "medium" else "highest"
    assert seen == {(True, half, during), (False, torch.float32, callers)}
    assert back == {during}
    assert torch.get_float32_matmul_precision() == callers
    assert {tensor.dtype for tensor in model.state_dict().values() if tensor.is_floating_point()} == {torch.float32}


def test_the_callers_setting_survives_an_error(callers: str) -> None:
    with pytest.raises(ZeroDivisionError), products("medium"):
        assert torch.get_float32_matmul_precision() == "medium"
        _ = 1 / 0
    assert torch.get_float32_matmul_precision() == callers


def test_a_recommender_is_trained_in_the_precision_of_the_config(toy: Any) -> None:
    """Whatever it was built with."""
    data = toy()
    config = settings(epochs=1, precision="bf16")
    built = build(config, data)
    model, seen = Recommender(built.embedding, built.interaction), set[torch.dtype]()
    model.interaction.logit.register_forward_hook(lambda *given: seen.add(given[-1].dtype))
    train(model, data, config.training, progress=False)
    assert seen == {torch.bfloat16, torch.float32}  # in training, in validation
