"""The update of the reference back end: two ways to sum the gradients of a row, one result, and untouched rows stay."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recsys_embed import EmbeddingLayer, Feature
from recsys_embed.config import RobeConfig, StrategyNode, UnifiedConfig
from recsys_embed.ids import Ids
from recsys_embed.tables import sums
from recsys_embed.tables.base import RULES
from recsys_embed.testing import BAGS, FEATURES, draw_ids, train_steps


@given(
    count=st.integers(1, 200),
    occurrences=st.integers(1, 300),
    width=st.sampled_from([1, 2, 5]),
    seed=st.integers(0, 10**6),
)
def test_both_ways_of_summing_agree_to_the_bit(count: int, occurrences: int, width: int, seed: int):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(0, count, (occurrences,), generator=generator)
    gradients = torch.randn(occurrences, width, generator=generator)
    touched, summed = sums._in_place(rows, gradients, count)
    others, other_sums = sums._by_sorting(rows, gradients)
    assert torch.equal(touched, others)
    assert torch.equal(summed, other_sums)
    exact = {row: torch.zeros(width, dtype=torch.float64) for row in sorted(set(rows.tolist()))}
    for row, gradient in zip(rows.tolist(), gradients.double(), strict=True):
        exact[row] += gradient
    assert touched.tolist() == list(exact)
    torch.testing.assert_close(summed.double(), torch.stack(list(exact.values())), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("count", "width", "way"), [(200, 1, "in_place"), (201, 1, "by_sorting"), (13, 16, "by_sorting")]
)
def test_the_way_follows_from_sizes(monkeypatch: pytest.MonkeyPatch, count: int, width: int, way: str):
    taken = []
    for name in ("in_place", "by_sorting"):
        monkeypatch.setattr(sums, f"_{name}", lambda *_, name=name: taken.append(name) or (None, None))
    sums.sums_by_row(torch.zeros(100, dtype=torch.int64), torch.zeros(100, width), count)
    assert taken == [way]


@pytest.mark.parametrize("features", [FEATURES, BAGS], ids=["single", "bags"])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("config", [UnifiedConfig(), RobeConfig()], ids=["unified", "robe"])
def test_training_is_the_same_either_way(
    monkeypatch: pytest.MonkeyPatch, config: StrategyNode, rule: str, features: tuple[Feature, ...]
):
    layers, states = [], []
    batches = [draw_ids(features, 40, seed) for seed in range(8)]
    for dense in (0, 10**9):
        monkeypatch.setattr(sums, "DENSE", dense)
        layer = EmbeddingLayer(features, 8, strategy=config, budget=0.2, exact=(), backend="reference")
        optimizer = layer.optimizer(rule, lr=0.1)
        train_steps(layer, optimizer, batches, torch.zeros(40, 3, 8))
        layers.append(layer.state_dict())
        states.append(optimizer.state_dict()["state"])
    for name, weights in layers[0].items():
        assert torch.equal(weights, layers[1][name])
    for name, state in states[0].items():
        assert all(torch.equal(one, states[1][name][key]) for key, one in state.items())


@pytest.mark.parametrize("rule", ["adagrad", "rowwise_adagrad"])
def test_untouched_rows_stay_where_the_store_is_small(rule: str):
    # Without eps an update of an untouched row would divide zero by zero.
    emb = EmbeddingLayer([Feature("x", 20)], 2, backend="reference")
    optimizer = emb.optimizer(rule, lr=0.1, eps=0.0)
    before = emb.tables.get("x").clone()
    ids = torch.arange(0, 20, 2).repeat(10)
    assert sums.DENSE * ids.numel() >= 20 * 2
    emb(Ids(ids.unsqueeze(0), 1)).sum().backward()
    optimizer.step()
    after, state = emb.tables.get("x"), optimizer.state_dict()["state"]["x"]["sum"]
    assert torch.equal(after[1::2], before[1::2])
    assert torch.equal(state[1::2], torch.zeros_like(state[1::2]))
    torch.testing.assert_close(before[::2] - after[::2], torch.full((10, 2), 0.1))
