"""Rows of several slots to one vector by the kernels, against torch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from recsys_embed.native.library import load
from recsys_embed.tables import combination
from recsys_embed.tables.buffers import LEAST
from recsys_embed.tables.combination import combined

LIBRARY = load()
if isinstance(LIBRARY, str):
    pytest.skip(f"no native back end: {LIBRARY}", allow_module_level=True)


def by_torch(slots: Tensor, products: bool) -> Tensor:
    return slots.prod(-2) if products else slots.sum(-2)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(
    st.integers(0, 7),
    st.integers(1, 4),
    st.sampled_from([1, 2, 3, 4, 5, 8, 15, 16, 17, 33, 64, 65]),
    st.booleans(),
    st.sampled_from(range(LIBRARY.best_level + 1)),
    st.integers(1, 3),
)
def test_vectors_and_gradients_are_torchs(
    samples: int, slots: int, width: int, products: bool, level: int, threads: int
) -> None:
    """Two slots to the bit; also with no sample, one slot, rows that fill no vector, and threads."""
    before = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(combination, "LEAST", 0)
        patch.setattr(LIBRARY, "level", level)
        torch.set_num_threads(threads)
        try:
            rows, other = (drawn(samples, 3, slots, width).double() for _ in range(2))
            native = rows.float().requires_grad_()
            vectors = combined(native, "product" if products else "sum")
            goal = by_torch(other.requires_grad_(), products)
            gradient = drawn(samples, 3, width, seed=1)
            vectors.backward(gradient)
            goal.backward(gradient.double())
        finally:
            torch.set_num_threads(before)
    assert slots == 1 or "Combined" in type(vectors.grad_fn).__name__
    torch.testing.assert_close(vectors.detach().double(), goal.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(native.grad, other.grad.float(), rtol=1e-5, atol=1e-6)  # type: ignore[union-attr]
    if slots == 2:
        one, two = rows.float().unbind(-2)
        assert torch.equal(vectors, one * two if products else one + two)
        expected = [gradient * two, gradient * one] if products else [gradient, gradient]
        assert torch.equal(native.grad, torch.stack(expected, -2))  # type: ignore[arg-type]


def test_memory_is_used_again_and_never_while_somebody_holds_it() -> None:
    slots = drawn(LEAST // 64, 2, 64).requires_grad_()
    held = combined(slots, "product")
    copy = held.detach().clone()
    for seed in range(4):
        combined(drawn(LEAST // 64, 2, 64, seed=seed), "product")
    assert torch.equal(held, copy)
    held.sum().backward()
    assert torch.equal(slots.grad, slots.detach().flip(-2))  # type: ignore[arg-type]


@pytest.mark.parametrize("slots", [drawn(LEAST, 2, 4).double(), drawn(LEAST, 4, 2).transpose(1, 2), drawn(3, 2, 4)])
def test_other_types_views_and_few_rows_are_left_to_torch(slots: Tensor) -> None:
    vectors = combined(slots.requires_grad_(), "product")
    assert "Combined" not in type(vectors.grad_fn).__name__
    torch.testing.assert_close(vectors, by_torch(slots, True))


@pytest.mark.parametrize("products", [False, True])
def test_a_training_by_adam_is_that_of_torch(products: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through a layer, whose tables are parameters: whole gradients are added up and kept."""
    from recsys_embed import EmbeddingLayer, Feature

    operation = "multiply" if products else "add"
    strategy = {"name": "compositional", "operation": operation}
    layers = [EmbeddingLayer([Feature("x", 900)], 8, strategy=strategy, budget=0.2, exact=()) for _ in range(2)]
    for least, layer in zip((0, 10**9), layers, strict=True):
        monkeypatch.setattr(combination, "LEAST", least)
        optimizer = torch.optim.Adam(layer.parameters(), lr=0.1)
        for seed in range(5):
            for part in range(2):  # two passes before a step
                ids = torch.randint(0, 900, (1, 50), generator=torch.Generator().manual_seed(10 * seed + part))
                (layer(ids) - drawn(50, 1, 8, seed=seed)).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    for one, other in zip(*(layer.state_dict().values() for layer in layers), strict=True):
        assert torch.equal(one, other)
