"""Products of pairs by the kernels, against autograd in float64 and torch's own path."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from recsys_embed.models import pairs
from recsys_embed.models.pairs import MOST, PairProducts
from recsys_embed.native.library import load

LIBRARY = load()
needs_kernels = pytest.mark.skipif(isinstance(LIBRARY, str), reason=f"no native back end: {LIBRARY}")


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


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


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
    """By whatever path takes them; also with no sample, one pair, none, and more vectors than the kernels take."""
    first, others = drawn(batch, features, dim, with_first=with_first, seed=seed)
    if features + with_first < 2:
        return
    module = PairProducts(features + with_first)
    expected = gradients(None if first is None else first.double(), others.double(), padding, None)
    for one, goal in zip(gradients(first, others, padding, module), expected, strict=True):
        torch.testing.assert_close(one.double(), goal, rtol=1e-5, atol=1e-4)


@needs_kernels
@pytest.mark.parametrize("with_first", [False, True])
@pytest.mark.parametrize(("features", "dim"), [(26, 16), (40, 30), (3, 5)])
def test_threads_and_instruction_sets_change_no_bit(
    features: int, dim: int, with_first: bool, threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not isinstance(LIBRARY, str)
    first, others = drawn(500, features, dim, with_first=with_first)
    module = PairProducts(features + with_first)
    found = []
    for level in range(LIBRARY.best_level + 1):
        for count in (1, 3):
            torch.set_num_threads(count)
            monkeypatch.setattr(LIBRARY, "level", level)
            found.append(gradients(first, others, 7, module))
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@needs_kernels
def test_who_takes_what(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels take float32, and not too many; a first vector of another type is converted; views are copied."""
    taken = []
    monkeypatch.setattr(pairs._PairProducts, "apply", lambda *given: taken.append(given))
    first, others = drawn(4, 5, 6, with_first=True)
    assert first is not None
    PairProducts(6)(first.bfloat16(), others)
    PairProducts(6)(first, others.transpose(0, 1).contiguous().transpose(0, 1))
    assert len(taken) == 2
    assert taken[0][0].dtype == torch.float32
    PairProducts(6)(first.double(), others.double())
    PairProducts(MOST + 1)(None, drawn(2, MOST + 1, 4, with_first=False)[1])
    assert len(taken) == 2


def test_a_view_gives_what_its_copy_does() -> None:
    first, others = drawn(4, 5, 6, with_first=True)
    view = others.transpose(0, 1).contiguous().transpose(0, 1)
    assert not view.is_contiguous()
    assert torch.equal(PairProducts(6)(first, view), PairProducts(6)(first, others))
