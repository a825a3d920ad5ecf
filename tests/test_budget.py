"""Budgets: what the forms mean, and that every size is met, marked coarse, or refused with a size that works."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_embed import BudgetError, ByteBudget, ConfigError, EmbeddingLayer, Feature
from recsys_embed.budget import EXACT_SHARE, plan
from recsys_embed.config import (
    CompositionalConfig,
    FullConfig,
    HashConfig,
    MixedDimensionConfig,
    RobeConfig,
    StrategyNode,
    UnifiedConfig,
)
from recsys_embed.embeddings.base import apportion

CONFIGS: list[StrategyNode] = [
    FullConfig(),
    HashConfig(),
    UnifiedConfig(),
    UnifiedConfig(chunks=1, tables=3),
    CompositionalConfig(),
    CompositionalConfig(operation="add", partitions=3),
    CompositionalConfig(operation="concat"),
    RobeConfig(),
    MixedDimensionConfig(),
    FullConfig(storage="int8"),
    HashConfig(storage="int8"),
    UnifiedConfig(chunks=2, storage="bf16"),
    CompositionalConfig(storage="int16"),
]
SIZES = st.lists(st.sampled_from([1, 2, 3, 7, 40, 500, 7000, 60_000]), min_size=1, max_size=10)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("64MB", 64_000_000),
        ("64MiB", 2**26),
        ("1.5 GB", 1_500_000_000),
        ("300kb", 300_000),
        ("10x", 100_000),
        ("0.1", 100_000),
        (0.1, 100_000),
        (1.0, 1_000_000),
        (2, 2),
        ("12345", 12345),
    ],
)
def test_forms(value: object, expected: int):
    assert ByteBudget.parse(value).resolve(full_bytes=1_000_000) == expected


@pytest.mark.parametrize(
    "value", [0, 1, -5, 0.0, -0.5, float("nan"), float("inf"), "", "MB", "0x", "64 QB", "1e3", True]
)
def test_what_is_no_budget(value: object):
    with pytest.raises(ConfigError):
        ByteBudget.parse(value)


@given(sizes=SIZES, dim=st.sampled_from([2, 4, 30]), kept=st.floats(0.0005, 1.0), config=st.sampled_from(CONFIGS))
def test_every_budget_is_met_or_coarse_or_refused(sizes: list[int], dim: int, kept: float, config: StrategyNode):
    features = [Feature(f"f{i}", size, vocabulary=f"f{i}") for i, size in enumerate(sizes)]
    full = sum(sizes) * dim * 4
    budget = max(2, int(kept * full))
    try:
        made = plan(features, dim, {"*": config}, budget)
    except BudgetError as error:
        refusal = error
        made = plan(features, dim, {"*": config}, refusal.nearest_bytes)
    else:
        refusal = None
    if refusal is not None:
        assert budget < refusal.min_bytes <= refusal.max_bytes == full
        budget = refusal.nearest_bytes
    assert made.serve_bytes <= budget
    assert made.coarse or made.serve_bytes >= 0.98 * budget
    # What is not needed to be coarse must not be: these have a knob as fine as a row, up to as many rows as ids.
    usable = config.table_storage().bytes / 4
    coarse = FullConfig, MixedDimensionConfig  # widths are of whole vocabularies
    if not isinstance(config, coarse) and len(set(sizes)) == 1 and sizes[0] > 5000 and 0.05 < kept <= usable:
        assert not made.coarse or getattr(config, "operation", "") == "concat"


@given(sizes=SIZES, config=st.sampled_from(CONFIGS))
def test_bytes_rise_with_the_budget(sizes: list[int], config: StrategyNode):
    features = [Feature(f"f{i}", size, vocabulary=f"f{i}") for i, size in enumerate(sizes)]
    full = sum(sizes) * 4 * 4
    reached = []
    for kept in (0.02, 0.1, 0.11, 0.5, 0.99, 1.0):
        try:
            reached.append(plan(features, 4, {"*": config}, max(2, int(kept * full)), exact=()).serve_bytes)
        except BudgetError:
            assert not reached
    assert reached == sorted(reached)


def test_a_budget_above_full_gives_full_and_at_full_still_hashes():
    features = [Feature("a", 5000), Feature("b", 5000)]
    above = plan(features, 4, {"*": HashConfig()}, 160_001)
    assert [type(one).__name__ for one in above.strategies] == ["Full"]
    at = plan(features, 4, {"*": HashConfig()}, 1.0, exact=())
    assert [type(one).__name__ for one in at.strategies] == ["Hash"]
    assert at.serve_bytes == 160_000


@pytest.mark.parametrize(("storage", "share"), [("fp16", 0.5), ("bf16", 0.5), ("int8", 0.25), ("int16", 0.5)])
def test_full_tables_in_fewer_bits(storage: str, share: float):
    features = [Feature("a", 5000), Feature("b", 15)]
    node = FullConfig(storage=storage)
    full = 5015 * 16
    least = plan(features, 4, {"*": node}, int(share * full))
    assert (least.serve_bytes, least.coarse) == (int(share * full), False)
    # Without a budget nothing is exact; with one, small features are, in fp32, and no more of it can be used.
    assert plan(features, 4, {"*": node}, None).serve_bytes == int(share * full)
    more = plan(features, 4, {"*": node}, 1.0)
    assert more.serve_bytes == int(share * 5000 * 16) + 15 * 16
    assert more.coarse
    named = plan(features, 4, {"*": node}, None, exact=["a"])
    assert named.serve_bytes == 5000 * 16 + int(share * 15 * 16)
    above = plan(features, 4, {"*": node}, 1.5)
    assert above.serve_bytes == full
    with pytest.raises(BudgetError) as caught:
        plan(features, 4, {"*": node}, int(share * full) - 1)
    assert caught.value.nearest_bytes == int(share * full)


def test_fewer_bits_are_more_rows_up_to_as_many_as_ids():
    features = [Feature("a", 5000), Feature("b", 5000)]
    for kept, rows in ((0.1, 4000), (0.25, 10_000), (0.5, 10_000), (1.0, 10_000)):
        made = plan(features, 4, {"*": HashConfig(storage="int8")}, kept, exact=())
        assert sum(made.settings.values()) == rows
        assert made.serve_bytes == rows * 4
        assert made.coarse == (kept > 0.25)
    # Beside a strategy in fp32, what these cannot use goes to the others.
    patterns = {"a": HashConfig(storage="int8"), "b": HashConfig()}
    both = plan(features, 4, patterns, 0.5, exact=())
    assert both.settings["a"] == 5000
    assert both.serve_bytes == pytest.approx(0.5 * 160_000, abs=16)


def test_small_features_stay_exact_within_their_share():
    features = [Feature("tiny", 10), Feature("small", 400), Feature("large", 100_000)]
    for kept, exact in ((0.5, {"tiny", "small"}), (0.02, {"tiny"}), (0.0005, set())):
        made = plan(features, 4, {"*": UnifiedConfig()}, kept)
        names = {f.name for one in made.strategies if type(one).__name__ == "Full" for f in one.features}
        assert names == exact
        assert sum({"tiny": 160, "small": 6400}[n] for n in names) <= made.budget_bytes / EXACT_SHARE
    named = plan(features, 4, {"*": UnifiedConfig()}, 0.5, exact=["tiny"])
    assert [f.name for f in named.strategies[0].features] == ["tiny"]


def test_sharers_of_a_vocabulary_are_counted_once():
    features = [Feature("item", 1000), Feature("seen", vocabulary="item")]
    emb = EmbeddingLayer(features, 4, strategy="hash", budget=0.5, exact=())
    assert emb.plan.full_bytes == 16_000
    assert emb.ledger()[["feature", "table", "rows"]].values.tolist() == [["item+seen", "item", 500]]


def test_full_below_its_size_is_refused_with_its_size():
    with pytest.raises(BudgetError, match="nearest feasible budget: 16000 bytes") as caught:
        EmbeddingLayer([Feature("a", 1000)], 4, budget=15_999)
    assert (caught.value.min_bytes, caught.value.max_bytes, caught.value.nearest_bytes) == (16_000, 16_000, 16_000)
    assert EmbeddingLayer([Feature("a", 1000)], 4, budget=16_000).plan.serve_bytes == 16_000


@given(
    weights=st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.integers(1, 1000), min_size=1, max_size=8),
    data=st.data(),
)
def test_apportion_is_exact_and_within_bounds(weights: dict[str, int], data: st.DataObject):
    lowest = {name: data.draw(st.integers(1, weight)) for name, weight in weights.items()}
    total = data.draw(st.integers(sum(lowest.values()), sum(weights.values())))
    parts = apportion(total, weights, lowest)
    assert sum(parts.values()) == total
    assert all(lowest[name] <= parts[name] <= weights[name] for name in weights)
    turned = apportion(total, dict(reversed(weights.items())), lowest)
    assert parts == turned
