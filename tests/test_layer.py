"""The layer as a drop-in: what it accepts, what it refuses, and that it behaves as any module and optimizer."""

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from recsys_embed import BudgetError, ConfigError, DataError, Embedding, EmbeddingBag, EmbeddingLayer, Feature
from recsys_embed.embeddings import Full
from recsys_embed.embeddings.base import Lookup, TableAccess
from recsys_embed.ids import Ids
from recsys_embed.tables.base import RULES
from recsys_embed.testing import BAGS, FEATURES, draw_ids
from tests.backends import EVERY
from tests.processes import on_processes

MIXED = {"user": "unified", "tag*": "hash", "*": "compositional"}


def mixed(features: Sequence[Feature] = BAGS, **options: Any) -> EmbeddingLayer:
    return EmbeddingLayer(features, 8, strategy=MIXED, budget=0.3, exact=(), **options)


# --- input ---------------------------------------------------------------------------------------------------


def test_every_form_of_ids_gives_the_same_vectors():
    emb = mixed()
    ids = draw_ids(BAGS, 6)
    expected = emb(ids)
    bounds = ids.bounds()
    tags = slice(bounds[1], bounds[2])
    tag_offsets = ids.offsets[6:13] - ids.offsets[6]
    by_name = {"city": ids.values[bounds[2] :], "tags": (ids.values[tags], tag_offsets), "user": ids.values[:6]}
    assert torch.equal(emb(by_name), expected)
    assert torch.equal(emb((ids.values, ids.offsets)), expected)
    keyed = SimpleNamespace(
        keys=lambda: ["tags", "other", "city", "user"],
        values=lambda: torch.cat([ids.values[tags], torch.arange(6), ids.values[bounds[2] :], ids.values[:6]]),
        offsets=lambda: torch.cat(
            [
                tag_offsets,
                tag_offsets[-1] + torch.arange(1, 19),
            ]
        ),
        weights_or_none=lambda: None,
    )
    assert torch.equal(emb(keyed), expected)


def test_a_matrix_and_int32_ids():
    emb = EmbeddingLayer(FEATURES, 8, strategy="hash", budget=0.3)
    ids = draw_ids(FEATURES, 6).values
    assert torch.equal(emb(ids), emb(ids.int()))
    assert torch.equal(emb({f.name: ids[i] for i, f in enumerate(FEATURES)}), emb(ids))
    assert emb(ids[:, :0]).shape == (0, 3, 8)


def test_torchrec_keyed_jagged_tensor():
    sparse = pytest.importorskip("torchrec.sparse.jagged_tensor", reason="needs TorchRec")
    ids = draw_ids(BAGS, 6)
    kjt = sparse.KeyedJaggedTensor([f.name for f in BAGS], ids.values, offsets=ids.offsets)
    emb = mixed()
    assert torch.equal(emb(kjt), emb(ids))


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ({"user": torch.tensor([1])}, "no ids for this feature"),
        ({"user": torch.tensor([1]), "item": torch.tensor([1]), "city": torch.tensor([1, 2])}, "2 ids"),
        ({"user": 1, "item": 1, "city": 1}, "cannot read ids from a int"),
        (torch.zeros(2, 5, dtype=torch.int64), r"\[F, B\] with F = 3, got \[2, 5\]"),
        (torch.zeros(3, 5), "integers, got torch.float32"),
        ((torch.tensor([1, 2, 3]), torch.tensor([0, 2, 1, 3])), "offsets rise"),
        ((torch.tensor([1, 2, 3]), torch.tensor([0, 1, 3, 3])), "feature is single-valued, but sample 0 has"),
        ("ids", "cannot read ids from a str"),
    ],
)
def test_malformed_ids_are_named(ids: Any, message: str):
    emb = EmbeddingLayer(FEATURES, 8, strategy="hash", budget=0.3)
    with pytest.raises(DataError, match=message):
        emb(ids)


