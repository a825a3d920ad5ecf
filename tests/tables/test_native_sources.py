"""Row numbers that a read makes of ids: those of the index maps, to the bit; and the check of ids before it.
`make test-native-asan` runs this file under sanitizers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recsys_embed import DataError, EmbeddingLayer, Feature
from recsys_embed.embeddings.base import TableSpec
from recsys_embed.embeddings.index_maps import Digits, Hash, Identity, IndexMap, RowNumbers
from recsys_embed.ids import Ids
from recsys_embed.lanes import join
from recsys_embed.native import choice
from recsys_embed.native.library import ALONE, load
from recsys_embed.tables.base import Group, Request, Tables, UpdateRule
from recsys_embed.tables.native import NativeTables
from recsys_embed.tables.reference import ReferenceTables
from recsys_embed.testing import BAGS, FEATURES, draw_ids
from tests.backends import EVERY

LIBRARY = load()
if isinstance(LIBRARY, str):
    pytest.skip(f"no native back end: {LIBRARY}", allow_module_level=True)

WIDTH = 8


def tables_of(sizes: Sequence[int], *, slots: int = 1) -> NativeTables:
    """A table for each lane; with slots, whose products are vectors."""
    specs = [TableSpec(f"t{lane}", size, WIDTH) for lane, size in enumerate(sizes)]
    group = Group(tuple(spec.name for spec in specs), WIDTH, "product" if slots > 1 else None, slots)
    tables = NativeTables(ReferenceTables(specs, [group], seed=1), UpdateRule("sgd"))
    tables.set_lr(0.1)
    return tables


@st.composite
def reads(draw: st.DrawFn) -> tuple[list[IndexMap], list[Ids], list[int]]:
    """Reads side by side: their index maps and ids, and the number of rows of each lane."""
    batch, jagged = draw(st.sampled_from([0, 1, 5, 40, 300])), draw(st.booleans())
    maps: list[IndexMap] = []
    batches, sizes = [], []
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    for _ in range(draw(st.integers(1, 3))):
        features, slots = draw(st.integers(1, 3)), draw(st.integers(1, 3))
        dtype = draw(st.sampled_from([torch.int32, torch.int64, torch.int16]))
        most = draw(st.sampled_from([7, 1000, 30_000]))
        rows = torch.randint(1, 500, (features, slots), generator=generator)
        kind = draw(st.sampled_from(["identity", "hash", "digits"]))
        if kind == "identity":
            maps.append(Identity())
            own = torch.full((features, 1), most)
        else:
            first = torch.randint(1, 90, (features, slots), generator=generator)
            maps.append((Hash if kind == "hash" else Digits)(first.tolist(), rows.tolist()))
            own = rows
        sizes += (own.t() if jagged else own).reshape(-1).tolist()
        lengths = torch.randint(0, 3, (features * batch,), generator=generator) if jagged else None
        count = features * batch if lengths is None else int(lengths.sum())
        ids = torch.randint(0, most, (count,), generator=generator).to(dtype)
        if lengths is not None:
            offsets = torch.cat([lengths.new_zeros(1), lengths.cumsum(0)])
            batches.append(Ids(ids, features, offsets))
        elif draw(st.booleans()):
            batches.append(Ids(ids.view(batch, features).t(), features))
        else:
            batches.append(Ids(ids.view(features, batch), features))
    return maps, batches, sizes


def asked(index_map: IndexMap, ids: Ids, *, made: bool) -> Request:
    """One read; of row numbers that are made by the index map, or that it is left to make."""
    numbers = RowNumbers({"rows": index_map}, ids)
    source = numbers.source("rows")
    assert source is not None
    if ids.offsets is None:
        return Request(source.rows() if made else [source], ids.batch)
    slots, count = source.slots, ids.values.numel()
    starts = ids.offsets[:-1] + count * torch.arange(slots).unsqueeze(1)
    offsets = torch.cat([starts.view(-1), torch.tensor([slots * count])])
    return Request(source.rows() if made else [source], ids.batch, offsets, lanes=source.lanes)


@settings(max_examples=150, deadline=None)
@given(reads(), st.booleans(), st.booleans())
def test_rows_that_a_read_makes_are_those_of_the_index_maps(
    drawn: tuple[list[IndexMap], list[Ids], list[int]], weighted: bool, products: bool
) -> None:
    """Alone and joined, whoever makes them; of bags with weights, and of slots that are multiplied."""
    maps, batches, sizes = drawn
    tables = tables_of(sizes, slots=2 if products and len(sizes) % 2 == 0 else 1)
    joined = [join([asked(*one, made=made) for one in zip(maps, batches, strict=True)]) for made in (True, False)]
    expected = torch.cat([asked(*one, made=True).rows for one in zip(maps, batches, strict=True)])
    offsets, batch = joined[0].offsets, joined[0].batch
    weights = torch.linspace(-1, 1, len(expected)) if weighted and offsets is not None else None
    plain = Request(expected, batch, offsets, weights, lanes=len(sizes))
    found = []
    for request in (plain, *joined):
        request.weights = weights
        for name, weights_before in ((spec.name, spec.rows) for spec in tables.specs.values()):
            tables.put(name, torch.linspace(-1, 1, weights_before * WIDTH).view(weights_before, WIDTH))
        rows, vectors = tables.read_to_train(0, request)
        assert request.made
        assert torch.equal(request.rows.long(), expected.long())
        tables.update_by_vectors(0, request, None, rows, torch.ones_like(vectors))
        found.append([vectors, *(tables.stored(name).clone() for name in tables.specs)])
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("backend", ["native", "reference"])
def test_an_update_makes_row_numbers_that_no_read_has_made(backend: str) -> None:
    ids = Ids(torch.tensor([[3, 900, 41, 3]]), 1)
    source = RowNumbers({"rows": Hash([[5]], [[50]])}, ids).source("rows")
    assert source is not None
    tables: Tables = tables_of([50])
    if backend == "reference":
        tables = ReferenceTables(list(tables.specs.values()), tables.groups, seed=1)
        tables.train_by(UpdateRule("sgd"))
        tables.set_lr(0.1)
    before = tables.stored("t0").clone()
    tables.update(0, Request([source], 4), None, torch.ones(4, 1, WIDTH))
    changed = (tables.stored("t0") != before).any(dim=1).nonzero().view(-1).tolist()
    assert changed == sorted(set(source.rows().view(-1).tolist()))


@pytest.mark.parametrize("width", [16, 64])
def test_any_instruction_set_and_number_of_threads_gives_the_same_rows(
    width: int, monkeypatch: pytest.MonkeyPatch, threads: Any
) -> None:
    assert not isinstance(LIBRARY, str)
    features = [Feature(f"f{place}", 5000) for place in range(6)]
    emb = EmbeddingLayer(features, width, strategy="compositional", budget=0.3, exact=("f2",), backend="native")
    emb.optimizer("sgd", lr=0.1)
    ids = draw_ids(features, 3000)
    found = []
    for level in range(LIBRARY.best_level + 1):
        monkeypatch.setattr(LIBRARY, "level", level)
        for count in (1, 2, 5):
            threads(count)
            found.append(emb(ids).detach().clone())
    assert all(torch.equal(one, found[0]) for one in found)


@pytest.mark.parametrize("features", [FEATURES, BAGS], ids=["single", "bags"])
@pytest.mark.parametrize("strategy", ["hash", "unified", "compositional"])
def test_nobody_else_makes_row_numbers(
    strategy: str, features: tuple[Feature, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The native back end never calls an index map of a strategy whose maps it knows."""
    emb = EmbeddingLayer(features, 12, strategy=strategy, budget=0.3, backend="native")
    optimizer = emb.optimizer("sgd", lr=0.1)
    expected = emb(draw_ids(features, 30)).detach().clone()

    def refuse(*_: Any) -> Tensor:
        raise AssertionError("row numbers were made outside a read")

    monkeypatch.setattr(Hash, "forward", refuse)
    monkeypatch.setattr(Digits, "forward", refuse)
    vectors = emb(draw_ids(features, 30))
    assert torch.equal(vectors, expected)
    vectors.sum().backward()
    optimizer.step()
    assert not torch.equal(emb(draw_ids(features, 30)), expected)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_an_id_that_its_table_does_not_have_is_named(dtype: torch.dtype) -> None:
    ids = torch.tensor([[0, 1, 2], [3, 9, 4]], dtype=dtype)
    tables = tables_of([7, 50, 10, 9])
    first = RowNumbers({"rows": Hash([[1], [2]], [[7], [50]])}, Ids(ids, 2)).source("rows")
    last = RowNumbers({"rows": Identity()}, Ids(ids, 2)).source("rows")
    assert first is not None
    assert last is not None
    request = Request([first, last], 3)
    with pytest.raises(DataError, match=r"table 't3' has rows \[0, 9\)") as caught:
        tables.read(0, request)
    assert caught.value.value == 9


