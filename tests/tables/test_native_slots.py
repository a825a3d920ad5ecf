"""Rows of several slots to vectors: against autograd in float64; by the native kernels, which never write the gradients
of rows, to the bit what separate steps give. `make test-native-asan` runs this file under sanitizers."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recsys_embed import EmbeddingLayer, Feature
from recsys_embed.embeddings.base import TableSpec
from recsys_embed.native.library import load
from recsys_embed.storage import STORAGE_TYPES, Storage
from recsys_embed.tables.base import RULES, Group, Request, Tables, UpdateRule
from recsys_embed.tables.buffers import LEAST
from recsys_embed.tables.combination import Combination
from recsys_embed.tables.native import NativeTables
from recsys_embed.tables.native_reads import NativeReads
from recsys_embed.tables.reference import ReferenceTables
from recsys_embed.testing import BAGS, FEATURES, draw_ids
from tests.backends import EVERY, NATIVE, needs_kernels
from tests.tables.requests import drawn_request

LIBRARY = load()
COMBINATIONS: tuple[Combination, ...] = ("sum", "product")


@dataclasses.dataclass(frozen=True)
class Case:
    """Tables whose rows are combined, a request, and the gradient of its vectors."""

    specs: tuple[TableSpec, ...]
    group: Group
    request: Request
    gradient: Tensor

    def native(self, rule: str) -> NativeTables:
        tables = NativeTables(ReferenceTables(self.specs, [self.group], seed=3), UpdateRule(rule))
        tables.set_lr(0.3)
        tables.steps = 1
        return tables

    def trained(self, rule: str, *, at_once: bool) -> list[Tensor]:
        """Vectors, weights and state of two steps: by combining kernels, or by steps of their own."""
        tables = self.native(rule)
        found = []
        for _ in range(2):
            if at_once:
                rows, vectors = tables.read_to_train(0, self.request)
                assert torch.equal(vectors, tables.read_vectors(0, self.request))
                tables.update_by_vectors(0, self.request, None, rows, self.gradient)
            else:
                rows, vectors = Tables.read_to_train(tables, 0, self.request)
                Tables.update_by_vectors(tables, 0, self.request, None, rows, self.gradient)
            found.append(vectors)
        names = list(tables.specs)
        return [*found, *(tables.stored(name) for name in names), *(tables.get_state(name) for name in names)]


def case(
    sizes: list[int],
    homes: list[list[int]],
    width: int,
    batch: int,
    combination: Combination,
    *,
    storage: str = "fp32",
    apart: bool = False,
    jagged: bool = False,
    weighted: bool = False,
    absent: bool = False,
    dtype: torch.dtype = torch.int64,
    seed: int = 0,
) -> Case:
    """``homes`` are the tables of each vector's slots."""
    generator = torch.Generator().manual_seed(seed)
    kind = Storage.of(storage, *([0.004] if storage.startswith("int") else []))
    specs = tuple(TableSpec(f"t{t}", size, width, storage=kind.centred(0.1)) for t, size in enumerate(sizes))
    order = [list(one) for one in zip(*homes, strict=True)] if apart else homes
    lanes = [home for row in order for home in row]
    group = Group(tuple(f"t{t}" for t in lanes), width, combination, len(homes[0]), apart)
    request = drawn_request(
        [sizes[t] for t in lanes], batch, generator, jagged=jagged, weighted=weighted, absent=absent, dtype=dtype
    )
    return Case(specs, group, request, torch.randn(batch, len(homes), width, generator=generator))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    sizes = draw(st.lists(st.sampled_from([1, 2, 3, 17, 200, 5000]), min_size=1, max_size=4))
    slots, jagged = draw(st.integers(2, 4)), draw(st.booleans())
    homes = st.lists(st.integers(0, len(sizes) - 1), min_size=slots, max_size=slots)
    return case(
        sizes,
        draw(st.lists(homes, min_size=1, max_size=3)),
        draw(st.sampled_from([1, 2, 3, 4, 8, 15, 16, 17, 32, 48, 64, 65])),
        draw(st.integers(0, 40)),
        draw(st.sampled_from(COMBINATIONS)),
        storage=draw(st.sampled_from(STORAGE_TYPES)),
        apart=draw(st.booleans()),
        jagged=jagged,
        weighted=jagged and draw(st.booleans()),
        absent=draw(st.booleans()),
        dtype=draw(st.sampled_from([torch.int32, torch.int64])),
        seed=draw(st.integers(0, 2**16)),
    )


