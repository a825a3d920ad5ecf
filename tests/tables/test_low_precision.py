"""Tables of integers and halves: what is held, how it is updated, saved, resumed, and refused."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from recsys_embed import ConfigError, EmbeddingLayer, Feature
from recsys_embed.ids import Ids
from recsys_embed.storage import STORAGE_TYPES
from recsys_embed.tables import native
from recsys_embed.tables.base import RULES
from recsys_embed.tables.rounding import TORCH_TYPES, quantum
from recsys_embed.testing import BAGS, FEATURES, draw_ids, train_steps

LOW = [name for name in STORAGE_TYPES if name != "fp32"]
# Every kind of group: integers around two midpoints, halves, fp32, two scales of one type, bags.
MIXED: dict[str, Any] = {
    "user": {"name": "compositional", "storage": "int8"},
    "tags": {"name": "hash", "storage": "int8", "scale": 0.002},
    "*": {"name": "full", "storage": "bf16"},
}


def mixed(**options: Any) -> EmbeddingLayer:
    return EmbeddingLayer(BAGS, 8, strategy=MIXED, budget=0.2, exact=(), **options)


def low(storage: str, **options: Any) -> EmbeddingLayer:
    strategy = {"name": "hash", "storage": storage}
    return EmbeddingLayer(FEATURES, 8, strategy=strategy, budget=0.1, exact=(), **options)


def targets(seed: int = 1, features: int = 3) -> Tensor:
    return torch.randn(30, features, 8, generator=torch.Generator().manual_seed(seed)) / 10


# --- what is held --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("storage", STORAGE_TYPES)
def test_bytes_in_memory_are_those_of_the_stored_type(storage: str, rule: str):
    emb = low(storage, backend="reference")
    rows = sum(spec.rows for spec in emb.tables.specs.values())
    size, state = TORCH_TYPES[storage].itemsize, {"sgd": 0, "adagrad": 8, "rowwise_adagrad": 1, "lazy_adam": 16}[rule]
    assert emb.plan.serve_bytes == rows * 8 * size
    optimizer = emb.optimizer(rule, lr=0.1)
    assert not list(emb.parameters())
    assert {tensor.dtype for tensor in emb.state_dict().values()} == {TORCH_TYPES[storage]}
    floats = {n: b for n, b in emb.tables.named_buffers() if n.endswith((".weights", ".state"))}
    held = sum(buffer.untyped_storage().nbytes() for buffer in floats.values())
    assert held == rows * (8 * size + 4 * state) == emb.ledger()["train_bytes"].sum()
    saved = [*emb.state_dict().values(), *(t for one in optimizer.state_dict()["state"].values() for t in one.values())]
    assert sum(t.numel() * t.element_size() for t in saved) == held == emb.ledger()["checkpoint_bytes"].sum()
    assert emb.ledger()["serve_bytes"].sum() == emb.plan.serve_bytes
    # No other tensor is of that size: there is no float copy anywhere.
    big = [b for n, b in emb.named_buffers() if n not in {f"tables.{name}" for name in floats} and b.numel() > rows]
    assert not big


def test_tables_of_one_width_and_type_lie_together():
    emb = mixed()
    emb.optimizer("sgd", lr=0.1)
    dtypes = {name: emb.tables.stored(name).dtype for name in emb.tables.specs}
    assert dtypes == {"user.0": torch.int8, "user.1": torch.int8, "tags": torch.int8, "city": torch.bfloat16}
    assert {name: spec.storage.midpoint for name, spec in emb.tables.specs.items()} == {
        "user.0": 0.0,
        "user.1": 1.0,
        "tags": 0.0,
        "city": 0.0,
    }
    # The factor near 1 is within its range, and away from both ends.
    assert -60 < emb.tables.stored("user.1").min() < emb.tables.stored("user.1").max() < 60
    assert emb.tables.specs["tags"].storage.scale == 0.002


@pytest.mark.parametrize("storage", ["int8", "int16"])
def test_weights_saturate(storage: str):
    emb = EmbeddingLayer([Feature("x", 3)], 2, strategy={"name": "full", "storage": storage})
    optimizer = emb.optimizer("sgd", lr=1.0)
    (emb(torch.tensor([[0, 1]])) * torch.tensor([[[100.0]], [[-100.0]]])).sum().backward()
    optimizer.step()
    limits = torch.iinfo(TORCH_TYPES[storage])
    assert emb.tables.stored("x")[:2].tolist() == [[limits.min] * 2, [limits.max] * 2]
    torch.testing.assert_close(emb.vectors("x", torch.tensor([1])), torch.full((1, 2), 1.27), rtol=0.01, atol=0)


# --- updates -------------------------------------------------------------------------------------------------


def slow_update(
    weights: list[list[float]],
    state: list[list[float]],
    gradients: dict[int, list[float]],
    rule: str,
    lr: float,
    step: int,
) -> None:
    """The rule in Python floats, row by row; steps count from 1."""
    for row, gradient in gradients.items():
        if rule == "lazy_adam":
            for column, one in enumerate(gradient):
                for place, beta, new in ((column, 0.9, one), (len(gradient) + column, 0.999, one * one)):
                    state[row][place] = beta * state[row][place] + (1 - beta) * new
                mean, square = state[row][column], state[row][len(gradient) + column]
                rate = lr * (1 - 0.999**step) ** 0.5 / (1 - 0.9**step)
                weights[row][column] -= rate * mean / (square**0.5 + 1e-8)
            continue
        squares = [one * one for one in gradient]
        if rule == "rowwise_adagrad":
            squares = [sum(squares) / len(squares)]
        for place, square in enumerate(squares if rule != "sgd" else []):
            state[row][place] += square
        for column, one in enumerate(gradient):
            sums = 1.0 if rule == "sgd" else state[row][column if rule == "adagrad" else 0]
            weights[row][column] -= lr * one / (sums**0.5 + 1e-8)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("storage", LOW)
def test_updates_equal_a_slow_loop_up_to_a_quantum(storage: str, rule: str):
    emb = EmbeddingLayer([Feature("x", 12, multi_valued=True)], 5, strategy={"name": "full", "storage": storage})
    optimizer = emb.optimizer(rule, lr=0.05)
    spec = emb.tables.specs["x"]
    generator = torch.Generator().manual_seed(0)
    for step in range(6):
        ids = draw_ids([Feature("x", 12, multi_valued=True)], 8, step)
        coefficients = torch.randn(8, 1, 5, generator=generator)
        before = emb.tables.get("x").double()
        weights, state = before.tolist(), emb.tables.get_state("x").double().tolist()
        gradients: dict[int, list[float]] = {}
        for bag in range(8):
            for row in ids.values[ids.offsets[bag] : ids.offsets[bag + 1]].tolist():
                old = gradients.setdefault(row, [0.0] * 5)
                gradients[row] = [a + b for a, b in zip(old, coefficients[bag, 0].tolist(), strict=True)]
        slow_update(weights, state, gradients, rule, 0.05, step + 1)
        (emb(ids) * coefficients).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        after = emb.tables.get("x").double()
        goal = torch.tensor(weights, dtype=torch.float64)
        unit = torch.maximum(quantum(goal.float(), spec.storage), quantum(before.float(), spec.storage)).double()
        assert bool(((after - goal).abs() <= unit * 1.001 + 1e-6).all())
        untouched = [row for row in range(12) if row not in gradients]
        assert torch.equal(after[untouched], before[untouched])
        if rule != "sgd":
            torch.testing.assert_close(emb.tables.get_state("x").double().tolist(), state, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("storage", ["int8", "bf16"])
def test_small_updates_arrive_on_average(storage: str):
    """20 steps of 1e-5 through the layer; at a weight of 1 either type loses each of them to nearest."""
    emb = EmbeddingLayer([Feature("x", 30_000)], 16, strategy={"name": "full", "storage": storage})
    optimizer = emb.optimizer("sgd", lr=1e-5)
    emb.tables.put("x", torch.ones(30_000, 16))
    ids = torch.arange(30_000).unsqueeze(0)
    for _ in range(20):
        emb(ids).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = 1 - emb.tables.get("x").double().mean().item()
    assert moved == pytest.approx(20e-5, rel=0.1)


def test_rounding_differs_by_row_step_and_seed_and_by_nothing_else():
    def after(steps: int, seed: int = 0, batch: list[int] | None = None) -> Tensor:
        emb = EmbeddingLayer([Feature("x", 64)], 16, strategy={"name": "full", "storage": "int8"}, seed=seed)
        optimizer = emb.optimizer("sgd", lr=0.005)
        emb.tables.put("x", torch.zeros(64, 16))
        for _ in range(steps):
            emb(torch.tensor([batch or list(range(64))])).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return emb.tables.stored("x").clone()

    one = after(1)
    assert 0.4 < (one == -1).float().mean() < 0.6
    assert torch.equal(one, after(1))
    assert len(torch.unique(one, dim=0)) == 64
    second = after(2) - one
    assert not torch.equal(second, one)
    assert not torch.equal(after(1, seed=1), one)
    # Whoever else is in the batch, and in whatever order.
    some = after(1, batch=[40, 7, 3])
    assert torch.equal(some[[3, 7, 40]], one[[3, 7, 40]])


def test_accumulated_reads_are_one_update():
    layers = [low("int16"), low("int16")]
    whole, halves = [emb.optimizer("rowwise_adagrad", lr=0.1) for emb in layers]
    ids = draw_ids(FEATURES, 30)
    layers[0](ids).square().sum().backward()
    whole.step()
    for part in (slice(0, 12), slice(12, 30)):
        layers[1](Ids(ids.values[:, part], 3)).square().sum().backward()
    halves.step()
    for name in layers[0].tables.specs:
        one, other = (emb.tables.stored(name).int() for emb in layers)
        assert (one - other).abs().max() <= 1  # sums in another order may fall on the other side of the noise
        assert (one != other).float().mean() < 0.01


# --- saving, resuming, moving --------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_a_resumed_run_is_the_same_bits(rule: str):
    batches = [draw_ids(BAGS, 30, seed) for seed in range(8)]
    whole = mixed()
    train_steps(whole, whole.optimizer(rule, lr=0.03), batches, targets())
    first, second, third = mixed(), mixed(seed=0), mixed()
    optimizer = first.optimizer(rule, lr=0.03)
    train_steps(first, optimizer, batches[:4], targets())
    saved, state = copy.deepcopy(first.state_dict()), copy.deepcopy(optimizer.state_dict())
    resumed = second.optimizer(rule, lr=0.03)
    second.load_state_dict(saved)
    resumed.load_state_dict(state)
    train_steps(second, resumed, batches[4:], targets())
    for name, stored in whole.state_dict().items():
        assert torch.equal(second.state_dict()[name], stored)
    # The steps are needed for it: without them the rounding is another.
    forgetful = third.optimizer(rule, lr=0.03)
    third.load_state_dict(saved)
    forgetful.load_state_dict({**state, "steps": 0})
    train_steps(third, forgetful, batches[4:], targets())
    assert any(not torch.equal(third.state_dict()[name], stored) for name, stored in whole.state_dict().items())


@pytest.mark.parametrize("storage", STORAGE_TYPES)
def test_stored_and_float_weights_load_before_and_after(storage: str):
    source = low(storage, seed=3)
    floats = {name: tensor.detach().clone() for name, tensor in source.state_dict().items()}
    assert {tensor.dtype for tensor in floats.values()} == {torch.float32}
    source.freeze()
    stored = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    ids = draw_ids(FEATURES, 30)
    for weights in (stored, floats):
        before, after = low(storage), low(storage)
        after.optimizer("sgd", lr=0.1)
        for emb in (before, after):
            emb.load_state_dict(weights)
        assert torch.equal(after(ids), source(ids))
        if weights is stored:
            assert torch.equal(before(ids), source(ids))
        before.optimizer("sgd", lr=0.1)
        for emb in (before, after):
            assert all(torch.equal(emb.state_dict()[name], tensor) for name, tensor in stored.items())


def test_integers_of_another_type_are_not_loaded():
    small = {"name": "full", "storage": "int8"}
    weights = EmbeddingLayer([Feature("x", 5)], 4, strategy=small).freeze().state_dict()
    for strategy in ("full", {"name": "full", "storage": "int16"}):
        with pytest.raises(RuntimeError, match=r"tables\.x is torch\.int8, and the table is stored as"):
            EmbeddingLayer([Feature("x", 5)], 4, strategy=strategy).load_state_dict(weights)
    nan = {"tables.x": torch.full((5, 4), float("nan"))}
    with pytest.raises(RuntimeError, match="not all numbers"):
        EmbeddingLayer([Feature("x", 5)], 4, strategy=small).freeze().load_state_dict(nan)


@pytest.mark.parametrize("storage", STORAGE_TYPES)
def test_rows_are_moved_as_they_are(storage: str):
    emb = EmbeddingLayer([Feature("x", 10)], 6, strategy={"name": "full", "storage": storage}, backend="reference")
    optimizer = emb.optimizer("adagrad", lr=0.1)
    emb(torch.tensor([[3, 5]])).square().sum().backward()
    optimizer.step()
    kept = emb.tables.get_rows("x", torch.tensor([3, 5]))
    assert kept.weights.dtype == kept.state.dtype == torch.float32
    emb.tables.put_rows("x", torch.tensor([1, 0]), kept)
    for to, source in ((1, 3), (0, 5)):
        assert torch.equal(emb.tables.stored("x")[to], emb.tables.stored("x")[source])
        assert torch.equal(emb.tables.get_state("x")[to], emb.tables.get_state("x")[source])


@pytest.mark.parametrize("storage", STORAGE_TYPES)
def test_bags_may_all_be_empty(storage: str):
    strategy = {"name": "hash", "storage": storage}
    emb = EmbeddingLayer([Feature("x", 50, multi_valued=True)], 4, strategy=strategy, budget=0.2, exact=())
    optimizer = emb.optimizer("sgd", lr=0.1)
    ids = Ids(torch.zeros(0, dtype=torch.int64), 1, torch.zeros(4, dtype=torch.int64))
    vectors = emb(ids)
    assert torch.equal(vectors, torch.zeros(3, 1, 4))
    vectors.sum().backward()
    optimizer.step()


def test_a_copy_is_of_plain_parameters_again():
    emb, ids = mixed(backend="reference"), draw_ids(BAGS, 30)
    optimizer = emb.optimizer("sgd", lr=0.03)
    train_steps(emb, optimizer, [ids], targets())
    twin = copy.deepcopy(emb)
    assert torch.equal(twin(ids), emb(ids))
    assert {parameter.dtype for parameter in twin.parameters()} == {torch.float32}
    train_steps(twin, twin.optimizer("sgd", lr=0.03), [ids], targets())
    assert not torch.equal(twin(ids), emb(ids))
    frozen = copy.deepcopy(copy.deepcopy(emb).freeze())
    assert torch.equal(frozen(ids), emb(ids))
    assert all(torch.equal(frozen.state_dict()[name], tensor) for name, tensor in emb.state_dict().items())


# --- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", LOW)
@pytest.mark.parametrize("features", [FEATURES, BAGS], ids=["single", "bags"])
def test_without_a_tables_optimizer_they_are_not_trained(storage: str, features: tuple[Feature, ...]):
    strategy = {"user": {"name": "hash", "storage": storage}, "*": "full"}
    emb = EmbeddingLayer(features, 8, strategy=strategy, budget=0.5, exact=())
    with pytest.raises(ConfigError, match=rf"table 'user' is stored as {storage}.*call optimizer\(\) first"):
        emb(draw_ids(features, 5)).sum().backward()
    with pytest.raises(ConfigError, match=r"call optimizer\(\) first"):
        emb.after_step()
    with torch.no_grad():
        emb(draw_ids(features, 5))


def test_a_frozen_layer_is_only_read():
    emb = low("int8").freeze()
    assert not emb(draw_ids(FEATURES, 5)).requires_grad
    assert emb.freeze() is emb
    emb.after_step()  # of whatever else the model trains
    with pytest.raises(ConfigError, match="only read"):
        emb.optimizer("sgd", lr=0.1)
    trained = low("int8")
    trained.optimizer("sgd", lr=0.1)
    with pytest.raises(ConfigError, match="freeze a copy"):
        trained.freeze()


@pytest.mark.parametrize("storage", LOW)
def test_the_fused_back_end_refuses_by_name_and_auto_takes_the_other(storage: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(native, "load", lambda: "no native back end")
    pytest.importorskip("fbgemm_gpu", reason="the fused back end needs FBGEMM")
    with pytest.raises(ConfigError, match=f"table 'city' is stored as {storage}"):
        low(storage, backend="fused").optimizer("sgd", lr=0.1)
    emb = low(storage)
    emb.optimizer("sgd", lr=0.1)
    assert type(emb.tables).__name__ == "ReferenceTables"


def test_held_tables_keep_their_type():
    emb = low("bf16").freeze()
    assert emb.to("cpu") is emb
    for change in (emb.double, emb.half):
        with pytest.raises(ConfigError, match="stored as bf16"):
            change()
    # Before they are held they are ordinary weights; what they are then stored as is the same.
    ids, before = draw_ids(FEATURES, 5), low("int8").freeze()
    assert torch.equal(low("int8").double().freeze()(ids), before(ids))