@pytest.mark.parametrize("bad", [-1, 60, 2**40, -(2**40)])
@pytest.mark.parametrize("backend", EVERY)
@pytest.mark.parametrize("strategy", ["full", "hash", "unified", "compositional", "robe", "cafe", "mixed_dimension"])
def test_ids_out_of_range_touch_no_row(strategy: str, backend: str, bad: int):
    def layer(on_unknown: str) -> EmbeddingLayer:
        budget = None if strategy == "full" else 0.3
        return EmbeddingLayer(FEATURES, 8, strategy=strategy, budget=budget, on_unknown=on_unknown, backend=backend)

    ids = draw_ids(FEATURES, 5).values
    ids[2, 3] = bad
    given = ids.clone()
    emb = layer("error")
    optimizer = emb.optimizer("sgd", lr=1.0)
    before = {name: tensor.clone() for name, tensor in emb.state_dict().items()}
    with pytest.raises(DataError) as caught:
        emb(ids)
    assert (caught.value.column, caught.value.row, caught.value.value) == ("city", 3, bad)
    optimizer.step()
    assert all(torch.equal(before[name], tensor) for name, tensor in emb.state_dict().items())

    lenient, fixed = layer("unseen"), ids.clone()
    fixed[2, 3] = 0
    assert torch.equal(lenient(ids), lenient(fixed))
    assert torch.equal(ids, given)
    with pytest.raises(DataError, match=r"column 'tags'"):
        mixed()(Ids(torch.tensor([1, 700, 1]), 3, torch.tensor([0, 1, 2, 3])))


@pytest.mark.gpu
def test_an_id_out_of_range_is_named_on_a_gpu():
    ids = Ids(torch.tensor([1, 700, 1]), 3, torch.tensor([0, 1, 2, 3])).to(torch.device("cuda"))
    with pytest.raises(DataError, match=r"column 'tags'"):
        mixed().to("cuda")(ids)


# --- configuration -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strategy": "hahs", "budget": 0.5}, "hahs"),
        ({"strategy": {"*": {"name": "unified", "chunk": 2}}, "budget": 0.5}, "did you mean 'chunks'"),
        ({"strategy": {"usr": "hash", "*": "full"}, "budget": 0.5}, "pattern 'usr' matches no feature"),
        ({"strategy": {"user": "hash"}, "budget": 0.5}, "no strategy for feature 'item'"),
        ({"strategy": "hash"}, "'hash' needs a budget"),
        ({"strategy": "hash", "budget": 1}, "write 1.0"),
        ({"strategy": "hash", "budget": "64XB"}, "unknown unit"),
        ({"strategy": "hash", "budget": 0.5, "exact": ["cty"]}, "'cty', which is no feature"),
        ({"on_unknown": "ignore"}, "on_unknown"),
        ({"backend": "fast"}, "backend"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str):
    with pytest.raises(ConfigError, match=message):
        EmbeddingLayer(FEATURES, 8, **options)


def test_features_must_agree():
    with pytest.raises(ConfigError, match="given twice"):
        EmbeddingLayer([Feature("a", 3), Feature("a", 3)], 4)
    with pytest.raises(ConfigError, match="no cardinality"):
        EmbeddingLayer([Feature("a")], 4)
    with pytest.raises(ConfigError, match="cardinality 3 and, by feature 'b', 4"):
        EmbeddingLayer([Feature("a", 3), Feature("b", 4, vocabulary="a")], 4)
    with pytest.raises(ConfigError, match="need one strategy"):
        features = [Feature("a", 300), Feature("b", vocabulary="a")]
        EmbeddingLayer(features, 4, strategy={"a": "hash", "*": "unified"}, budget=0.5)


def test_mixed_strategies_share_one_budget():
    emb = mixed()
    assert 0.98 * emb.plan.budget_bytes <= emb.plan.serve_bytes <= emb.plan.budget_bytes
    ledger = emb.ledger().groupby("part")["serve_bytes"].sum()
    full = {"unified": 4000 * 32, "hash": 700 * 32, "compositional": 60 * 32}
    # One kept fraction for all groups; rounding leaves less than two rows' difference.
    for part, size in full.items():
        assert abs(ledger[part] - 0.3 * size) < 70


# --- a module like any other: tables as parameters -----------------------------------------------------------


