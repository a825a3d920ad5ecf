"""Products of pairs by the kernels, against autograd in float64 and torch's own path."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from recsys_embed.models import pairs
from recsys_embed.models.pairs import MOST, PairProducts
from recsys_embed.native.library import load
from tests.backends import needs_kernels

LIBRARY = load()


def drawn(batch: int, features: int, dim: int, *, with_first: bool, seed: int = 0) -> tuple[Tensor | None, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    others = torch.randn(batch, features, dim, generator=generator)
    return (torch.randn(batch, dim, generator=generator) if with_first else None), others


def by_loop(first: Tensor | None, others: Tensor, padding: int) -> Tensor:
    every = list(others.unbind(1)) if first is None else [first, *others.unbind(1)]
    columns = [] if first is None else list(first.unbind(1))
    columns += [(every[i] * every[j]).sum(1) for i in range(len(every)) for j in range(i)]
    columns += [others.new_zeros(len(others))] * padding
    return torch.stack(columns, 1)


def gradients(first: Tensor | None, others: Tensor, padding: int, module: PairProducts | None) -> list[Tensor]:
    """What comes out, and the gradients of what goes in."""
    leaves = [one.clone().requires_grad_() for one in (first, others) if one is not None]
    given = (leaves[0] if first is not None else None, leaves[-1], padding)
    out = by_loop(*given) if module is None else module(*given)
    out.backward(torch.linspace(-1, 1, out.numel()).view_as(out).to(out.dtype))
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


@given(
    st.integers(0, 9),
    st.sampled_from([1, 2, 3, 5, 15, 16, 17, 26, 33, 63, 64]),
    st.sampled_from([1, 2, 3, 4, 8, 15, 16, 17, 24, 64]),
    st.booleans(),
    st.integers(0, 17),
    st.integers(0, 2**16),
)
def test_products_and_gradients_are_those_of_a_loop(
    batch: int, features: int, dim: int, with_first: bool, padding: int, seed: int
) -> None:
    """By whatever path takes them; also with no sample, one pair, and more vectors than the kernels take."""
    assume(features + with_first > 1)
    first, others = drawn(batch, features, dim, with_first=with_first, seed=seed)
    module = PairProducts(features + with_first)
    expected = gradients(None if first is None else first.double(), others.double(), padding, None)
    for one, goal in zip(gradients(first, others, padding, module), expected, strict=True):
        torch.testing.assert_close(one.double(), goal, rtol=1e-5, atol=1e-4)


@needs_kernels
@pytest.mark.parametrize("with_first", [False, True])
@pytest.mark.parametrize(("features", "dim"), [(26, 16), (40, 30), (3, 5)])
def test_threads_and_instruction_sets_change_no_bit(
    features: int, dim: int, with_first: bool, threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not isinstance(LIBRARY, str)
    first, others = drawn(500, features, dim, with_first=with_first)
    module = PairProducts(features + with_first)
    found = []
    for level in range(LIBRARY.best_level + 1):
        for count in (1, 3):
            threads(count)
            monkeypatch.setattr(LIBRARY, "level", level)
            found.append(gradients(first, others, 7, module))
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@needs_kernels
def test_who_takes_what(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels take float32, and not too many; a first vector of another type is converted; views are copied."""
    from recsys_embed.native import ops

    taken: list[Any] = []
    monkeypatch.setattr(ops, "multiply_pairs", lambda *given: taken.append(given))
    first, others = drawn(4, 5, 6, with_first=True)
    assert first is not None
    PairProducts(6)(first.bfloat16(), others)
    PairProducts(6)(first, others.transpose(0, 1).contiguous().transpose(0, 1))
    assert len(taken) == 2
    assert taken[0][0].dtype == torch.float32
    PairProducts(6)(first.double(), others.double())
    PairProducts(MOST + 1)(None, drawn(2, MOST + 1, 4, with_first=False)[1])
    assert len(taken) == 2


