"""The fused back end against the reference: forward, a hundred steps, bags, accumulation, a changing rate, state.

On a GPU the fused tables are there, and the reference stays on CPU.
"""

from pathlib import Path

import pytest
import torch

from recsys_embed import EmbeddingLayer, Feature
from recsys_embed.config import (
    CompositionalConfig,
    FullConfig,
    HashConfig,
    MixedDimensionConfig,
    RobeConfig,
    StrategyNode,
    UnifiedConfig,
)
from recsys_embed.ids import Ids
from recsys_embed.tables import native
from recsys_embed.testing import BAGS, FEATURES, draw_ids, train_steps
from recsys_embed.training import checkpoints as store
from tests.backends import EVERY

pytest.importorskip("fbgemm_gpu", reason="the fused back end needs FBGEMM")

STRATEGIES = [
    FullConfig(),
    HashConfig(),
    UnifiedConfig(),
    CompositionalConfig(),
    CompositionalConfig(operation="add"),
    RobeConfig(),
    RobeConfig(block=3, signs=False),
    MixedDimensionConfig(),
    MixedDimensionConfig(width=(4, 0, 3)),
]
RULES = [("sgd", 0.05), ("adagrad", 0.05), ("rowwise_adagrad", 0.05)]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
SHARED = (Feature("a", 500), Feature("b", 40), Feature("c", vocabulary="a"), Feature("d", vocabulary="b"))


def pair(
    config: StrategyNode, features: tuple[Feature, ...], dim: int, device: str = "cpu", **options: object
) -> list[EmbeddingLayer]:
    budget = None if isinstance(config, FullConfig) or config.settled else 0.3
    return [
        EmbeddingLayer(features, dim, strategy=config, budget=budget, exact=(), backend=backend, **options).to(where)
        for backend, where in (("reference", "cpu"), ("fused", device))
    ]


def train(layer: EmbeddingLayer, optimizer: torch.optim.Optimizer, batches: list[Ids], target: torch.Tensor) -> None:
    """On the layer's device."""
    train_steps(layer, optimizer, [ids.to(layer.device) for ids in batches], target.to(layer.device))


def vectors_of(layer: EmbeddingLayer, ids: Ids) -> torch.Tensor:
    with torch.no_grad():
        return layer(ids.to(layer.device)).cpu()


