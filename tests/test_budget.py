"""Budgets: what the forms mean, and that every size is met, marked coarse, or refused with a size that works."""

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from recsys_embed import BudgetError, ByteBudget, ConfigError, EmbeddingLayer, Feature
from recsys_embed.budget import EXACT_SHARE, Plan, assign, plan, size_range, size_within
from recsys_embed.config import (
    CafeConfig,
    CompositionalConfig,
    FullConfig,
    HashConfig,
    MixedDimensionConfig,
    RobeConfig,
    StrategyNode,
    UnifiedConfig,
)
from recsys_embed.embeddings import Full
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


def test_sharers_of_a_vocabulary_may_be_under_patterns_with_equal_strategies():
    """They go together, to the first pattern, with bytes of their own or not; the bytes are those of one pattern."""
    features = [Feature("item", 900), Feature("user", 5000), Feature("seen", 900, vocabulary="item")]
    for config in (HashConfig(bytes=3200), MixedDimensionConfig(width=2), HashConfig()):
        patterns = {"seen": config, "item": config, "*": UnifiedConfig()}
        assert {pattern: [f.name for f in members] for pattern, members in assign(features, patterns).items()} == {
            "seen": [], "item": ["item", "seen"], "*": ["user"]
        }  # fmt: skip
        apart = plan(features, 8, patterns, 0.2, exact=())
        together = plan(features, 8, {"[is]*": config, "*": UnifiedConfig()}, 0.2, exact=())
        assert apart.settings == together.settings
        assert apart.serve_bytes == together.serve_bytes
    different = {"seen": HashConfig(bytes=3200), "item": HashConfig(bytes=3201), "*": UnifiedConfig()}
    with pytest.raises(ConfigError, match="under patterns 'item' and 'seen': features that share rows") as caught:
        plan(features, 8, different, 0.2)
    assert caught.value.path == "embedding.strategy"


@given(
    st.integers(1, 3000),
    st.sampled_from([1, 4, 30]),
    st.integers(1, 400_000),
    st.sampled_from([*CONFIGS, CafeConfig()]),
)
def test_the_size_within_bytes_is_what_a_pattern_with_them_takes(
    ids: int, dim: int, limit: int, config: StrategyNode
) -> None:
    assume(dim > 1 or getattr(config, "chunks", 1) == 1)
    assume(getattr(config, "operation", "") != "concat" or dim > 1)
    features = [Feature("a", ids, vocabulary="a"), Feature("b", vocabulary="a", cardinality=ids)]
    size, full = size_within(limit, config, features, dim), 4 * ids * dim
    least, most = size_range(config, features, dim)
    assert min(least, full) <= size <= min(max(limit, least), max(most, least), full)
    assert size_within(size, config, features, dim) == size
    made = plan(features, dim, {"*": config.model_copy(update={"bytes": size})}, max(size, 2), exact=())
    assert made.serve_bytes == size


def test_a_unified_table_for_fewer_ids_than_tables():
    assert size_range(UnifiedConfig(chunks=1, tables=3), [Feature("a", 1, vocabulary="a")], 4) == (48, 48)


def test_full_below_its_size_is_refused_with_its_size():
    with pytest.raises(BudgetError, match="nearest feasible budget: 16000 bytes") as caught:
        EmbeddingLayer([Feature("a", 1000)], 4, budget=15_999)
    assert (caught.value.min_bytes, caught.value.max_bytes, caught.value.nearest_bytes) == (16_000, 16_000, 16_000)
    assert EmbeddingLayer([Feature("a", 1000)], 4, budget=16_000).plan.serve_bytes == 16_000


# --- bytes of a pattern's own --------------------------------------------------------------------------------

LARGE = [Feature("user", 50_000), Feature("item", 20_000), Feature("tag", 6000), Feature("city", 30)]


def bytes_of(made: Plan, *names: str) -> int:
    """Serving bytes of the strategies of these features alone, their exact ones included."""
    total = 0
    for one in made.strategies:
        mine = [feature.name in names for feature in one.features]
        if isinstance(one, Full):
            total += sum(4 * one.dim * f.size for f in one.features if f.name in names)
        elif any(mine):
            assert all(mine)
            total += one.serve_bytes()
    return total


SHARES = st.floats(0.002, 1.2)