@pytest.mark.parametrize("constants", [[[[1]], [[8]]], [[[0]], [[7]]], [[[1]], [[0]]]])
def test_numbers_that_a_table_might_not_have_are_not_made(constants: list[list[list[int]]]) -> None:
    """A base that is larger than the table, a divisor of zero, a base of zero."""
    from recsys_embed.native.ops import FINE, NUMBERINGS, read_rows

    lanes, grids, out = torch.tensor([[0], [7], [0]]), torch.ones(2, 1), torch.full((2, 1, WIDTH), -1.0)
    rows = torch.zeros(1, 2, dtype=torch.int32)
    found = read_rows(
        *(out, None, ALONE, torch.zeros(7, WIDTH), lanes, grids, 2, rows, None, None, [torch.tensor([[7, 7]])], [1]),
        *([NUMBERINGS["digits"]], [torch.tensor(constants)], False),
    )
    assert found != FINE
    assert bool((out == -1).all())


@pytest.mark.parametrize("backend", EVERY)
@pytest.mark.parametrize("strategy", ["hash", "cafe"])
def test_no_bag_of_a_read_beside_others_is_lost(strategy: str, backend: str) -> None:
    """Read id by id, as what is penalised is; no sample has an id of the one feature."""
    features = [Feature("bag", 1000, multi_valued=True), Feature("one", 9, multi_valued=True)]
    bag = (torch.empty(0, dtype=torch.int64), torch.zeros(4, dtype=torch.int64))
    ids = {"bag": bag, "one": (torch.tensor([3, 8, 0]), torch.arange(4))}
    emb = EmbeddingLayer(features, 4, strategy=strategy, budget=0.5, decay=0.1, exact=("one",), backend=backend)
    emb.optimizer("sgd", lr=0.1)
    vectors = emb(ids)
    assert torch.equal(vectors[:, 0], torch.zeros(3, 4))
    assert torch.equal(vectors[:, 1], emb.tables.get("one")[[3, 8, 0]])