def test_state_dict_deepcopy_and_to_with_plain_parameters():
    emb = mixed()
    assert sorted(emb.state_dict()) == [
        "tables.city.0",
        "tables.city.1",
        "tables.tags",
        "tables.unified.0",
    ]
    ids = draw_ids(BAGS, 6)
    twin = copy.deepcopy(nn.Sequential(emb))[0]
    assert torch.equal(twin(ids), emb(ids))
    optimizer = torch.optim.Adam(emb.parameters(), lr=0.1)
    emb(ids).square().sum().backward()
    optimizer.step()
    assert not torch.equal(twin(ids), emb(ids))
    twin.load_state_dict(emb.state_dict())
    assert torch.equal(twin(ids), emb(ids))
    assert emb.to(torch.float64)(ids).dtype == torch.float64
    assert torch.equal(copy.deepcopy(emb)(ids), emb(ids))
    assert emb.plan.strategies[0] is emb.strategies[0]
    assert twin.plan.strategies[0] is twin.strategies[0]
    with pytest.raises(RuntimeError, match=r"size mismatch for tables\.tags"):
        twin.load_state_dict({**twin.state_dict(), "tables.tags": torch.zeros(3, 8)})
    with pytest.raises(RuntimeError, match="Missing key"):
        twin.load_state_dict({})


