"""Frozen and shipped tables read by the native kernels: the vectors of plain PyTorch, and what is left to it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from recsys_embed import DataError, EmbeddingLayer, Feature
from recsys_embed.ids import Ids
from recsys_embed.native.library import load
from recsys_embed.storage import STORAGE_TYPES
from recsys_embed.tables import native
from recsys_embed.tables.base import Request
from recsys_embed.tables.native_reads import NativeReads
from recsys_embed.tables.reference import ReferenceTables
from recsys_embed.testing import BAGS, FEATURES, draw_ids

if isinstance(load(), str):
    pytest.skip(f"no native back end: {load()}", allow_module_level=True)

STRATEGIES = ["full", "hash", "unified", "compositional", "mixed_dimension"]
STORED = [*((strategy, storage) for strategy in STRATEGIES for storage in STORAGE_TYPES), ("robe", "fp32")]


def layer(
    strategy: str = "full", storage: str = "fp32", features: Sequence[Feature] = FEATURES, backend: str = "auto"
) -> EmbeddingLayer:
    budget = None if strategy == "full" else 0.3
    config = {"name": strategy, "storage": storage} if storage != "fp32" else strategy
    return EmbeddingLayer(features, 12, strategy=config, budget=budget, exact=(), backend=backend)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Groups that the kernels read."""
    found: list[int] = []
    read = NativeReads._read

    def noted(
        self: NativeReads, out: Tensor, kept: Tensor | None, slots: tuple[int, int, int], group: int, asked: Request
    ) -> Tensor:
        found.append(group)
        return read(self, out, kept, slots, group, asked)

    monkeypatch.setattr(NativeReads, "_read", noted)
    return found


@pytest.mark.parametrize("features", [FEATURES, BAGS], ids=["single", "bags"])
@pytest.mark.parametrize(("strategy", "storage"), STORED)
def test_frozen_vectors_are_those_of_plain_pytorch(
    strategy: str, storage: str, features: tuple[Feature, ...], reads: list[int]
) -> None:
    ids = draw_ids(features, 40)
    plain = layer(strategy, storage, features, "reference").freeze()
    expected = plain(ids)
    assert not reads
    assert not plain.tables.takes_absent
    vectors = layer(strategy, storage, features).freeze()(ids)
    assert reads
    if features is FEATURES:
        assert torch.equal(vectors, expected)
    else:  # embedding_bag fuses multiplications and additions
        torch.testing.assert_close(vectors, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("storage", STORAGE_TYPES)
def test_shipped_layers_and_copies_read_natively_too(storage: str, reads: list[int]) -> None:
    trained, ids = layer("hash", storage), draw_ids(FEATURES, 40)
    trained.optimizer("sgd", lr=0.1)
    config = {"name": "hash", "storage": storage}
    shipped = EmbeddingLayer(FEATURES, 12, strategy=config, budget=0.3, exact=(), shipped=True, seed=5)
    shipped.load_state_dict(trained.shipped_state())
    expected = trained(ids)
    for one in (shipped, copy.deepcopy(shipped), pickle.loads(pickle.dumps(shipped.tables))):
        reads.clear()
        tables = one.tables if isinstance(one, EmbeddingLayer) else one
        assert isinstance(tables, ReferenceTables)
        rows = shipped.strategies[0].address(ids).rows["rows"].flatten(0, 1)
        assert torch.equal(tables.read(0, Request(rows, ids.batch)), expected)
        assert reads == [0]
    copied = copy.deepcopy(shipped)
    with torch.no_grad():
        copied.tables.put("user", torch.zeros_like(copied.tables.get("user")))
    assert not bool(copied(ids)[:, 0].any())  # its own rows, and not those it was copied from
    assert torch.equal(shipped(ids), expected)


def test_absent_rows_reach_the_kernels() -> None:
    tables = layer().freeze().tables
    assert tables.takes_absent
    rows = torch.tensor([[3, -1], [-1, 0], [2, 2]])
    read = tables.read(0, Request(rows, 2))
    for lane, name in enumerate(tables.groups[0].lanes):
        for sample, row in enumerate(rows[lane].tolist()):
            assert torch.equal(read[sample, lane], torch.zeros(12) if row < 0 else tables.get(name)[row])


def test_a_row_that_is_not_there_is_named() -> None:
    tables = layer().freeze().tables
    name = tables.groups[0].lanes[1]
    rows = torch.tensor([[0], [tables.specs[name].rows], [0]])
    with pytest.raises(DataError, match=rf"table '{name}' has rows"):
        tables.read(0, Request(rows, 1))


# --- what is left to plain PyTorch ---------------------------------------------------------------------------


def test_where_there_are_no_kernels(monkeypatch: pytest.MonkeyPatch, reads: list[int]) -> None:
    expected = layer().freeze()(draw_ids(FEATURES, 9))
    assert reads
    reads.clear()
    monkeypatch.setattr(native, "load", lambda: "its kernels were not built")
    for backend in ("auto", "native"):
        assert torch.equal(layer(backend=backend).freeze()(draw_ids(FEATURES, 9)), expected)
    assert not reads


def test_tables_that_were_converted(reads: list[int]) -> None:
    emb, ids = layer().freeze(), draw_ids(FEATURES, 9)
    before = emb(ids)
    reads.clear()
    after = emb.double()(ids)
    assert after.dtype == torch.float64
    assert torch.equal(after, before.double())
    assert not reads
    assert torch.equal(emb.float()(ids), before)
    assert reads


def test_weights_of_bags_keep_their_gradient() -> None:
    gradients = []
    for backend in ("auto", "reference"):
        emb = EmbeddingLayer([Feature("x", 9, multi_valued=True)], 4, backend=backend).freeze()
        weights = torch.tensor([0.5, 2.0, -1.0], requires_grad=True)
        emb(Ids(torch.tensor([1, 8, 3]), 1, torch.tensor([0, 2, 3]), weights)).sum().backward()
        gradients.append(weights.grad)
    assert gradients[0] is not None
    assert gradients[0].any()
    torch.testing.assert_close(*gradients)


@pytest.mark.filterwarnings("ignore")  # of tracing, by torch.jit
@pytest.mark.parametrize("strategy", ["hash", "compositional"])
def test_traced_programs_know_nothing_of_the_kernels(strategy: str, reads: list[int]) -> None:
    emb = layer(strategy).freeze().eval()

    class Vectors(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = emb

        def forward(self, ids: Tensor) -> Tensor:
            return self.embedding.lookup(Ids(ids, 3))

    ids = draw_ids(FEATURES, 30).values
    with torch.no_grad():
        exported = torch.export.export(Vectors(), (ids,))
        traced = torch.jit.trace(Vectors(), (ids,), check_trace=False)
        assert not reads
        assert "read_rows" not in f"{exported.graph} {traced.inlined_graph}"
        expected = Vectors()(ids)
        assert reads
        assert torch.equal(exported.module()(ids), expected)
        assert torch.equal(traced(ids), expected)


# --- serving -------------------------------------------------------------------------------------------------


def test_threads_do_not_share_outputs() -> None:
    """Outputs that are large enough to be lent again, each while others are asked for."""
    emb = EmbeddingLayer([Feature("x", 500)], 64, strategy="full").freeze()
    batches = [torch.randint(0, 500, (1, 5000), generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    expected = [emb.tables.get("x")[ids[0]].unsqueeze(1) for ids in batches]

    def same(turn: int) -> bool:
        return torch.equal(emb(batches[turn % 4]), expected[turn % 4])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(same, range(60)))
