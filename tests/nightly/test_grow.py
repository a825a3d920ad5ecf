"""Layers over vocabularies that grow, against layers that were born as large; and rows that begin anew."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recsys_embed import ConfigError, EmbeddingLayer, Feature
from recsys_embed.config import STRATEGIES
from recsys_embed.embeddings import CLASSES, Compositional
from recsys_embed.embeddings.base import TableSpec
from recsys_embed.ids import Ids
from recsys_embed.tables.base import INIT_BLOCK, RULES, Tables, draw, initial_rows
from recsys_embed.testing import draw_ids, train_steps

DIM = 6
FEATURES = (
    Feature("user", 90, counts=np.arange(90, 0, -1)),
    Feature("friends", multi_valued=True, pooling="mean", vocabulary="user", counts=np.arange(90, 0, -1)),
    Feature("city", 5, counts=np.full(5, 9)),
    Feature("item", 40, counts=np.full(40, 3)),
)
GROWN = {"user": 130, "city": 6}
LAYERS: dict[str, dict[str, Any]] = {
    "full": {},
    "full int8": {"strategy": {"name": "full", "storage": "int8"}},
    "full fp16": {"strategy": {"name": "full", "storage": "fp16"}},
    "hash": {"strategy": "hash", "budget": 0.4},
    "hash int16": {"strategy": {"name": "hash", "storage": "int16"}, "budget": 0.4},
    "hash exact city": {"strategy": "hash", "budget": 0.4, "exact": ["city"]},
    "unified": {"strategy": "unified", "budget": 0.4},
    "robe": {"strategy": "robe", "budget": 0.4},
    "compositional": {"strategy": "compositional", "budget": 0.4},
    "mixed": {"strategy": {"item": "unified", "*": "full"}, "budget": 0.9},
}


def layer_of(what: str, **more: Any) -> EmbeddingLayer:
    return EmbeddingLayer(FEATURES, DIM, backend="reference", seed=3, **LAYERS[what], **more)


def batches(count: int, seed: int = 0) -> list[Ids]:
    return [draw_ids(layer_of("full").features, 20, seed + one) for one in range(count)]


def trained(layer: EmbeddingLayer, rule: str = "adagrad") -> torch.optim.Optimizer:
    optimizer = layer.optimizer(rule, lr=0.1)
    train_steps(layer, optimizer, batches(6), target())
    return optimizer


def target() -> torch.Tensor:
    return torch.randn(20, len(FEATURES), DIM, generator=torch.Generator().manual_seed(1))


def states(tables: Tables) -> dict[str, torch.Tensor]:
    return {name: torch.cat([tables.get(name), tables.get_state(name)], dim=1).clone() for name in tables.specs}


@given(st.integers(1, 2 * INIT_BLOCK + 9), st.integers(0, 2**62), st.data())
def test_an_initial_row_is_a_function_of_its_number_alone(rows: int, seed: int, data: st.DataObject) -> None:
    spec = TableSpec("some", rows, 1)
    whole = torch.empty(rows, 1)
    draw(whole, spec, seed)
    some = torch.tensor(data.draw(st.lists(st.integers(0, rows - 1), max_size=5)), dtype=torch.int64)
    assert torch.equal(initial_rows(spec, seed, some), whole[some])
    longer = torch.empty(rows + 70_000, 1)
    draw(longer, TableSpec("some", rows + 70_000, 1), seed)
    assert torch.equal(longer[:rows], whole)


@given(st.integers(1, 40), st.integers(1, 30), st.integers(1, 30))
def test_the_first_rows_of_a_long_draw_are_those_of_a_short_one(width: int, rows: int, more: int) -> None:
    short, long = torch.empty(rows, width), torch.empty(rows + more, width)
    draw(short, TableSpec("some", rows, width), 7)
    draw(long, TableSpec("some", rows + more, width), 7)
    assert torch.equal(long[:rows], short)


@pytest.mark.parametrize("what", LAYERS)
def test_a_grown_layer_has_the_old_rows_and_those_of_one_born_as_large(what: str) -> None:
    layer = layer_of(what)
    optimizer = trained(layer)
    grown = layer.grow(GROWN)
    again = grown.optimizer("adagrad", lr=0.1)
    with grown.tables.growing():
        again.load_state_dict(optimizer.state_dict())
    fresh = layer_of(what).grow(GROWN)
    fresh.optimizer("adagrad", lr=0.1)
    before, after, never = states(layer.tables), states(grown.tables), states(fresh.tables)
    for name, old in before.items():
        assert torch.equal(after[name][: len(old)], old)
        assert torch.equal(after[name][len(old) :], never[name][len(old) :])
        assert not fresh.tables.get_state(name).any()
    own = {"full": {"user", "city"}, "hash exact city": {"city"}, "mixed": {"user", "city"}}.get(what.split(" int")[0])
    if own is not None:
        assert {name for name in before if len(before[name]) < len(after[name])} == own
    ids = batches(1, 40)[0]
    with torch.no_grad():
        assert torch.equal(grown(ids), layer(ids))


def test_rows_of_new_ids_are_those_of_a_table_born_as_large() -> None:
    grown, large = layer_of("full").grow({"user": 130}), EmbeddingLayer([Feature("user", 130)], DIM, seed=3)
    assert torch.equal(grown.tables.get("user"), large.tables.get("user"))


@pytest.mark.parametrize("what", LAYERS)
@pytest.mark.parametrize("rule", RULES)
def test_training_goes_on_as_if_nothing_had_grown(what: str, rule: str) -> None:
    """The ids there were, bit for bit, optimizer state and the noise of rounding included."""
    layer = layer_of(what)
    optimizer = trained(layer, rule)
    grown = layer.grow(GROWN)
    again = grown.optimizer(rule, lr=0.1)
    with grown.tables.growing():
        again.load_state_dict(optimizer.state_dict())
    for one, its in ((layer, optimizer), (grown, again)):
        train_steps(one, its, batches(3, 60), target())
    before, after = states(layer.tables), states(grown.tables)
    assert all(torch.equal(after[name][: len(old)], old) for name, old in before.items())
    new = torch.tensor([100, 129])
    assert grown.vectors("user", new).shape == (2, DIM)


def test_sizes_stay_those_of_the_birth_and_bytes_are_of_the_rows_there_are() -> None:
    layer = layer_of("hash exact city")
    grown = layer.grow(GROWN)
    assert {name: spec.rows for name, spec in grown.tables.specs.items()} == {
        name: spec.rows + (1 if name == "city" else 0) for name, spec in layer.tables.specs.items()
    }
    assert grown.plan.serve_bytes == layer.plan.serve_bytes + 4 * DIM
    assert grown.plan.full_bytes == layer.plan.full_bytes + (40 + 1) * 4 * DIM
    twice = grown.grow({"user": 200})
    assert [f.born for f in twice.features] == [90, 90, 5, None]
    assert int(twice.ledger()["serve_bytes"].sum()) == twice.plan.serve_bytes


def test_ids_that_grew_differ_in_a_digit() -> None:
    layer = layer_of("compositional")
    grown = layer.grow({"user": 500})
    strategy = next(one for one in grown.plan.strategies if isinstance(one, Compositional))
    ids = torch.arange(500)
    digits = strategy.index_maps["rows"]
    seen = {tuple(int(digits.digit(one, 0, slot)) for slot in range(strategy.partitions)) for one in ids}
    assert len(seen) == 500
    assert all(max(d[s] for d in seen) < strategy.radices["user"][s] for s in range(strategy.partitions))


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_a_strategy_takes_new_ids_or_says_that_it_cannot(name: str) -> None:
    config, cls = {"name": name}, CLASSES[STRATEGIES[name]]
    budget = None if name == "full" else 0.4
    layer = EmbeddingLayer(FEATURES, DIM, strategy=config, budget=budget, exact=())
    if cls.grows():
        assert layer.grow({"user": 91}).features[0].size == 91
        return
    assert layer.grow({"user": 90}).features == layer.features  # nothing new
    with pytest.raises(ConfigError, match=f"strategy '{name}' cannot take new ids"):
        layer.grow({"user": 91})


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"nobody": 5}, "no vocabulary 'nobody'"),
        ({"user": 89}, "'user' has 90 ids already"),
        ({"friends": 99}, "no voc"),
    ],
)
def test_what_cannot_grow_is_named(sizes: Mapping[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        layer_of("full").grow(sizes)


def test_hashed_vocabularies_have_nothing_to_grow() -> None:
    layer = EmbeddingLayer([Feature("url", hashed=True)], DIM, strategy="hash", budget="1KB")
    with pytest.raises(ConfigError, match="hashed"):
        layer.grow({"url": 5})


# --- rows that begin anew -------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["reference", "fused"])
@pytest.mark.parametrize("rule", ["adagrad", "rowwise_adagrad", "sgd"])
def test_a_reset_row_is_that_of_a_fresh_table_and_no_other_row_moves(backend: str, rule: str) -> None:
    if backend == "fused":
        pytest.importorskip("fbgemm_gpu", reason="the fused back end needs FBGEMM")
    fresh, layer = (EmbeddingLayer(FEATURES, DIM, backend=backend, seed=3) for _ in range(2))
    trained(layer, rule)
    fresh.optimizer(rule, lr=0.1)
    before, never = states(layer.tables), states(fresh.tables)
    assert layer.reset("user", torch.tensor([0, 7, 89]))
    after = states(layer.tables)
    for name in before:
        gone = torch.isin(torch.arange(len(before[name])), torch.tensor([0, 7, 89] if name == "user" else []))
        assert torch.equal(after[name][gone], never[name][gone])
        assert torch.equal(after[name][~gone], before[name][~gone])
    assert not torch.equal(before["user"][[0, 7, 89]], never["user"][[0, 7, 89]])  # there was something to reset


@pytest.mark.parametrize("storage", ["fp16", "bf16", "int8", "int16"])
def test_a_reset_row_is_stored_as_that_of_a_fresh_table(storage: str) -> None:
    config = {"name": "full", "storage": storage}
    fresh, layer = (EmbeddingLayer(FEATURES, DIM, strategy=config, seed=3) for _ in range(2))
    trained(layer)
    fresh.optimizer("adagrad", lr=0.1)
    layer.reset("user", torch.arange(90))
    assert torch.equal(layer.tables.stored("user"), fresh.tables.stored("user"))
    assert layer.tables.specs["user"].storage.dtype == storage


def test_rows_that_ids_share_stay() -> None:
    layer = layer_of("hash")
    trained(layer)
    before = states(layer.tables)
    assert not layer.reset("user", torch.tensor([1, 2]))
    assert all(torch.equal(states(layer.tables)[name], old) for name, old in before.items())


def test_rows_of_blocks_are_reset_where_they_lie() -> None:
    config = {"name": "mixed_dimension", "width": (4, 0, 3)}
    fresh, layer = (EmbeddingLayer(FEATURES, DIM, strategy=config, exact=(), seed=3) for _ in range(2))
    trained(layer)
    fresh.optimizer("adagrad", lr=0.1)
    before, never = states(layer.tables), states(fresh.tables)
    assert layer.reset("user", torch.tensor([3, 40, 80]))  # the second is in the block that has no rows
    after = states(layer.tables)
    for name, row in (("user.0", 3), ("user.2", 80 - 60)):
        assert torch.equal(after[name][row], never[name][row])
        rest = torch.arange(len(never[name])) != row
        assert torch.equal(after[name][rest], before[name][rest])
    assert all(torch.equal(after[name], old) for name, old in before.items() if not name.startswith("user"))


@pytest.mark.parametrize("name", ["cafe", "pep"])
def test_a_strategy_that_keeps_more_of_an_id_refuses(name: str) -> None:
    layer = EmbeddingLayer(FEATURES, DIM, strategy=name, budget=0.4, exact=())
    with pytest.raises(ConfigError, match=f"{name}.* cannot give the ids of 'user'"):
        layer.reset("user", torch.tensor([1]))