def assert_same(layers: list[EmbeddingLayer], tolerance: float) -> None:
    for name in layers[0].tables.specs:
        one, other = (layer.tables.get(name).cpu() for layer in layers)
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dim", [4, 16, 30])
@pytest.mark.parametrize(("rule", "lr"), RULES)
@pytest.mark.parametrize("config", STRATEGIES, ids=lambda c: f"{c.name}-{getattr(c, 'operation', '')}")
def test_a_hundred_steps(config: StrategyNode, rule: str, lr: float, dim: int, device: str):
    layers = pair(config, FEATURES, dim, device)
    optimizers = [layer.optimizer(rule, lr=lr) for layer in layers]
    ids = draw_ids(FEATURES, 64)
    torch.testing.assert_close(*(vectors_of(layer, ids) for layer in layers), rtol=0, atol=1e-6)
    target = torch.randn(64, 3, dim, generator=torch.Generator().manual_seed(1)) / 10
    batches = [draw_ids(FEATURES, 64, seed) for seed in range(100)]
    for layer, optimizer in zip(layers, optimizers, strict=True):
        train(layer, optimizer, batches, target)
    assert_same(layers, 2e-5)
    for name in layers[0].tables.specs:
        one, other = (optimizer.state_dict()["state"].get(name) for optimizer in optimizers)
        if one is not None:
            torch.testing.assert_close(one["sum"], other["sum"].cpu(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("decay", [0.0, 0.01])
@pytest.mark.parametrize("features", [BAGS, SHARED], ids=["bags", "shared"])
@pytest.mark.parametrize("config", STRATEGIES, ids=lambda c: f"{c.name}-{getattr(c, 'operation', '')}")
def test_bags_and_shared_vocabularies(config: StrategyNode, features: tuple[Feature, ...], decay: float):
    assert_same_after_bags(pair(config, features, 12, decay=decay), "rowwise_adagrad", steps=10)


@pytest.mark.gpu
@pytest.mark.parametrize("rule", [rule for rule, _ in RULES])
@pytest.mark.parametrize("features", [BAGS, SHARED], ids=["bags", "shared"])
@pytest.mark.parametrize("config", STRATEGIES, ids=lambda c: f"{c.name}-{getattr(c, 'operation', '')}")
def test_bags_and_shared_vocabularies_on_a_gpu(config: StrategyNode, features: tuple[Feature, ...], rule: str):
    assert_same_after_bags(pair(config, features, 12, "cuda", decay=0.01), rule, steps=20)


def assert_same_after_bags(layers: list[EmbeddingLayer], rule: str, steps: int) -> None:
    features = layers[0].features
    target = torch.randn(30, len(features), 12, generator=torch.Generator().manual_seed(1)) / 10
    for layer in layers:
        optimizer = layer.optimizer(rule, lr=0.05)
        for seed in range(steps):
            optimizer.zero_grad()
            vectors = layer(draw_ids(features, 30, seed).to(layer.device))
            loss = torch.nn.functional.mse_loss(vectors, target.to(layer.device), reduction="sum")
            (loss + layer.penalty()).backward()
            optimizer.step()
    assert_same(layers, 2e-5)
    torch.testing.assert_close(*(vectors_of(layer, draw_ids(features, 30)) for layer in layers), rtol=0, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_weights_of_ids(device: str):
    features = (Feature("t", 50, multi_valued=True), Feature("u", 20, multi_valued=True, pooling="mean"))
    ids = draw_ids(features, 20)
    weighted = Ids(
        ids.values, 2, ids.offsets, torch.rand(ids.values.numel(), generator=torch.Generator().manual_seed(0))
    )
    layers = pair(FullConfig(), features, 8, device)
    for layer in layers:
        optimizer = layer.optimizer("sgd", lr=0.5)
        layer(weighted.to(layer.device)).square().sum().backward()
        optimizer.step()
    assert_same(layers, 1e-6)


@pytest.mark.parametrize("features", [FEATURES, BAGS], ids=["single", "bags"])
@pytest.mark.parametrize("backend", EVERY)
def test_accumulation_is_one_update(backend: str, features: tuple[Feature, ...]):
    whole, parts = (EmbeddingLayer(features, 8, strategy="unified", budget=0.3, backend=backend) for _ in range(2))
    optimizers = [layer.optimizer("rowwise_adagrad", lr=0.1) for layer in (whole, parts)]
    halves = [draw_ids(features, 20, seed) for seed in (0, 1)]
    (whole(halves[0]).square().sum() + whole(halves[1]).square().sum()).backward()
    for half in halves:
        parts(half).square().sum().backward()
    for optimizer in optimizers:
        optimizer.step()
    assert_same([whole, parts], 1e-6)
    # As one update: Adagrad's first step moves every row by about lr, two steps would move it further.
    start = EmbeddingLayer(features, 8, strategy="unified", budget=0.3)
    moved = max((parts.tables.get(n) - start.tables.get(n)).abs().max().item() for n in parts.tables.specs)
    assert moved < 0.1 * 8**0.5 + 1e-4


@pytest.mark.parametrize("backend", EVERY)
def test_the_rate_is_the_one_at_the_step(backend: str):
    # FBGEMM takes the rate when it reads: a change between forward and step must still count.
    emb = EmbeddingLayer([Feature("x", 10)], 4, backend=backend)
    optimizer = emb.optimizer("sgd", lr=0.1)
    before = emb.vectors("x", torch.tensor([3]))
    emb(torch.tensor([[3]])).sum().backward()
    optimizer.param_groups[0]["lr"] = 0.5
    optimizer.step()
    torch.testing.assert_close(before - emb.vectors("x", torch.tensor([3])), torch.full((1, 4), 0.5))


MOVES = [
    (("reference", "cpu"), ("fused", "cpu")),
    (("fused", "cpu"), ("reference", "cpu")),
    *(
        pytest.param(source, goal, marks=pytest.mark.gpu)
        for source, goal in (
            (("fused", "cpu"), ("fused", "cuda")),
            (("fused", "cuda"), ("fused", "cpu")),
            (("reference", "cpu"), ("reference", "cuda")),
            (("fused", "cuda"), ("reference", "cpu")),
        )
    ),
]


@pytest.mark.parametrize("rule", ["adagrad", "rowwise_adagrad"])
@pytest.mark.parametrize(("source", "goal"), MOVES, ids=lambda place: "-".join(place))
def test_a_checkpoint_moves_between_back_ends_and_devices(
    rule: str, source: tuple[str, str], goal: tuple[str, str], tmp_path: Path
):
    batches = [draw_ids(FEATURES, 30, seed) for seed in range(6)]
    target = torch.zeros(30, 3, 30)
    layers = [EmbeddingLayer(FEATURES, 30, strategy="hash", budget=0.3, backend=b).to(d) for b, d in (source, goal)]
    optimizers = [layer.optimizer(rule, lr=0.1) for layer in layers]
    train(layers[0], optimizers[0], batches[:3], target)
    state = optimizers[0].state_dict()
    sums = {name: one["sum"] for name, one in state["state"].items()}
    store.save(tmp_path, 3, {**layers[0].state_dict(), **{f"sum.{name}": one for name, one in sums.items()}}, {})
    tensors = store.load_step(tmp_path, 3).tensors
    layers[1].load_state_dict({name: one for name, one in tensors.items() if not name.startswith("sum.")})
    optimizers[1].load_state_dict({**state, "state": {name: {"sum": tensors[f"sum.{name}"]} for name in sums}})
    again = optimizers[1].state_dict()["state"]
    assert all(torch.equal(again[name]["sum"].cpu(), one.cpu()) for name, one in sums.items())  # the same to the bit
    for layer, optimizer in zip(layers, optimizers, strict=True):
        train(layer, optimizer, batches[3:], target)
    assert_same(layers, 1e-5)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("backend", EVERY)
def test_a_gradient_that_is_not_finite_changes_nothing(backend: str, device: str):
    from recsys_embed import DivergedError

    emb = EmbeddingLayer(FEATURES, 8, strategy="full", backend=backend).to(device)
    optimizer = emb.optimizer("sgd", lr=1.0)
    before = {name: tensor.clone() for name, tensor in emb.state_dict().items()}
    factor = torch.ones(3, 1, device=device)
    factor[1] = float("nan")
    (emb(draw_ids(FEATURES, 5).to(emb.device)) * factor).sum().backward()
    with pytest.raises(DivergedError, match="feature 'item'"):
        optimizer.step()
    assert all(torch.equal(before[name], tensor) for name, tensor in emb.state_dict().items())


def test_initial_weights_are_the_same_everywhere_and_differ_by_seed():
    one, other = pair(HashConfig(), FEATURES, 8)
    other.optimizer("sgd", lr=1.0)
    assert_same([one, other], 0)
    assert not torch.equal(one.tables.get("user"), EmbeddingLayer(FEATURES, 8, seed=1).tables.get("user")[:1200])


@pytest.mark.parametrize("rule", ["sgd", "adagrad", "rowwise_adagrad"])
@pytest.mark.parametrize("backend", EVERY)
@pytest.mark.parametrize(("strategy", "dim"), [("hash", 8), ("hash", 30), ("robe", 8)])
def test_training_bytes_are_those_of_the_tensors(backend: str, rule: str, strategy: str, dim: int):
    emb = EmbeddingLayer(FEATURES, dim, strategy=strategy, budget=0.3, backend=backend)
    optimizer = emb.optimizer(rule, lr=0.1)
    ledger = emb.ledger()
    state = sum(s["sum"].numel() * 4 for s in optimizer.state_dict()["state"].values())
    weights = sum(t.numel() * 4 for t in emb.state_dict().values())
    assert ledger["checkpoint_bytes"].sum() == state + weights
    if backend == "fused":
        operators = emb.tables._operators
        held = sum(op.weights_host.numel() * 4 for op in operators)
        held += sum(s.numel() * 4 for op in operators for states in op.split_optimizer_states() for s in states)
        assert ledger["train_bytes"].sum() == held
    else:
        assert ledger["train_bytes"].sum() == sum(
            b.numel() * 4 for n, b in emb.tables.named_buffers() if n.endswith((".weights", ".state"))
        )


@pytest.mark.parametrize("device", DEVICES)
def test_fused_tables_refuse_to_move(device: str):
    from recsys_embed import ConfigError

    emb = EmbeddingLayer(FEATURES, 8, backend="fused").to(device)
    emb.optimizer("sgd", lr=0.1)
    assert emb.to(device) is emb
    with pytest.raises(ConfigError, match=r"move the layer before optimizer\(\)"):
        emb.double()


def test_auto_leaves_alone_what_padding_would_multiply(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(native, "load", lambda: "no native back end")

    def tables(strategy: StrategyNode, backend: str) -> str:
        emb = EmbeddingLayer(FEATURES, 4, strategy=strategy, budget=0.5, exact=(), backend=backend)
        emb.optimizer("rowwise_adagrad", lr=0.1)
        return type(emb.tables).__name__

    assert tables(RobeConfig(), "auto") == tables(UnifiedConfig(chunks=4), "auto") == "ReferenceTables"
    assert tables(UnifiedConfig(chunks=2), "auto") == tables(UnifiedConfig(chunks=1), "auto") == "FusedTables"
    assert tables(RobeConfig(), "fused") == "FusedTables"
    # By bytes, not by name: a small array beside large tables of width 4 goes with them.
    mixed = EmbeddingLayer(FEATURES, 4, strategy={"city": "robe", "*": "full"}, budget=0.99, exact=())
    mixed.optimizer("sgd", lr=0.1)
    assert type(mixed.tables).__name__ == "FusedTables"