def test_single_ids_beside_bags_are_numbered_in_the_read_too(monkeypatch: pytest.MonkeyPatch) -> None:
    features = [Feature("bag", 1000, multi_valued=True), Feature("one", 900)]
    strategies = {"bag": "full", "one": "hash"}
    emb = EmbeddingLayer(features, 4, strategy=strategies, budget=0.7, exact=(), backend="native")
    emb.optimizer("sgd", lr=0.1)
    ids = {"bag": (torch.tensor([7, 8, 9]), torch.tensor([0, 2, 2, 3])), "one": torch.tensor([3, 8, 0])}
    expected = emb(ids).detach().clone()
    monkeypatch.setattr(Hash, "forward", lambda *_: pytest.fail("row numbers were made outside the read"))
    assert torch.equal(emb(ids), expected)


def test_a_matrix_of_other_features_is_refused() -> None:
    for rows in (2, 4):
        ids = Ids(torch.zeros(rows, 5, dtype=torch.int64), 3)
        with pytest.raises(DataError, match=rf"F = 3, got \[{rows}, 5\]"):
            EmbeddingLayer([Feature(name, 9) for name in "abc"], 4)(ids)


@pytest.mark.parametrize(
    ("ids", "lanes_of", "rows", "constants"),
    [
        ([[[0, 1]], [[0, 1]]], [1, 1], torch.int32, None),
        ([[[0, 1]]], [1], torch.int64, None),
        ([[[0, 1]]], [1], torch.int32, [[[1, 1]], [[7, 7]]]),
    ],
)
def test_sources_that_do_not_fit_the_lanes_are_refused(
    ids: list[list[list[int]]], lanes_of: list[int], rows: torch.dtype, constants: list[list[list[int]]] | None
) -> None:
    """More lanes than there are, wide row numbers, constants of more slots."""
    from recsys_embed.native.ops import read_rows

    lanes, out = torch.tensor([[0], [7], [0]]), torch.zeros(2, 1, WIDTH)
    made = torch.zeros(1, 2, dtype=rows)
    held = [None if constants is None else torch.tensor(constants)] * len(ids)
    with pytest.raises(RuntimeError, match=r"sources are of all|constants are"):
        read_rows(
            *(out, None, ALONE, torch.zeros(7, WIDTH), lanes, torch.ones(2, 1), 2, made, None, None),
            *([torch.tensor(one) for one in ids], lanes_of, [1] * len(ids), held, False),
        )