@given(cases())
def test_vectors_and_gradients_of_rows_are_those_of_autograd(one: Case) -> None:
    group, (batch, vectors, width) = one.group, one.gradient.shape
    rows = torch.randn(batch, len(group.lanes), width, generator=torch.Generator().manual_seed(0))
    exact = rows.double().requires_grad_()
    lanes = [
        [slot * vectors + vector if group.apart else vector * group.slots + slot for slot in range(group.slots)]
        for vector in range(vectors)
    ]
    by_hand = [exact[:, own].prod(1) if group.combination == "product" else exact[:, own].sum(1) for own in lanes]
    goal = torch.stack(by_hand, dim=1)
    torch.testing.assert_close(group.combined(rows).double(), goal.detach(), rtol=1e-5, atol=1e-5)
    goal.backward(one.gradient.double())
    found = group.gradient_of_rows(rows, one.gradient)
    assert found.shape == rows.shape
    torch.testing.assert_close(found.double(), exact.grad, rtol=1e-5, atol=1e-5)


@needs_kernels
@settings(max_examples=150, deadline=None)
@given(cases(), st.sampled_from(RULES))
def test_the_kernels_do_at_once_what_separate_steps_do(one: Case, rule: str) -> None:
    at_once, apart = (one.trained(rule, at_once=choice) for choice in (True, False))
    assert all(torch.equal(a, b) for a, b in zip(at_once, apart, strict=True))


LARGE = [
    case([4000, 30], [[0, 1]] * 8, 16, 900, "product"),
    case([9000, 40, 900], [[0, 1, 2], [2, 1, 0]], 64, 1500, "product"),
    case([9000, 40], [[0, 1]] * 20, 64, 1000, "product"),  # past the caches
    case([60_000, 9], [[0, 1]] * 20, 16, 1500, "sum"),  # more rows than a core keeps near it
    case([60_000, 9], [[0, 1]] * 20, 16, 1500, "product", apart=True, jagged=True, weighted=True),
    case([9000, 40], [[0, 1], [1, 1]], 17, 800, "product", jagged=True, weighted=True, absent=True),
    case([5000, 60], [[0, 0], [0, 1]], 33, 600, "product", storage="int8", apart=True),
    case([5000, 60], [[1, 0], [1, 1]], 40, 600, "sum", storage="bf16", jagged=True),
    case([1], [[0, 0]], 8, 300, "product"),
]