@settings(max_examples=15)
@given(
    configs=st.tuples(*[st.sampled_from([one for one in CONFIGS if one.name != "full"])] * 3),
    user=SHARES,
    item=st.one_of(st.none(), SHARES),
    kept=st.floats(0.002, 1.2),
    exact=st.sampled_from([None, (), ("tag",), ("city", "item")]),
)
def test_every_pattern_is_within_its_own_bytes_and_all_within_the_budget(
    configs: tuple[StrategyNode, ...], user: float, item: float | None, kept: float, exact: tuple[str, ...] | None
):
    full = {feature.name: 16 * feature.size for feature in LARGE}
    own = {name: int(share * full[name]) for name, share in (("user", user), ("item", item)) if share is not None}
    patterns = dict(zip(("user", "item", "*"), configs, strict=True))
    patterns = {name: one.model_copy(update={"bytes": own.get(name)}) for name, one in patterns.items()}
    budget = int(kept * sum(full.values()))
    while True:  # a refusal names what would do: for a pattern, or for all
        try:
            made = plan(LARGE, 4, patterns, budget, exact=exact)
            break
        except BudgetError as error:
            refusal = error
        small = [name for name in own if str(refusal).startswith(f"embedding.strategy.{name}.bytes:")]
        assert refusal.nearest_bytes > (own[small[0]] if small else budget)
        if small:
            own[small[0]] = refusal.nearest_bytes
            patterns[small[0]] = patterns[small[0]].model_copy(update={"bytes": refusal.nearest_bytes})
        else:
            budget = refusal.nearest_bytes
    assert made.serve_bytes <= budget
    for name, limit in own.items():
        assert bytes_of(made, name) <= limit
        if limit > full[name]:
            assert bytes_of(made, name) == full[name]
    # The others are as they would be alone, with what is left.
    others = [feature for feature in LARGE if feature.name not in own]
    left = budget - bytes_of(made, *own)
    alone = {name: one for name, one in patterns.items() if name not in own}
    rest = plan(others, 4, alone, left, exact=exact and [name for name in exact if name not in own])
    assert bytes_of(made, *(feature.name for feature in others)) == rest.serve_bytes


def test_own_bytes_leave_the_rest_to_the_others():
    patterns = {"user": HashConfig(bytes="100KB"), "*": UnifiedConfig()}
    made = plan(LARGE, 4, patterns, 400_000)
    assert made.settings["user"] == 6250
    assert bytes_of(made, "user") == 100_000
    assert 0.99 * 300_000 < bytes_of(made, "item", "tag", "city") <= 300_000
    # Small features stay exact by a share of what is left; under own bytes only by name.
    assert [f.name for f in made.strategies[0].features] == ["city"]
    small = plan(LARGE, 4, {"city": HashConfig(bytes=160), "*": UnifiedConfig()}, 400_000)
    assert small.settings["city"] == 10
    named = plan(LARGE, 4, {"city": HashConfig(bytes=480), "*": UnifiedConfig()}, 400_000, exact=["city"])
    assert bytes_of(named, "city") == 480


def test_without_a_budget_every_pattern_needs_bytes_of_its_own():
    patterns = {"user": HashConfig(bytes=100_000), "*": UnifiedConfig(bytes="50KB")}
    made = plan(LARGE, 4, patterns, None)
    assert (made.budget_bytes, made.coarse) == (None, False)
    assert 149_000 < made.serve_bytes <= 150_000
    with pytest.raises(ConfigError, match="'unified' needs a budget"):
        plan(LARGE, 4, patterns | {"*": UnifiedConfig()}, None)


def test_own_bytes_that_cannot_be_are_named():
    patterns = {"user": HashConfig(bytes=100_000), "item": HashConfig(bytes=10**9), "*": HashConfig()}
    needed = 100_000 + 20_000 * 16 + 2 * 16
    with pytest.raises(
        BudgetError, match=r"user\.bytes \+ embedding\.strategy\.item\.bytes are 420000 bytes"
    ) as caught:
        plan(LARGE, 4, patterns, 400_000, exact=())
    assert caught.value.nearest_bytes == needed == plan(LARGE, 4, patterns, needed, exact=()).serve_bytes
    with pytest.raises(
        BudgetError, match=r"embedding\.strategy\.user\.bytes: full needs at least 800000 bytes"
    ) as caught:
        plan(LARGE, 4, {"user": FullConfig(bytes=9), "*": HashConfig()}, 0.5)
    assert caught.value.nearest_bytes == 800_000
    for wrong, message in (("10x", "a size is bytes"), (-1, "write 1.0"), ("1XB", "unknown unit"), (0.5, "bytes")):
        with pytest.raises(ConfigError, match=message) as refused:
            EmbeddingLayer(LARGE, 4, strategy={"user": {"name": "hash", "bytes": wrong}, "*": "full"})
        assert refused.value.path == "strategy.user.bytes"


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
