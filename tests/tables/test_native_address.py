"""Row numbers computed by the native kernels: those of integers without bounds, and of torch, to the bit."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recsys_embed import EmbeddingLayer, Feature
from recsys_embed.embeddings import index_maps
from recsys_embed.hashing import hash_rows
from recsys_embed.ids import Ids
from recsys_embed.native import choice
from recsys_embed.native.library import load
from recsys_embed.testing import BAGS, FEATURES, draw_ids
from tests.test_hashing import slow_row

LIBRARY = load()
if isinstance(LIBRARY, str):
    pytest.skip(f"no native back end: {LIBRARY}", allow_module_level=True)

LARGEST = 2**31 - 1
IDS = {
    torch.int32: st.integers(-(2**31), LARGEST),
    torch.int64: st.one_of(
        st.integers(0, 10**6), st.integers(0, LARGEST), st.integers(2**31 - 2, 2**33), st.integers(-(2**63), 2**63 - 1)
    ),
}
ROWS = st.one_of(st.integers(1, 100), st.integers(1, LARGEST), st.just(LARGEST))
DIVISORS = st.one_of(ROWS, st.integers(2**31, 2**63 - 1))
SHAPES = [
    ((3, 1, 40), (3, 2, 1)),  # features, slots, samples
    ((1, 40), (2, 40)),  # slots of jagged ids
    ((40,), ()),
    ((), ()),
    ((3, 1, 1), (3, 2, 1)),
    ((2, 1, 0), (2, 3, 1)),
    ((4, 1, 300), (1, 1)),
]


def address(ids: Tensor, first: Tensor, second: Tensor, digits: bool) -> Tensor:
    from recsys_embed.native import ops

    return ops.address(ids, first, second, digits)


def slow(ids: Tensor, first: Tensor, second: Tensor, digits: bool) -> Tensor:
    views = torch.broadcast_tensors(ids, first, second)
    found = [
        a // b % c if digits else slow_row(a, b, c)
        for a, b, c in zip(*(view.reshape(-1).tolist() for view in views), strict=True)
    ]
    return torch.tensor(found, dtype=torch.int64).view(views[0].shape)


@st.composite
def questions(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor, bool]:
    (shape, constants), digits = draw(st.sampled_from(SHAPES)), draw(st.booleans())
    dtype = draw(st.sampled_from([torch.int32, torch.int64]))

    def tensor(values: st.SearchStrategy[int], shape: tuple[int, ...], dtype: torch.dtype = torch.int64) -> Tensor:
        few = draw(st.lists(values, min_size=1, max_size=8))
        return (
            torch.tensor(few, dtype=dtype)
            .repeat(torch.Size(shape).numel() // len(few) + 1)[: torch.Size(shape).numel()]
            .view(shape)
        )

    seeds = st.integers(-(2**63), 2**63 - 1)
    first = tensor(DIVISORS if digits else seeds, constants)
    ids, second = tensor(IDS[dtype], shape, dtype), tensor(ROWS, constants)
    if draw(st.booleans()) and ids.dim() > 1:
        ids = ids.repeat_interleave(2, dim=-1)[..., ::2]
        first = first.t().contiguous().t() if first.dim() == 2 else first
    return ids, first, second, digits


@settings(max_examples=150, deadline=None)
@given(questions())
def test_rows_are_those_of_unbounded_integers(asked: tuple[Tensor, Tensor, Tensor, bool]) -> None:
    """On every instruction set."""
    assert not isinstance(LIBRARY, str)
    expected, before = slow(*asked), LIBRARY.level
    try:
        for level in range(LIBRARY.best_level + 1):
            LIBRARY.level = level
            assert torch.equal(address(*asked), expected)
    finally:
        LIBRARY.level = before


@pytest.mark.parametrize("digits", [False, True])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_many_ids_on_any_number_of_threads(digits: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every size, quotients next to a whole number among them."""
    generator = torch.Generator().manual_seed(0)
    bases = torch.randint(1, LARGEST, (5, 2, 1), generator=generator) >> torch.tensor([[[0], [12]]])
    firsts = torch.randint(1, 60_000, (5, 2, 1), generator=generator)
    ids = torch.randint(0, LARGEST, (5, 1, 9001), generator=generator) >> torch.randint(0, 30, (5, 1, 1))
    ids[:, :, 1::3] = ids[:, :, 1::3] // firsts[:, :1] * firsts[:, :1]
    ids[:, :, 2::3] = (ids[:, :, 2::3] // firsts[:, :1] * firsts[:, :1] - 1).clamp_(min=0)
    ids = ids.to(dtype)
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(address(ids, firsts, bases, digits))
    finally:
        torch.set_num_threads(before)
    monkeypatch.setattr(choice, "LEAST", ids.numel() + 1)
    expected = index_maps._digits(ids, firsts, bases) if digits else hash_rows(ids, firsts, bases)
    assert all(torch.equal(one, expected) for one in found)


@pytest.mark.parametrize("features", [FEATURES, BAGS], ids=["single", "bags"])
@pytest.mark.parametrize("strategy", ["hash", "unified", "compositional", "robe", "cafe"])
def test_strategies_address_as_without_kernels(
    strategy: str, features: tuple[Feature, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    emb = EmbeddingLayer(features, 12, strategy=strategy, budget=0.3, exact=())
    ids = draw_ids(features, 50)
    found = []
    for least in (0, 2**40):
        monkeypatch.setattr(choice, "LEAST", least)
        found.append(emb.strategies[0].address(ids).rows)
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[1])


def test_many_ids_go_to_the_kernels_and_few_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    from recsys_embed.native import ops

    asked: list[int] = []
    real = ops.address
    monkeypatch.setattr(ops, "address", lambda ids, *rest: asked.append(ids.numel()) or real(ids, *rest))
    index_map = index_maps.Hash([[3]], [[100]])
    for count in (choice.LEAST - 1, choice.LEAST):
        index_map(Ids(torch.arange(count).view(1, count), 1))
    assert asked == [choice.LEAST]


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(RuntimeError, match="cannot be broadcast"):
        address(torch.zeros(4, dtype=torch.int64), torch.ones(3, dtype=torch.int64), torch.ones(1).long(), False)


def test_the_operator_has_a_fake() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        constants = torch.ones(3, 2, 1, dtype=torch.int64)
        rows = address(torch.zeros(3, 1, 7, dtype=torch.int32), constants, constants, True)
        assert (rows.shape, rows.dtype) == ((3, 2, 7), torch.int64)
