"""DNIS: the contract, pruning and packing by brute force, and a search whose right answer is planted."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recsys_embed import ConfigError, EmbeddingLayer, Feature
from recsys_embed.config import DnisConfig
from recsys_embed.embeddings.bits import count_bits, pack_bits, packed_bytes, unpack_bits
from recsys_embed.embeddings.dnis import Dnis
from recsys_embed.embeddings.largest import keep_largest
from recsys_embed.embeddings.packed import PackedRows
from recsys_embed.features import resolve
from recsys_embed.ids import Ids
from recsys_embed.recommender import Recommender
from recsys_embed.stages import TABLES, Step
from recsys_embed.testing import BAGS, FEATURES, StrategyContract, draw_ids
from recsys_embed.training.optimizers import Optimizers
from recsys_embed.training.step import step
from recsys_embed.training.trainer import train
from tests.backends import EVERY
from tests.embeddings import ranked
from tests.embeddings.ranked import RANKS, D, Ranked
from tests.embeddings.ranked import training as ranked_config
from tests.training.staged import record, same_state, stop_after_step


class TestDnis(StrategyContract):
    config = DnisConfig()


class TestDnisInOneBlockAtAnOddWidth(StrategyContract):
    config = DnisConfig(blocks=1)
    dim = 9


class TestDnisInMoreBlocksThanIds(StrategyContract):
    config = DnisConfig(blocks=1000)
    budget = 0.5


# --- bits and the largest -------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 7), st.integers(0, 2**32))
def test_bits_survive_packing(width: int, rows: int, seed: int) -> None:
    bits = torch.rand(rows, width, generator=torch.Generator().manual_seed(seed)) < 0.5
    packed = pack_bits(bits)
    assert packed.shape == (rows, packed_bytes(width))
    assert torch.equal(unpack_bits(packed, width), bits)
    assert torch.equal(count_bits(packed), bits.sum(1))
    assert int(packed[0, 0]) == sum(2**place for place, bit in enumerate(bits[0, :8].tolist()) if bit)


numbers = st.lists(
    st.lists(st.sampled_from([0.0, 1e-40, 1e-8, 0.5, 0.5000001, 1.0, 3.0, 3e38, float("inf")]), max_size=8), min_size=1
)


@given(numbers, st.integers(0, 40))
def test_the_largest_by_brute_force(parts: list[list[float]], count: int) -> None:
    """Exactly as many as asked for, the first of equal ones."""
    tensors = [torch.tensor(part, dtype=torch.float32) for part in parts]
    flat = torch.cat(tensors).tolist()
    expected = sorted(range(len(flat)), key=lambda place: (-flat[place], place))[:count]
    kept = torch.cat(list(keep_largest(lambda: iter(tensors), count)))
    assert sorted(expected) == kept.nonzero().flatten().tolist()


# --- pruning and packing --------------------------------------------------------------------------------------


def layer(features: Any = FEATURES, *, budget: Any = 0.2, dim: int = 12, **options: Any) -> EmbeddingLayer:
    config = DnisConfig(**options)
    return EmbeddingLayer(features, dim, strategy={"*": config}, budget=budget, exact=(), backend="reference")


def strategy_of(emb: EmbeddingLayer) -> Dnis:
    found = emb.strategies[0]
    assert isinstance(found, Dnis)
    return found


def pruned(emb: EmbeddingLayer) -> EmbeddingLayer:
    """With drawn importances, after the search."""
    strategy = strategy_of(emb)
    with torch.no_grad():
        strategy.alpha.uniform_(0, 1, generator=torch.Generator().manual_seed(1))
    emb.begin_stage("search")
    emb.end_stage()
    return emb


def alpha_of(emb: EmbeddingLayer, name: str) -> Tensor:
    """Importances ``[n, D]`` of every id, by the rule in words: equally many ids a block, in order."""
    strategy = strategy_of(emb)
    starts, sizes = 0, {feature.vocab: feature.size for feature in strategy.features}
    for one in sorted(sizes):
        blocks = min(strategy.config.blocks, sizes[one])
        if one == name:
            block = [int(id_ * blocks / sizes[one] + 1e-9) for id_ in range(sizes[one])]
            return strategy.alpha.detach()[torch.tensor(block) + starts]
        starts += blocks
    raise AssertionError(name)


@pytest.mark.parametrize("budget", [0.05, 0.1, 0.3, 0.7])
def test_pruning_meets_the_budget_and_keeps_the_largest(budget: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recsys_embed.embeddings.pruned._CHUNK", 1000)  # parts that do not divide the tables
    emb = layer(budget=budget)
    names = ["city", "item", "user"]
    scores = torch.cat([(emb.tables.get(n).detach()).abs() for n in names])
    pruned(emb)
    scores = scores * torch.cat([alpha_of(emb, name) for name in names])
    strategy = strategy_of(emb)
    bits = unpack_bits(strategy.mask, 12)
    assert int(bits.sum()) == strategy.kept
    assert scores[bits].min() >= scores[~bits].max()
    shipped = strategy.serve(emb.tables)
    size = sum(tensor.numel() * tensor.element_size() for tensor in shipped.state_dict().values())
    assert size == emb.plan.serve_bytes == 4 * strategy.kept + 4760 * 2 + 4 * -(-4760 // 32)
    assert emb.plan.budget_bytes - 4 < size <= emb.plan.budget_bytes
    train_bytes = emb.ledger("rowwise_adagrad")["train_bytes"].sum()
    assert train_bytes == 4760 * 4 * 13 + 30 * 12 * 4 + 4760 * 2  # full tables with their sums, alpha, mask


def test_equal_scores_are_cut_exactly() -> None:
    emb = layer(budget=0.2)
    with torch.no_grad():
        for name in emb.tables.specs:
            emb.tables.put(name, torch.full((emb.tables.specs[name].rows, 12), 0.25))
    emb.begin_stage("search")
    emb.end_stage()
    assert int(count_bits(strategy_of(emb).mask).sum()) == strategy_of(emb).kept


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 19), st.lists(st.integers(1, 100), min_size=1, max_size=3), st.floats(0, 1), st.integers(0, 99))
def test_packed_rows_by_brute_force(width: int, sizes: list[int], density: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    features = resolve([Feature(f"f{place}", size) for place, size in enumerate(sizes)])
    starts = [sum(sizes[:place]) for place in range(len(sizes))]
    rows = torch.randn(sum(sizes), width, generator=generator)
    kept = torch.rand(rows.shape, generator=generator) < density
    kept[0, 0] = True
    parts = 7  # rows come in parts of any size
    packed = PackedRows.of(features, starts, width, (rows * kept).split(parts), kept.split(parts))
    stored = {name: tensor.numel() * tensor.element_size() for name, tensor in packed.state_dict().items()}
    assert stored == PackedRows.sizes(len(rows), width, int(kept.sum()))
    ids = torch.stack([torch.randint(0, size, (20,), generator=generator) for size in sizes])
    expected = torch.stack([(rows * kept)[ids[f] + starts[f]] for f in range(len(sizes))], dim=1)
    assert torch.equal(packed(Ids(ids, len(sizes))), expected)


@pytest.mark.parametrize("features", [FEATURES, BAGS], ids=["single", "bags"])
def test_what_is_shipped_equals_the_layer(features: Any) -> None:
    emb = pruned(layer(features, budget=0.3))
    ids = draw_ids(features, 50)
    shipped = strategy_of(emb).serve(emb.tables)
    torch.testing.assert_close(shipped(ids), emb(ids).detach(), rtol=0, atol=1e-7)
    fresh = copy.deepcopy(shipped)
    for tensor in fresh.state_dict().values():
        tensor.zero_()
    assert not torch.equal(fresh(ids), shipped(ids))
    fresh.load_state_dict(shipped.state_dict())
    assert torch.equal(fresh(ids), shipped(ids))


def test_before_the_search_nothing_can_be_shipped() -> None:
    emb = layer()
    with pytest.raises(ConfigError, match=r"is to keep \d+ weights and still has 57120"):
        strategy_of(emb).serve(emb.tables)


def test_blocks_follow_the_ids() -> None:
    emb = layer(blocks=4)
    strategy = strategy_of(emb)
    ids = torch.tensor([[0, 999, 1000, 3999], [0, 174, 175, 699], [0, 14, 15, 59]])  # user, item, city
    blocks = strategy.address(Ids(ids.int(), 3)).aux["block"].t()
    assert blocks.tolist() == [[8, 8, 9, 11], [4, 4, 5, 7], [0, 0, 1, 3]]  # vocabularies in the order of names


# --- gradients ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", EVERY)
@pytest.mark.parametrize("features", [FEATURES, BAGS], ids=["single", "bags"])
def test_dropped_weights_get_no_gradient(features: Any, backend: str) -> None:
    config = DnisConfig()
    emb = EmbeddingLayer(features, 12, strategy={"*": config}, budget=0.2, exact=(), backend=backend)
    optimizer = emb.optimizer("adagrad", lr=0.1)
    pruned(emb)
    names = [spec.name for spec in strategy_of(emb).tables()]
    before = torch.cat([emb.tables.get(name).clone() for name in names])
    for seed in range(5):
        emb(draw_ids(features, 200, seed)).square().sum().backward()
        optimizer.step()
    moved = torch.cat([emb.tables.get(name) for name in names]) != before
    bits = unpack_bits(strategy_of(emb).mask, 12)
    assert moved[bits].any()
    assert not moved[~bits].any()


def test_the_penalty_is_of_blocks_that_were_read() -> None:
    emb = layer([Feature("x", 40)], blocks=4, alpha_l1=0.5, budget=0.5)
    emb.begin_stage("search")
    emb(torch.tensor([[0, 1, 35]]))
    loss = emb.penalty()
    assert loss.item() == pytest.approx(0.5 * 2 * 12)
    loss.backward()
    assert strategy_of(emb).alpha.grad.sum(1).tolist() == [6, 0, 0, 6]
    normalised = strategy_of(emb).normalise("alpha", strategy_of(emb).alpha.grad)
    torch.testing.assert_close(normalised.abs().mean(1), torch.tensor([1.0, 0, 0, 1]))


# --- a search with a planted answer ---------------------------------------------------------------------------


def ranked_model(**options: Any) -> Recommender:
    return ranked.model(DnisConfig(**{"blocks": 2, "warm_up_epochs": 3, **options}))


def searched(*, shuffled: bool = False, **options: Any) -> dict[str, Tensor]:
    """The share of ids that keep each dimension ``[D]``, by feature."""
    model = ranked_model(search_epochs=5, **options)
    train(model, Ranked(8000, shuffled=shuffled), ranked_config(), progress=False)
    strategy = strategy_of(model.embedding)
    return {name: unpack_bits(strategy._mask_of(name), D).float().mean(0) for name in RANKS}


@pytest.mark.slow
def test_it_finds_planted_ranks() -> None:
    """Widths in the true order and near the true ranks, in the true dimensions; the noise is dropped. Pruning without
    a search, by |e| alone, keeps a good part of the noise."""
    found, plain = searched(alpha_lr=0.04), searched(alpha_lr=1e-9)
    width, without = ({name: kept.sum().item() for name, kept in one.items()} for one in (found, plain))
    assert width["all"] > 13.5
    assert 1.8 < width["first"] < 3
    assert 1.8 < width["second"] < 3
    assert width["noise"] < 1
    for name in ("first", "second"):
        own = torch.zeros(D, dtype=torch.bool)
        own[list(RANKS[name])] = True
        assert found[name][own].min() > 0.8
        assert found[name][~own].mean() < 0.08
    assert without["noise"] > 1.5
    assert without["all"] < 12.5


@pytest.mark.slow
def test_shuffled_labels_show_no_preference() -> None:
    """Every feature keeps 5 of 16 dimensions, but for the noise of the search (a deviation of about 1: neighbouring
    choices go together, a block and dimension at a time)."""
    width = {name: kept.sum().item() for name, kept in searched(shuffled=True, alpha_lr=0.04).items()}
    assert sum(width.values()) == pytest.approx(20)
    assert all(3 < one < 7 for one in width.values())


def test_alpha_never_sees_the_training_loss() -> None:
    """Training steps leave it at 1; a step of validation moves it, and nothing else."""
    model = ranked_model()
    model.embedding.begin_stage("search")
    optimizers = Optimizers(model, ranked_config())
    alpha = strategy_of(model.embedding).alpha
    taken = list(Ranked(2000).batches("train", 200))
    for batch in taken[:5]:
        step(model, batch, optimizers, Step("train", frozenset({TABLES})))
        step(model, batch, optimizers)
    assert torch.equal(alpha, torch.ones_like(alpha))
    assert alpha.grad is None
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    step(model, taken[5], optimizers, Step("val", frozenset({"alpha"})))
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(before[name], tensor)}
    assert moved == {"embedding.strategies.0.alpha"}
    assert 0 <= alpha.min() < alpha.max() <= 1


@pytest.mark.parametrize("tables", ["adagrad", "adam"])
def test_resumed_in_every_stage(tables: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the warm-up, the search (after either kind of step) and the retraining, mask and all."""
    data = Ranked(600)
    optimizer = {"tables": tables, "tables_lr": 0.05, "dense_lr": 0.003}
    config = ranked_config(optimizer=optimizer, patience=2)
    kept = record(monkeypatch)

    def model() -> Recommender:
        return ranked_model(warm_up_epochs=1, search_epochs=2)

    straight = model()
    train(straight, data, config, progress=False)
    losses = list(kept.losses)
    assert len(losses) == 2 * (3 + 2 * 6 + 2 * 3)
    for k in (2, 3, 4, 5, 9, 14, 15, 16, 20):
        kept.losses.clear()
        stop_after_step(model(), data, config, k, tmp_path / str(k))
        resumed = model()
        train(resumed, data, config, progress=False, checkpoints=tmp_path / str(k))
        assert kept.losses == losses
        assert same_state(straight, resumed)


def test_beside_other_strategies() -> None:
    """The others train in its stages; bytes are shared as ever."""
    emb = EmbeddingLayer(
        FEATURES, 8, strategy={"user": DnisConfig(), "*": "hash"}, budget=0.3, exact=(), backend="reference"
    )
    assert [stage.name for stage in emb.stages] == ["warm_up", "search", "retrain"]
    assert 0.98 * emb.plan.budget_bytes <= emb.plan.serve_bytes <= emb.plan.budget_bytes
    with pytest.raises(ConfigError, match="train in the same stages"):
        different = {"user": DnisConfig(), "*": DnisConfig(search_epochs=7)}
        EmbeddingLayer(FEATURES, 8, strategy=different, budget=0.3, exact=())