@needs_kernels
@pytest.mark.parametrize(
    ("first", "others"), [((4, 8), (4, 5, 6)), ((4, 4), (4, 5, 6)), ((3, 6), (4, 5, 6)), ((4, 6), (4, 4, 6))]
)
def test_shapes_that_do_not_fit_are_refused(first: tuple[int, ...], others: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"first vectors are|vectors a sample"):
        PairProducts(6)(torch.zeros(first), torch.zeros(others))


def test_a_model_refuses_vectors_of_another_width() -> None:
    from recsys_embed.models import DLRM

    for features, dim in ((3, 16), (3, 4), (2, 8)):
        with pytest.raises((ValueError, RuntimeError)):
            DLRM(3, 2, dim=8)(torch.zeros(5, features, dim), torch.zeros(5, 2))


@needs_kernels
@pytest.mark.parametrize("bf16", [False, True])
def test_a_model_learns_the_same_from_them_as_from_torch(bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also under autocast, where torch rounds the factors and the kernels do not."""
    from recsys_embed.models import DLRM

    found = []
    for most in (MOST, 0):
        monkeypatch.setattr(pairs, "MOST", most)
        torch.manual_seed(0)
        model, (_, vectors) = DLRM(5, 3, dim=8), drawn(40, 5, 8, with_first=False)
        vectors.requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            logits = model(vectors, torch.ones(40, 3))
        logits.float().sum().backward()
        found.append([logits.detach().float(), vectors.grad, *(one.grad for one in model.parameters())])
    rounding = 0.2 if bf16 else 1e-5  # which may decide whether a unit is on
    for one, other in zip(*found, strict=True):
        assert one is not None
        assert other is not None
        assert (one - other).norm() <= rounding * other.norm()


@needs_kernels
def test_there_are_no_second_gradients_and_nobody_gets_wrong_ones() -> None:
    first, others = drawn(4, 5, 6, with_first=True)
    others.requires_grad_()
    (gradient,) = torch.autograd.grad(PairProducts(6)(first, others).sum(), others, create_graph=True)
    with pytest.raises(RuntimeError, match="no gradients of these"):
        gradient.sum().backward()


@needs_kernels
def test_what_is_compiled_takes_them_and_what_is_exported_does_not() -> None:
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    """With the same gradients, one program for all batches; what is exported runs where this package is not."""
    module = PairProducts(6)
    found = []

    def graph(graph: torch.fx.GraphModule, _: Any) -> Any:
        found.append(str(graph.graph))
        return make_boxed_func(graph.forward)

    def chained(first: Tensor, others: Tensor) -> Tensor:
        return module(first, others, 3) * 2

    compiled = torch.compile(chained, backend=aot_autograd(fw_compiler=graph), fullgraph=True, dynamic=True)
    for batch in (40, 7):
        first, others = drawn(batch, 5, 8, with_first=True)
        assert first is not None
        results = []
        for program in (chained, compiled):
            leaves = first.clone().requires_grad_(), others.clone().requires_grad_()
            out = program(*leaves)
            out.square().sum().backward()
            results.append([out.detach(), *(leaf.grad for leaf in leaves)])
        for one, other in zip(*results, strict=True):
            assert one is not None
            assert other is not None
            assert torch.equal(one, other)
    torch.compiler.reset()
    assert ["multiply_pairs.default" in one for one in found] == [True, False]
    assert "multiply_pairs_back" in found[1]
    exported = torch.export.export(module, (first, others, 3))
    assert "multiply_pairs" not in str(exported.graph)
    torch.testing.assert_close(exported.module()(first, others, 3), module(first, others, 3), rtol=1e-5, atol=1e-5)


def test_a_view_gives_what_its_copy_does() -> None:
    first, others = drawn(4, 5, 6, with_first=True)
    view = others.transpose(0, 1).contiguous().transpose(0, 1)
    assert not view.is_contiguous()
    assert torch.equal(PairProducts(6)(first, view), PairProducts(6)(first, others))
