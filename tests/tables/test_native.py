"""The native back end against a slow loop in float64, the reference, and FBGEMM; `make test-native-asan` runs this file
under sanitizers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recsys_embed import ConfigError, DataError, EmbeddingLayer, Feature
from recsys_embed.embeddings.base import TableSpec
from recsys_embed.native.library import ALONE, LEVELS, load
from recsys_embed.storage import STORAGE_TYPES, Storage
from recsys_embed.tables import native
from recsys_embed.tables.base import RULES, Group, Request, Tables, UpdateRule
from recsys_embed.tables.buffers import LEAST
from recsys_embed.tables.native import NativeTables
from recsys_embed.tables.reference import ReferenceTables
from recsys_embed.tables.rounding import quantum
from recsys_embed.testing import BAGS, FEATURES, draw_ids, slow_vectors
from tests.tables.requests import drawn_request

LIBRARY = load()
if isinstance(LIBRARY, str):
    pytest.skip(f"no native back end: {LIBRARY}", allow_module_level=True)

LR = 0.3


@dataclasses.dataclass(frozen=True)
class Case:
    """Tables, the lanes that read them, and a request with its gradient."""

    specs: tuple[TableSpec, ...]
    group: Group
    request: Request
    gradient: Tensor

    def reference(self, rule: str | None = None) -> ReferenceTables:
        tables = ReferenceTables(self.specs, [self.group], seed=3)
        if rule:
            tables.train_by(UpdateRule(rule))
            tables.set_lr(LR)
            tables.steps = 1
        return tables

    def native(self, rule: str = "sgd") -> NativeTables:
        tables = NativeTables(self.reference(), UpdateRule(rule))
        tables.set_lr(LR)
        tables.steps = 1
        return tables

    def bags(self) -> list[list[tuple[str, int, float]]]:
        """Table, row and weight of everything in each bag, absent rows left out; bags lane by lane."""
        rows, offsets = self.request.jagged()
        weights = torch.ones(rows.numel()) if self.request.weights is None else self.request.weights
        cuts = offsets.tolist()
        return [
            [
                (self.group.lanes[bag // self.request.batch], int(rows[i]), float(weights[i]))
                for i in range(cuts[bag], cuts[bag + 1])
                if rows[i] >= 0
            ]
            for bag in range(len(cuts) - 1)
        ]

    def vectors(self, tables: Tables) -> Tensor:
        """What a read gives, in float64."""
        read = torch.zeros(len(self.group.lanes) * self.request.batch, self.group.width, dtype=torch.float64)
        weights = {name: tables.get(name).double() for name in tables.specs}
        for bag, held in enumerate(self.bags()):
            for name, row, weight in held:
                read[bag] += weight * weights[name][row]
        return read.view(len(self.group.lanes), self.request.batch, self.group.width).transpose(0, 1)

    def gradients(self) -> dict[tuple[str, int], Tensor]:
        """The summed gradient of every row that is there, in float64."""
        found: dict[tuple[str, int], Tensor] = {}
        each = self.gradient.transpose(0, 1).reshape(-1, self.group.width).double()
        for bag, held in enumerate(self.bags()):
            for name, row, weight in held:
                found[name, row] = found.get((name, row), 0) + weight * each[bag]
        return found


def case(
    sizes: Sequence[int],
    lanes: Sequence[int],
    width: int,
    batch: int,
    *,
    storage: str = "fp32",
    jagged: bool = False,
    weighted: bool = False,
    absent: bool = False,
    dtype: torch.dtype = torch.int64,
    seed: int = 0,
) -> Case:
    generator = torch.Generator().manual_seed(seed)
    kinds = [
        Storage.of(storage, *([0.004 + 0.002 * t] if storage.startswith("int") else [])) for t in range(len(sizes))
    ]
    specs = tuple(
        TableSpec(f"t{t}", size, width, storage=kind.centred(0.1 * t))
        for t, (size, kind) in enumerate(zip(sizes, kinds, strict=True))
    )
    group = Group(tuple(f"t{t}" for t in lanes), width)
    request = drawn_request(
        [sizes[t] for t in lanes], batch, generator, jagged=jagged, weighted=weighted, absent=absent, dtype=dtype
    )
    return Case(specs, group, request, torch.randn(batch, len(lanes), width, generator=generator))


@st.composite
def cases(draw: st.DrawFn, storages: Sequence[str] = STORAGE_TYPES) -> Case:
    sizes = draw(st.lists(st.sampled_from([1, 2, 3, 17, 200, 5000]), min_size=1, max_size=4))
    jagged = draw(st.booleans())
    return case(
        sizes,
        draw(st.lists(st.integers(0, len(sizes) - 1), min_size=1, max_size=6)),
        draw(st.sampled_from([1, 2, 3, 4, 5, 8, 12, 15, 16, 17, 30, 32, 48, 64, 65])),
        draw(st.integers(0, 40)),
        storage=draw(st.sampled_from(storages)),
        jagged=jagged,
        weighted=jagged and draw(st.booleans()),
        absent=draw(st.booleans()),
        dtype=draw(st.sampled_from([torch.int32, torch.int64])),
        seed=draw(st.integers(0, 2**16)),
    )


# --- one read, one update ------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(cases())
def test_a_read_equals_a_slow_loop(one: Case) -> None:
    tables = one.native()
    torch.testing.assert_close(tables.read(0, one.request).double(), one.vectors(tables), rtol=1e-5, atol=1e-5)


@settings(max_examples=200, deadline=None)
@given(cases(), st.sampled_from(RULES))
def test_an_update_equals_a_slow_loop(one: Case, rule: str) -> None:
    """Rows, up to the distance of two stored values, and state; and rows that are not there stay to the bit."""
    tables = one.native(rule)
    before = {name: (tables.get(name).clone(), tables.get_state(name).clone()) for name in tables.specs}
    tables.update(0, one.request, None, one.gradient)
    gradients = one.gradients()
    for name, spec in tables.specs.items():
        weights, state = tables.get(name), tables.get_state(name)
        for row in range(min(spec.rows, 200)):
            gradient = gradients.get((name, row))
            if gradient is None:
                assert torch.equal(weights[row], before[name][0][row])
                assert torch.equal(state[row], before[name][1][row])
                continue
            kept = {
                "sgd": gradient[:0],
                "adagrad": gradient.square(),
                "rowwise_adagrad": gradient.square().mean()[None],
                "lazy_adam": torch.cat([gradient * 0.1, gradient.square() * 0.001]),
            }[rule]
            torch.testing.assert_close(state[row].double(), kept, rtol=1e-4, atol=1e-9)
            divisor = state[row].double().sqrt() + 1e-8 if rule != "sgd" else 1.0
            if rule == "lazy_adam":  # of whose first step the moments' bias is all
                divisor = gradient.abs() + 1e-8 / math.sqrt(0.001)
            goal = (before[name][0][row] - LR * gradient / divisor).float()
            limits = spec.storage.limits if spec.storage.integer else (-(2**15), 2**15)
            goal = goal.clamp(*(end * spec.storage.scale + spec.storage.midpoint for end in limits))
            allowed = torch.maximum(quantum(goal, spec.storage), quantum(weights[row], spec.storage)) * 1.001
            # What is left of sums that cancel is as far from exact as its summands, and Adagrad divides by it.
            slack = 1e-4 * (1 + goal.abs()) + 1e-5 / torch.as_tensor(divisor).float() * (rule != "sgd")
            assert bool(((weights[row] - goal).abs() <= allowed + slack).all())


@settings(max_examples=150, deadline=None)
@given(cases(), st.sampled_from(RULES))
def test_reads_and_updates_are_those_of_the_reference(one: Case, rule: str) -> None:
    """With the same noise: but for row-wise Adagrad, whose mean torch takes in another order, to the bit where weights
    are stored in fewer bits than torch's fused multiply-adds could change."""
    tables, reference = one.native(rule), one.reference(rule)
    rows, offsets = one.request.jagged()
    asked = Request(rows.long(), one.request.batch, offsets, one.request.weights)
    asked = asked.without_absent() if one.request.offsets is not None or bool((rows < 0).any()) else one.request
    torch.testing.assert_close(tables.read(0, one.request), reference.read(0, asked), rtol=1e-5, atol=1e-5)
    if one.request.offsets is None and asked.offsets is not None:
        return  # lane by lane, and not sample by sample: sums in another order
    for step in (1, 2):
        for each, request in ((tables, one.request), (reference, asked)):
            each.steps = step
            each.update(0, request, None, one.gradient)
    for name, spec in tables.specs.items():
        if spec.storage.dtype != "fp32" and rule != "rowwise_adagrad":
            assert torch.equal(tables.stored(name), reference.stored(name))
            assert torch.equal(tables.get_state(name), reference.get_state(name))
        else:
            close = torch.isclose(tables.get(name), reference.get(name), rtol=1e-4, atol=1e-5)
            assert spec.storage.dtype != "fp32" or bool(close.all())
            assert close.float().mean() > 0.9  # a mean of other bits may fall on the other side of the noise
            torch.testing.assert_close(tables.get_state(name), reference.get_state(name), rtol=1e-5, atol=1e-9)