def _ddp(rank: int, folder: str, world: int) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    torch.set_num_threads(1)
    emb = mixed()
    with pytest.raises(ConfigError, match="back end cannot hold tables for 2 ranks"):
        mixed(backend="reference").optimizer("sgd", lr=0.1)
    model = nn.parallel.DistributedDataParallel(emb)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        model(draw_ids(BAGS, 8, seed=10 * step + rank)).square().sum().backward()
        optimizer.step()
    torch.save(emb.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_distributed_data_parallel_on_two_ranks(tmp_path: Path):
    on_processes(_ddp, (str(tmp_path), 2), 2)
    states = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    emb = mixed()
    optimizer = torch.optim.SGD(emb.parameters(), lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        sum(emb(draw_ids(BAGS, 8, seed=10 * step + rank)).square().sum() / 2 for rank in (0, 1)).backward()
        optimizer.step()
    for name, expected in emb.state_dict().items():
        assert torch.equal(states[0][name], states[1][name])
        torch.testing.assert_close(states[0][name], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("own", [True, False], ids=["parameters", "tables optimizer"])
def test_grad_scaler(own: bool):
    emb = EmbeddingLayer(FEATURES, 8)
    optimizer = torch.optim.SGD(emb.parameters(), lr=0.1) if own else emb.optimizer("sgd", lr=0.1)
    plain = copy.deepcopy(emb)
    reference = torch.optim.SGD(plain.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    ids = draw_ids(FEATURES, 16)
    scaler.scale(emb(ids).square().sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    plain(ids).square().sum().backward()
    reference.step()
    torch.testing.assert_close(emb(ids), plain(ids), rtol=0, atol=1e-6)
    # An overflow skips the step, and zero_grad discards what was read.
    before = emb(ids).detach()
    scaler.scale(emb(ids).sum() * float("inf")).backward()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad()
    assert torch.equal(emb(ids), before)
    assert scaler.get_scale() == 512.0


# --- with a tables optimizer ---------------------------------------------------------------------------------


def test_the_tables_leave_the_parameters_and_a_copy_takes_them_back():
    emb = mixed()
    assert len(list(emb.parameters())) > 0
    optimizer = emb.optimizer("rowwise_adagrad", lr=0.1)
    assert list(emb.parameters()) == []
    with pytest.raises(ConfigError, match="already"):
        emb.optimizer("sgd", lr=0.1)
    twin = copy.deepcopy(emb)
    assert len(list(twin.parameters())) > 0
    with pytest.raises(TypeError, match="state_dict"):
        copy.deepcopy(optimizer)


def test_backward_without_step_changes_nothing_and_zero_grad_discards():
    emb, ids = mixed(), draw_ids(BAGS, 6)
    optimizer = emb.optimizer("sgd", lr=1.0)
    before = emb(ids).detach()
    emb(ids).sum().backward()
    assert torch.equal(emb(ids), before)
    optimizer.zero_grad()
    optimizer.step()
    assert torch.equal(emb(ids), before)
    emb(ids)  # a read whose gradient never comes
    with torch.no_grad():
        emb(ids)
    assert optimizer.param_groups[0]["params"] == []


def test_nothing_is_kept_of_a_read_without_gradient():
    import gc
    import weakref

    emb = mixed()
    emb.optimizer("sgd", lr=1.0)
    gc.collect()
    gc.disable()
    try:
        gone = weakref.ref(emb(draw_ids(BAGS, 6)))
        assert gone() is None
    finally:
        gc.enable()


def test_clipping_scales_the_update():
    emb = EmbeddingLayer([Feature("x", 50)], 4)
    optimizer = emb.optimizer("sgd", lr=1.0)
    ids = torch.arange(10).unsqueeze(0)
    before = emb(ids).detach()
    (emb(ids) * 100).sum().backward()
    norm = nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
    optimizer.step()
    assert norm.item() == pytest.approx(100 * 40**0.5, rel=1e-5)
    assert (before - emb(ids)).detach().norm().item() == pytest.approx(1.0, rel=1e-4)


def test_a_scheduler_drives_the_rate():
    emb = EmbeddingLayer([Feature("x", 50)], 4)
    optimizer = emb.optimizer("sgd", lr=1.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
    ids = torch.tensor([[7]])
    moves = []
    for _ in range(3):
        before = emb(ids).detach()
        emb(ids).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()
        moves.append((before - emb(ids)).detach()[0, 0, 0].item())
    assert moves == pytest.approx([1.0, 0.5, 0.25], rel=1e-5)


def test_bfloat16_autocast():
    emb = mixed()
    optimizer = emb.optimizer("rowwise_adagrad", lr=0.1)
    head = nn.Linear(24, 1)
    ids = draw_ids(BAGS, 6)
    before = emb(ids).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = head(emb(ids).flatten(1))
        assert out.dtype == torch.bfloat16
        out.float().square().sum().backward()
    optimizer.step()
    assert not torch.equal(emb(ids), before)
    assert torch.isfinite(emb(ids)).all()


def test_penalty_is_the_mean_over_samples_of_squared_rows():
    emb = EmbeddingLayer(FEATURES, 8, decay=0.1)
    ids = draw_ids(FEATURES, 16)
    expected = 0.1 * emb(ids).square().sum() / 16
    torch.testing.assert_close(emb.penalty(), expected)
    optimizer = emb.optimizer("sgd", lr=1.0)
    before = emb(ids).detach()
    (emb(ids).sum() * 0 + emb.penalty()).backward()
    optimizer.step()
    assert emb(ids).square().sum() < before.square().sum()
    emb(ids)
    optimizer.zero_grad()
    assert emb.penalty().item() == 0


class Toy(Full):
    """A strategy that uses every optional member: it sums gradient norms by id, and copies a row in maintenance."""

    maintain_every = 2

    def __init__(self, features: Sequence[Feature], dim: int) -> None:
        super().__init__(features, dim)
        self.register_buffer("importance", torch.zeros(features[0].size))
        self.scale = nn.Parameter(torch.ones(1))

    def combine(self, rows: Mapping[str, Tensor], lookup: Lookup) -> Tensor:
        return super().combine(rows, lookup) * self.scale

    def penalty(self, rows: Mapping[str, Tensor], lookup: Lookup) -> Tensor:
        return rows["rows"].abs().sum()

    def observe(self, lookup: Lookup, gradients: Mapping[str, Tensor]) -> None:
        norms = gradients["rows"].squeeze(-2).norm(dim=-1)
        bags = lookup.ids.values if lookup.ids.offsets is not None else lookup.ids.values.t()
        self.importance.index_add_(0, bags.reshape(-1), norms.reshape(-1))

    def maintain(self, tables: TableAccess) -> None:
        tables.put_rows("x", torch.tensor([0]), tables.get_rows("x", self.importance.argmax().view(1)))


@pytest.mark.parametrize("backend", EVERY)
@pytest.mark.parametrize("jagged", [False, True])
def test_optional_members_of_a_strategy(monkeypatch: pytest.MonkeyPatch, backend: str, jagged: bool):
    monkeypatch.setattr(Full, "sized", classmethod(lambda cls, config, features, dim, *_: Toy(features, dim)))
    monkeypatch.setattr("recsys_embed.budget.Full", Toy)
    emb = EmbeddingLayer([Feature("x", 10, multi_valued=jagged)], 4, backend=backend)
    assert emb.ledger()["serve_bytes"].sum() == sum(t.numel() * 4 for t in emb.state_dict().values())
    with pytest.raises(ConfigError, match=r"call optimizer\(\) first"):
        emb.after_step()
    optimizer = emb.optimizer("sgd", lr=0.1)
    assert [name for name, _ in emb.named_parameters()] == ["strategies.0.scale"]
    ids = Ids(torch.tensor([7, 7, 3]), 1, torch.tensor([0, 1, 2, 3])) if jagged else torch.tensor([[7, 7, 3]])
    for step in range(2):
        emb(ids).sum().backward()
        optimizer.step()
        emb.after_step()
        same = torch.equal(emb.vectors("x", torch.tensor([0])), emb.vectors("x", torch.tensor([7])))
        assert same == (step == 1)
    importance = emb.strategies[0].importance
    assert importance.nonzero().view(-1).tolist() == [3, 7]
    assert importance[7].item() == pytest.approx(2 * importance[3].item())
    # As most training loops have it: what was discarded before the backward pass is not this read.
    vectors = emb(ids)
    optimizer.zero_grad()
    vectors.sum().backward()
    optimizer.step()
    assert importance[3].item() == pytest.approx(3 * 2.0)
    # Two pending reads are observed one by one and applied as one.
    emb(ids).sum().backward()
    emb(ids).sum().backward()
    optimizer.step()
    assert importance[3].item() == pytest.approx(5 * 2.0)
    emb(ids)
    assert emb.penalty().item() > 0


class OddAbsent(Full):
    """Odd ids have no row."""

    absent = True

    def address(self, ids: Ids) -> Lookup:
        lookup = super().address(ids)
        rows = lookup.rows["rows"]
        return Lookup({"rows": torch.where(rows % 2 == 1, -1, rows)}, ids)


@pytest.mark.parametrize("backend", EVERY)
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("jagged", [False, True])
def test_absent_rows_read_as_zeros_and_are_never_updated(
    monkeypatch: pytest.MonkeyPatch, backend: str, decay: float, jagged: bool
):
    monkeypatch.setattr("recsys_embed.budget.Full", OddAbsent)
    features = [Feature("x", 10, multi_valued=jagged), Feature("y", 6)]
    emb = EmbeddingLayer(features, 4, backend=backend, decay=decay)
    optimizer = emb.optimizer("rowwise_adagrad", lr=0.1)
    before = {name: emb.tables.get(name).clone() for name in ("x", "y")}
    x = [torch.tensor([1, 2, 2, 4]), torch.tensor([0, 2, 3, 4])] if jagged else [torch.tensor([1, 2, 4])]
    vectors = emb({"x": tuple(x) if jagged else x[0], "y": torch.tensor([5, 0, 3])})
    expected = before["x"][2] if jagged else torch.zeros(4)
    assert torch.equal(vectors[0, 0], expected)
    assert torch.equal(vectors[:, 1], torch.stack([torch.zeros(4), before["y"][0], torch.zeros(4)]))
    vectors.sum().backward()
    optimizer.step()
    for name, touched in (("x", [2, 4]), ("y", [0])):
        changed = (emb.tables.get(name) != before[name]).any(dim=1).nonzero().view(-1).tolist()
        assert changed == touched


@pytest.mark.parametrize("backend", EVERY)
@pytest.mark.parametrize("rule", RULES)
def test_rows_are_moved_with_their_optimizer_state(backend: str, rule: str):
    emb = EmbeddingLayer([Feature("x", 10)], 6, backend=backend)
    if (backend, rule) == ("fused", "lazy_adam"):
        with pytest.raises(ConfigError, match="it has no lazy Adam"):
            emb.optimizer(rule, lr=0.1)
        return
    optimizer = emb.optimizer(rule, lr=0.1)
    emb(torch.tensor([[3, 5]])).square().sum().backward()
    optimizer.step()
    emb.tables.put_rows("x", torch.tensor([1, 0]), emb.tables.get_rows("x", torch.tensor([3, 5])))
    for to, source in ((1, 3), (0, 5)):
        assert torch.equal(emb.tables.get("x")[to], emb.tables.get("x")[source])
        torch.testing.assert_close(emb.tables.get_state("x")[to], emb.tables.get_state("x")[source])


# --- counterparts of nn.Embedding and nn.EmbeddingBag --------------------------------------------------------


def test_embedding_equals_torch():
    ours = Embedding(100, 8, strategy="full")
    theirs = nn.Embedding(100, 8, _weight=ours.layer.tables.get("id").detach().clone())
    ids = torch.randint(0, 100, (3, 4, 5), generator=torch.Generator().manual_seed(0))
    assert torch.equal(ours(ids), theirs(ids))
    assert Embedding(5_000_000, 16, strategy="unified", budget="6.4MB").layer.plan.serve_bytes <= 6_400_000
    with pytest.raises(BudgetError):
        Embedding(1000, 16, strategy="full", budget="1KB")


@pytest.mark.parametrize("mode", ["sum", "mean"])
def test_embedding_bag_equals_torch(mode: str):
    ours = EmbeddingBag(100, 8, mode=mode, strategy="full")
    theirs = nn.EmbeddingBag(100, 8, mode=mode, _weight=ours.layer.tables.get("id").detach().clone())
    ids = torch.randint(0, 100, (12,), generator=torch.Generator().manual_seed(0))
    offsets = torch.tensor([0, 3, 3, 10])
    torch.testing.assert_close(ours(ids, offsets), theirs(ids, offsets))
    torch.testing.assert_close(ours(ids.view(3, 4)), theirs(ids.view(3, 4)))
    if mode == "sum":
        weights = torch.rand(12, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(ours(ids, offsets, weights), theirs(ids, offsets, weights))


def test_vectors_of_one_feature():
    emb = mixed()
    ids = torch.tensor([5, 1, 3999])
    batch = {"user": ids, "tags": torch.zeros(3, dtype=torch.int64), "city": torch.zeros(3, dtype=torch.int64)}
    assert torch.equal(emb.vectors("user", ids), emb(batch)[:, 0])
    with pytest.raises(ConfigError, match="no feature 'usr'"):
        emb.vectors("usr", ids)
    with pytest.raises(DataError):
        emb.vectors("user", torch.tensor([4000]))


def test_an_operation_count_does_not_grow_with_features():
    """A strategy addresses all its features in one broadcast operation: no Python per feature."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        calls = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.calls += 1
            return func(*args, **(kwargs or {}))

    counts = {}
    for strategy in ("full", "hash", "unified", "compositional", "robe", "cafe"):
        for number in (2, 40):
            features = [Feature(f"f{i}", 1000) for i in range(number)]
            budget = None if strategy == "full" else 0.3
            emb = EmbeddingLayer(features, 8, strategy=strategy, budget=budget, exact=(), backend="reference")
            emb.optimizer("sgd", lr=0.1)
            ids = torch.ones(number, 16, dtype=torch.int64)
            with Count() as counting:
                emb(ids)
            counts[strategy, number] = counting.calls
        assert counts[strategy, 2] == counts[strategy, 40]


@pytest.mark.parametrize(
    ("offsets", "feature", "sample", "value"),
    [
        ([1, 1, 2, 2, 3, 3, 4], "user", 0, 1),
        ([0, 1, 2, 4, 3, 3, 4], "tags", 1, -1),
        ([0, 1, 2, 2, 3, 3, 3], "city", 1, 3),
    ],
)
def test_impossible_offsets_are_named(offsets: list[int], feature: str, sample: int, value: int):
    """The bag, and what is wrong with it: where they begin, a negative length, where they end."""
    values = torch.tensor([1, 1, 1, 1])
    with pytest.raises(DataError, match="offsets rise") as caught:
        mixed()((values, torch.tensor(offsets)))
    assert (caught.value.column, caught.value.row, caught.value.value) == (feature, sample, value)


def test_offsets_in_a_dict_name_their_own_feature():
    tags = (torch.tensor([1, 2]), torch.tensor([0, 2, 1, 2]))
    with pytest.raises(DataError, match="negative length") as caught:
        mixed()({"user": torch.tensor([1, 2, 3]), "tags": tags, "city": torch.tensor([1, 2, 3])})
    assert (caught.value.column, caught.value.row) == ("tags", 1)


@pytest.mark.parametrize("offsets", [torch.zeros(0, dtype=torch.int64), [0, 1, 2, 3]])
def test_offsets_that_are_none(offsets: Any):
    with pytest.raises(DataError):
        mixed()((torch.tensor([1, 2, 3]), offsets))


def test_a_keyed_tensor_with_a_key_twice_is_refused():
    """It read the first of them, and said nothing."""
    sparse = pytest.importorskip("torchrec.sparse.jagged_tensor", reason="needs TorchRec")
    keys = [*(feature.name for feature in BAGS), "user"]
    kjt = sparse.KeyedJaggedTensor(keys, torch.tensor([1, 2, 3, 4]), offsets=torch.arange(5))
    with pytest.raises(DataError, match="this key twice") as caught:
        mixed()(kjt)
    assert caught.value.column == "user"


def test_no_samples_where_bags_are_not_pooled_in_the_read():
    emb = EmbeddingLayer([Feature("tags", 90, multi_valued=True)], 4, strategy="compositional", budget=0.5, exact=())
    assert emb((torch.zeros(0, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))).shape == (0, 1, 4)