@needs_kernels
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("one", LARGE, ids=range(len(LARGE)))
def test_threads_and_instruction_sets_change_no_bit(
    one: Case, rule: str, threads: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not isinstance(LIBRARY, str)
    threads(1)
    expected = one.trained(rule, at_once=False)
    for level in range(LIBRARY.best_level + 1):
        for count in (1, 3):
            threads(count)
            monkeypatch.setattr(LIBRARY, "level", level)
            assert all(torch.equal(a, b) for a, b in zip(expected, one.trained(rule, at_once=True), strict=True))


# --- layers --------------------------------------------------------------------------------------------------


def layer_of(
    features: tuple[Feature, ...], operation: str, backend: str = "auto", *, decay: float = 0.0
) -> EmbeddingLayer:
    if backend == "fused":
        pytest.importorskip("fbgemm_gpu", reason="the fused back end needs FBGEMM")
    strategy = {"name": "compositional", "operation": operation}
    return EmbeddingLayer(features, 8, strategy=strategy, budget=0.3, exact=(), backend=backend, decay=decay)


def step(layer: EmbeddingLayer, features: tuple[Feature, ...], seeds: range) -> list[Tensor]:
    """Backward passes of some batches; the leaves."""
    for seed in seeds:
        ids = draw_ids(features, 25, seed)
        (layer(ids) - 1).square().sum().backward()
    (optimizer,) = layer._optimizer
    return list(optimizer.param_groups[0]["params"])


@pytest.mark.parametrize("backend", EVERY)
@pytest.mark.parametrize("operation", ["multiply", "add"])
@pytest.mark.parametrize("features", [FEATURES, BAGS], ids=["single", "bags"])
def test_leaves_are_vectors_on_every_back_end(features: tuple[Feature, ...], operation: str, backend: str) -> None:
    """So that a gradient's norm, and clipping by it, mean the same on all of them."""
    layer = layer_of(features, operation, backend)
    layer.optimizer("sgd", lr=0.05)
    (leaf,) = step(layer, features, range(1))
    assert leaf.shape[1:] == (len(features), 8)


def test_a_penalty_on_rows_has_them_read_one_by_one() -> None:
    layer = layer_of(FEATURES, "multiply", decay=0.1)
    layer.optimizer("sgd", lr=0.05)
    (leaf,) = step(layer, FEATURES, range(1))
    assert leaf.shape[1:] == (2 * len(FEATURES), 8)
    own = layer_of(FEATURES, "multiply")
    layer.tables.load_state_dict(own.tables.state_dict())
    torch.testing.assert_close(layer(draw_ids(FEATURES, 9)), own(draw_ids(FEATURES, 9)))


@pytest.mark.parametrize("backend", EVERY)
@pytest.mark.parametrize("operation", ["multiply", "add"])
@pytest.mark.parametrize("features", [FEATURES, BAGS], ids=["single", "bags"])
def test_steps_over_several_batches_are_those_of_parameters(
    features: tuple[Feature, ...], operation: str, backend: str
) -> None:
    """Two backward passes before a step, at another learning rate than the reads were made with."""
    layer, plain = layer_of(features, operation, backend), layer_of(features, operation)
    optimizer, goal = layer.optimizer("sgd", lr=0.5), torch.optim.SGD(plain.parameters(), lr=0.02)
    for turn in range(4):
        step(layer, features, range(2 * turn, 2 * turn + 2))
        for seed in range(2 * turn, 2 * turn + 2):
            (plain(draw_ids(features, 25, seed)) - 1).square().sum().backward()
        optimizer.param_groups[0]["lr"] = 0.02
        optimizer.step()
        optimizer.zero_grad()
        goal.step()
        goal.zero_grad()
    for name in layer.tables.specs:
        torch.testing.assert_close(layer.tables.get(name), plain.tables.get(name), rtol=1e-4, atol=1e-5)


@needs_kernels
@pytest.mark.parametrize("operation", ["multiply", "add"])
@pytest.mark.parametrize("features", [FEATURES, BAGS], ids=["single", "bags"])
def test_frozen_tables_are_read_as_they_were(
    features: tuple[Feature, ...], operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    combined, read = list[Tensor](), NativeReads.read_vectors
    monkeypatch.setattr(NativeReads, "read_vectors", lambda *given: combined.append(read(*given)) or combined[-1])
    layer = layer_of(features, operation)
    ids = draw_ids(features, 25)
    before = layer(ids).detach()
    with torch.no_grad():
        torch.testing.assert_close(layer.freeze()(ids), before, rtol=1e-6, atol=1e-7)
    assert len(combined) == 1


def test_strategies_that_combine_alike_are_read_together() -> None:
    names = [feature.name for feature in FEATURES]
    pair = {names[0]: "compositional", names[1]: {"name": "compositional", "partitions": 2}, "*": "full"}
    layer = EmbeddingLayer(FEATURES, 8, strategy=pair, budget=0.8, exact=())
    own = EmbeddingLayer(FEATURES, 8, strategy=pair, budget=0.8, exact=(), decay=0.1)
    assert {group.combination: group.vectors for group in layer.tables.groups} == {
        "product": 2,
        None: len(FEATURES) - 2,
    }
    assert [group.combination for group in own.tables.groups] == [None]
    own.tables.load_state_dict(layer.tables.state_dict())
    ids = draw_ids(FEATURES, 25)
    torch.testing.assert_close(layer(ids), own(ids))


@pytest.mark.parametrize("backend", ["reference", NATIVE])
def test_a_gradient_is_made_with_the_rows_that_were_read(backend: str) -> None:
    """Not with those that another step has made of them meanwhile."""
    layer = layer_of(FEATURES, "multiply", backend)
    optimizer = layer.optimizer("sgd", lr=1.0)
    ids = draw_ids(FEATURES, 25)
    waiting = layer(ids)
    rows = {name: layer.tables.get(name).clone().requires_grad_() for name in layer.tables.specs}
    (layer(ids) - 1).square().sum().backward()
    optimizer.step()
    between = {name: layer.tables.get(name).clone() for name in rows}
    waiting.sum().backward()
    optimizer.step()
    plain = layer_of(FEATURES, "multiply")
    plain.load_state_dict({f"tables.{name}": one for name, one in rows.items()}, strict=False)
    plain(ids).sum().backward()
    gradients = {
        spec.name: store.weights.grad[start : start + spec.rows]
        for store in plain.tables._all()  # type: ignore[attr-defined]
        for spec, start in zip(store.specs, store.starts, strict=True)
    }
    for name in rows:
        torch.testing.assert_close(layer.tables.get(name), between[name] - gradients[name], rtol=1e-4, atol=1e-5)


@needs_kernels
def test_rows_that_are_kept_are_not_lent_again() -> None:
    one = case([900, 40], [[0, 1]] * 16, 64, LEAST // 64, "product")
    tables = one.native("sgd")
    rows, vectors = tables.read_to_train(0, one.request)
    assert rows is not None
    copies = rows.clone(), vectors.clone()
    for _ in range(4):
        tables.read_to_train(0, one.request)
    assert torch.equal(rows, copies[0])
    assert torch.equal(vectors, copies[1])