HARD = [
    case([50], [0], 8, 0),
    case([50], [0], 8, 0, jagged=True),
    case([1], [0], 16, 1),
    case([1], [0, 0, 0], 64, 300),
    case([1, 1], [0, 1, 0], 5, 70, jagged=True, weighted=True),
    case([3], [0], 1, 500),
    case([200_000], [0], 4, 40),
    case([60_000, 9], [0] * 20 + [1], 16, 1500),
    case([60_000], [0] * 20, 16, 1500, jagged=True, weighted=True),
]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("one", HARD, ids=range(len(HARD)))
def test_hard_shapes(one: Case, rule: str) -> None:
    """No sample, one row, one table, all ids the same, the last row; more rows than a core keeps near it."""
    tables, reference = one.native(rule), one.reference(rule)
    torch.testing.assert_close(tables.read(0, one.request), reference.read(0, one.request))
    for each in (tables, reference):
        each.update(0, one.request, None, one.gradient)
    for name in tables.specs:
        torch.testing.assert_close(tables.get(name), reference.get(name), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("storage", STORAGE_TYPES)
def test_the_first_and_the_last_row(storage: str) -> None:
    one = case([7, 300], [1, 0, 1], 12, 2, storage=storage)
    one = dataclasses.replace(one, request=Request(torch.tensor([[0, 299], [6, 0], [299, 299]]), 2))
    tables, reference = one.native(), one.reference("sgd")
    for each in (tables, reference):
        each.update(0, one.request, None, one.gradient)
    assert bool((tables.stored("t1")[[0, 299]] == reference.stored("t1")[[0, 299]]).all() or storage == "fp32")
    torch.testing.assert_close(tables.read(0, one.request), reference.read(0, one.request))


# --- the same bits -------------------------------------------------------------------------------------------


@pytest.fixture
def level(monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda level: monkeypatch.setattr(LIBRARY, "level", level)


LARGE = [
    *HARD[-2:],
    case([4000, 30, 900], [0, 1, 2, 0], 16, 900),
    case([4000], [0], 64, 1500),
    case([9000, 40], [0, 0, 1], 17, 800, jagged=True, weighted=True, absent=True),
    case([5000, 60], [0, 0, 1], 33, 600, storage="int8"),
    case([5000, 60], [1, 0, 1], 40, 600, storage="bf16", jagged=True),
    case([5000, 60], [1, 0, 1], 40, 600, storage="fp16"),
]


def bits(one: Case, rule: str) -> list[Tensor]:
    tables = one.native(rule)
    found = [tables.read(0, one.request)]
    for _ in range(2):
        tables.update(0, one.request, None, one.gradient)
    return [*found, *(tables.stored(name) for name in tables.specs), *(tables.get_state(name) for name in tables.specs)]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("one", LARGE, ids=range(len(LARGE)))
def test_any_number_of_threads_gives_the_same_bits(one: Case, rule: str, threads: Any) -> None:
    threads(1)
    alone = bits(one, rule)
    for count in (2, 3, 7):
        threads(count)
        assert all(torch.equal(a, b) for a, b in zip(alone, bits(one, rule), strict=True))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("one", LARGE, ids=range(len(LARGE)))
def test_any_instruction_set_gives_the_same_bits(one: Case, rule: str, level: Any) -> None:
    assert not isinstance(LIBRARY, str)
    level(0)
    baseline = bits(one, rule)
    assert LIBRARY.instructions == "baseline"
    for other in range(1, LIBRARY.best_level + 1):
        level(other)
        assert LIBRARY.instructions == LEVELS[other]
        assert all(torch.equal(a, b) for a, b in zip(baseline, bits(one, rule), strict=True))


def test_rows_wide_enough_go_past_the_caches() -> None:
    one = case([3000], [0] * 20, 64, 1000)  # 5 MB
    tables, reference = one.native(), one.reference()
    assert torch.equal(tables.read(0, one.request), reference.read(0, one.request))


# --- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("jagged", [False, True])
@pytest.mark.parametrize("bad", [17, -2, 2**40, -(2**40)])
def test_a_row_that_is_not_there_is_named_and_nothing_is_touched(bad: int, jagged: bool) -> None:
    one = case([200, 17], [0, 1], 8, 20, jagged=jagged)
    tables = one.native()
    first = int(one.request.offsets[20]) if jagged else 20
    rows = one.request.rows.clone()
    rows.view(-1)[first + 3] = bad
    asked = Request(rows, one.request.batch, one.request.offsets, one.request.weights)
    before = tables.stored("t0").clone()
    for call in (lambda: tables.read(0, asked), lambda: tables.update(0, asked, None, one.gradient)):
        with pytest.raises(DataError, match=r"table 't1' has rows \[0, 17\)") as caught:
            call()
        assert caught.value.value == bad
    assert torch.equal(tables.stored("t0"), before)


@pytest.mark.parametrize("cuts", [[0, 2, 1, 4], [1, 2, 3, 4], [0, 1, 2, 3], [0, 1, 2, 5], [0, 9, 2, 4], [0, -1, 2, 4]])
def test_offsets_that_do_not_rise_are_refused(cuts: list[int]) -> None:
    one = case([9], [0], 4, 3, jagged=True)
    asked = Request(torch.zeros(4, dtype=torch.int64), 3, torch.tensor(cuts))
    with pytest.raises(DataError, match="offsets do not rise from 0 to 4"):
        one.native().read(0, asked)
    with pytest.raises(DataError, match="offsets do not rise from 0 to 4"):
        one.native().update(0, asked, None, one.gradient)


@pytest.mark.parametrize(
    "asked",
    [
        Request(torch.zeros(2, 4, dtype=torch.int64), 5),
        Request(torch.zeros(4, dtype=torch.int64), 2, torch.tensor([0, 4])),
        Request(torch.zeros(4, dtype=torch.int64), 2, torch.tensor([0, 1, 2, 3, 4]), torch.ones(3)),
    ],
)
def test_shapes_that_do_not_fit_are_refused(asked: Request) -> None:
    with pytest.raises(DataError, match=r"rows are|offsets are|weights are"):
        case([9], [0, 0], 4, 2).native().read(0, asked)


def test_other_devices_and_too_many_rows_are_refused_by_name() -> None:
    specs = [TableSpec("huge", 2**31, 1)]
    assert "'huge' has 2147483648 rows" in str(native.refusal(torch.device("cpu"), specs))
    assert "not on cuda" in str(native.refusal(torch.device("cuda"), specs))


def test_without_kernels_auto_does_without_and_native_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "load", lambda: "its kernels were not built")
    with pytest.raises(ConfigError, match="native back end cannot hold these tables: its kernels were not built"):
        EmbeddingLayer(FEATURES, 4, backend="native").optimizer("sgd", lr=0.1)
    emb = EmbeddingLayer(FEATURES, 4)
    emb.optimizer("sgd", lr=0.1)
    assert not isinstance(emb.tables, NativeTables)


def test_native_tables_refuse_to_move() -> None:
    emb = EmbeddingLayer(FEATURES, 8, backend="native")
    emb.optimizer("sgd", lr=0.1)
    with pytest.raises(ConfigError, match=r"move the layer before optimizer\(\)"):
        emb.double()


# --- outputs -------------------------------------------------------------------------------------------------


def test_an_output_is_used_again_once_nobody_holds_it() -> None:
    one = case([50], [0], 64, LEAST // 64)
    tables = one.native()
    first = tables.read(0, one.request)
    view, place = first[3:], first.data_ptr()
    del first
    second = tables.read(0, one.request)
    assert second.data_ptr() != place  # a view of it is held
    kept = view.clone()
    del view
    third = tables.read(0, one.request)
    assert third.data_ptr() == place
    assert torch.equal(third[3:], kept)
    assert third.data_ptr() % 64 == second.data_ptr() % 64 == 0


def test_reading_into_memory_of_the_callers() -> None:
    one = case([50, 9], [0, 1], 6, 30)
    tables, out = one.native(), torch.full((30, 2, 6), float("nan"))
    assert tables.read_into(out, 0, one.request) is out
    assert torch.equal(out, tables.read(0, one.request))
    padded = torch.full((30, 20), -1.0)
    tables.read_into(padded[:, 3:15].view(30, 2, 6), 0, one.request)
    assert torch.equal(padded[:, 3:15], out.flatten(1))
    assert bool((padded[:, :3] == -1).all() and (padded[:, 15:] == -1).all())
    overlapping = torch.zeros(30, 1, 1).expand(30, 2, 6)
    for wrong in (out.double(), out[1:], torch.zeros(30, 6, 2).transpose(1, 2), overlapping):
        with pytest.raises(ValueError, match=r"float32 or bfloat16 .* contiguous within a sample"):
            tables.read_into(wrong, 0, one.request)


def test_operators_have_fakes() -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    from recsys_embed.native.ops import read_rows

    with FakeTensorMode():
        lanes, rows = torch.zeros(3, 2, dtype=torch.int64), torch.zeros(2, 5, dtype=torch.int64)
        out, grids = torch.zeros(5, 2, 4), torch.zeros(2, 2)
        asked = (torch.zeros(7, 4), lanes, grids, 5, rows, None, None, [], [], [], [])
        assert read_rows(out, None, ALONE, *asked, False) == -1


# --- layers --------------------------------------------------------------------------------------------------

STRATEGIES = ["full", "hash", "unified", "compositional", "robe", "mixed_dimension", "cafe"]


@pytest.mark.parametrize("other", ["reference", "fused"])
@pytest.mark.parametrize("features", [FEATURES, BAGS], ids=["single", "bags"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_training_is_that_of_the_other_back_ends(strategy: str, features: tuple[Feature, ...], other: str) -> None:
    if other == "fused":
        pytest.importorskip("fbgemm_gpu", reason="the fused back end needs FBGEMM")
    layers = []
    for backend in ("native", other):
        budget = None if strategy == "full" else 0.3
        layer = EmbeddingLayer(features, 12, strategy=strategy, budget=budget, exact=(), backend=backend)
        optimizer = layer.optimizer("rowwise_adagrad", lr=0.05)
        target = torch.randn(30, len(features), 12, generator=torch.Generator().manual_seed(1)) / 10
        for seed in range(10):
            torch.nn.functional.mse_loss(layer(draw_ids(features, 30, seed)), target, reduction="sum").backward()
            optimizer.step()
            optimizer.zero_grad()
        layers.append(layer)
    assert isinstance(layers[0].tables, NativeTables)
    for name in layers[0].tables.specs:
        one, two = (layer.tables.get(name) for layer in layers)
        torch.testing.assert_close(one, two, rtol=2e-5, atol=2e-5)
    ids = draw_ids(features, 20)
    with torch.no_grad():
        vectors = layers[0](ids).double()
    torch.testing.assert_close(vectors, torch.tensor(slow_vectors(layers[0], ids)), rtol=0, atol=1e-6)


def test_auto_takes_it_on_cpu_whatever_is_stored() -> None:
    for strategy in ("full", "robe", {"name": "full", "storage": "int8"}):
        emb = EmbeddingLayer(FEATURES, 8, strategy=strategy, budget=None if strategy != "robe" else 0.3)
        emb.optimizer("sgd", lr=0.1)
        assert isinstance(emb.tables, NativeTables)


@pytest.mark.parametrize("rule", RULES)
def test_the_ledger_counts_its_tensors(rule: str) -> None:
    emb = EmbeddingLayer(FEATURES, 30, strategy="hash", budget=0.3, backend="native")
    emb.optimizer(rule, lr=0.1)
    held = [b for name, b in emb.tables.named_buffers() if name.endswith((".weights", ".state"))]
    assert emb.ledger()["train_bytes"].sum() == sum(b.numel() * b.element_size() for b in held)