def test_bags_of_one_source_never_read_ids_of_another() -> None:
    from recsys_embed.native.ops import read_rows

    lanes, out = torch.tensor([[0, 0], [7, 7], [0, 0]]), torch.full((1, 2, WIDTH), -1.0)
    made, offsets = torch.zeros(8, dtype=torch.int32), torch.tensor([0, 5, 8])
    found = read_rows(
        *(out, None, ALONE, torch.zeros(7, WIDTH), lanes, torch.ones(2, 2), 1, made, offsets, None),
        *([torch.tensor([1, 2, 3]), torch.tensor([1, 2, 3, 4, 5])], [1, 1], [0, 0], [None, None], False),
    )
    assert found == 0
    assert bool((out == -1).all())


# --- the check of ids ----------------------------------------------------------------------------------------

EDGES = {torch.int32: (-(2**31), 2**31 - 1), torch.int64: (-(2**63), 2**63 - 1)}


@pytest.mark.parametrize("size", [1, 10, 2**31 - 1, 2**31, 2**40, 2**63 - 1])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("jagged", [False, True])
def test_the_first_id_outside_its_vocabulary(size: int, dtype: torch.dtype, jagged: bool) -> None:
    """On every instruction set, at every place of a vector of them."""
    from recsys_embed.native.ops import FINE, first_outside

    assert not isinstance(LIBRARY, str)
    low, high = EDGES[dtype]
    within = [value for value in (0, size // 2, size - 1) if value <= high]
    ids = torch.tensor(within, dtype=dtype).repeat(120)[:114].view(2, 57)
    offsets = torch.arange(0, 115) if jagged else None
    given, sizes = ids.reshape(-1) if jagged else ids, torch.tensor([size, size])
    before = LIBRARY.level
    try:
        for level in range(LIBRARY.best_level + 1):
            LIBRARY.level = level
            assert first_outside(given, offsets, sizes) == FINE
            for place in (0, 13, 56, 57, 90, 113):
                for bad in (-1, low, size, high):
                    if not low <= bad <= high or 0 <= bad < size:
                        continue
                    wrong = given.clone()
                    wrong.view(-1)[place] = bad
                    assert first_outside(wrong, offsets, sizes) == place
    finally:
        LIBRARY.level = before


def test_no_id_is_fine() -> None:
    from recsys_embed.native.ops import FINE, first_outside

    sizes = torch.tensor([3, 0])
    assert first_outside(torch.empty(2, 0, dtype=torch.int64), None, sizes) == FINE
    assert first_outside(torch.empty(0, dtype=torch.int32), torch.zeros(5, dtype=torch.int64), sizes) == FINE


@pytest.mark.parametrize("features", [FEATURES, BAGS], ids=["single", "bags"])
def test_ids_are_checked_as_without_kernels(features: tuple[Feature, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """The same error, of the same place and value; and the same ids of which unknown ones are unseen."""
    bad = draw_ids(features, 30)
    values = bad.values.clone()
    values.view(-1)[[41, 70]] = torch.tensor([-3, 2**40])
    bad = Ids(values, bad.features, bad.offsets, bad.weights)
    told, replaced = [], []
    for kernels in (True, False):
        if not kernels:
            monkeypatch.setattr("recsys_embed.layer.all_inside", lambda *_: False)
        with pytest.raises(DataError) as caught:
            EmbeddingLayer(features, 4)(bad)
        told.append((str(caught.value), caught.value.value, caught.value.row))
        replaced.append(EmbeddingLayer(features, 4, on_unknown="unseen")(bad))
    assert told[0] == told[1]
    assert torch.equal(replaced[0], replaced[1])


def test_ids_that_lie_apart_or_are_of_other_types_are_checked_by_torch() -> None:
    ids = torch.tensor([[1, 2], [3, 4], [5, 0]])
    sizes = torch.tensor([5, 6])
    assert choice.all_inside(ids.t().contiguous(), None, torch.tensor([6, 5]))
    assert not choice.all_inside(ids.t(), None, torch.tensor([6, 5]))
    assert not choice.all_inside(ids.t().contiguous().to(torch.int16), None, torch.tensor([6, 5]))
    assert not choice.all_inside(ids.t().contiguous(), None, sizes)


# --- bf16 ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("slots", [1, 2])
@pytest.mark.parametrize("jagged", [False, True])
def test_vectors_in_bf16_are_those_of_float32_rounded(storage: str, slots: int, jagged: bool) -> None:
    features = [Feature(f"f{place}", 300, multi_valued=jagged) for place in range(3)]
    name = "compositional" if slots == 2 else "full"
    emb = EmbeddingLayer(
        features, 20, strategy={"name": name, "storage": storage}, budget=0.3 if slots == 2 else None, exact=()
    )
    emb.optimizer("sgd", lr=0.1)
    assert isinstance(emb.tables, NativeTables)
    requests: list[Request] = []
    read = emb.tables.read_vectors
    emb.tables.read_vectors = lambda group, request: requests.append(request) or read(group, request)  # type: ignore
    with torch.no_grad():
        emb(draw_ids(features, 70))
    vectors = read(0, requests[0])
    padded = torch.full((vectors.shape[0], 100), 7.0, dtype=torch.bfloat16)
    width = vectors.shape[1] * vectors.shape[2]
    emb.tables.read_into(padded[:, 4 : 4 + width].view(vectors.shape), 0, requests[0])
    assert torch.equal(padded[:, 4 : 4 + width], vectors.flatten(1).to(torch.bfloat16))
    assert bool((padded[:, :4] == 7).all() and (padded[:, 4 + width :] == 7).all())


def test_every_kind_of_float_is_rounded_as_torch_does() -> None:
    """Halfway cases, subnormal numbers, infinity, and what is no number."""
    tables = tables_of([4096])
    bits = torch.randint(-(2**31), 2**31, (4096, WIDTH), generator=torch.Generator().manual_seed(0))
    bits[:1000] = bits[:1000] & ~0xFFFF | 0x8000
    weights = bits.to(torch.int32).view(torch.float32).clone()
    weights[0, :3] = torch.tensor([float("inf"), -float("inf"), float("nan")])
    tables.put("t0", weights)
    out = torch.empty(4096, 1, WIDTH, dtype=torch.bfloat16)
    tables.read_into(out, 0, Request(torch.arange(4096).view(1, -1), 4096))
    expected = weights.to(torch.bfloat16)
    same = out[:, 0].view(torch.int16) == expected.view(torch.int16)
    assert bool((same | (out[:, 0].isnan() & expected.isnan())).all())
