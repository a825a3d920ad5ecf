"""Mixed dimension: the contract, the published widths, and projections by oracle."""

from __future__ import annotations

import itertools
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_embed import BudgetError, ConfigError, EmbeddingLayer, Feature
from recsys_embed.budget import plan
from recsys_embed.collisions import collisions
from recsys_embed.config import MixedDimensionConfig, StrategyNode
from recsys_embed.embeddings import Full
from recsys_embed.embeddings.blocks import block_of, bounds_of
from recsys_embed.embeddings.mixed_dimension import MixedDimension, closed_form
from recsys_embed.features import resolve
from recsys_embed.ids import Ids
from recsys_embed.testing import BAGS, FEATURES, StrategyContract, draw_ids
from tests.backends import EVERY


class TestMixedDimension(StrategyContract):
    config = MixedDimensionConfig()


class TestMixedDimensionByAlpha(StrategyContract):
    config = MixedDimensionConfig(alpha=0.3, power_of_two=False)


class TestMixedDimensionOfOneWidth(StrategyContract):
    config = MixedDimensionConfig(alpha=0)


class TestMixedDimensionOfGivenWidth(StrategyContract):
    config = MixedDimensionConfig(width=5)
    budget = 0.6


class TestMixedDimensionByBlocks(StrategyContract):
    config = MixedDimensionConfig(width=(12, 4, 0, 1))
    budget = 0.6


class TestMixedDimensionWithADroppedFeature(StrategyContract):
    # The contract takes one config: patterns are given in its place. The first is of item, tags and seen.
    config: ClassVar[Any] = {"[its]*": MixedDimensionConfig(width=0), "*": MixedDimensionConfig()}


# --- widths --------------------------------------------------------------------------------------------------

CRITEO = (
    1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194, 27, 14992, 5461306, 10, 5652,
    2173, 4, 7046547, 18, 15, 286181, 105, 142572,
)  # fmt: skip
"""Values of C1, ..., C26 in the seven days of Criteo's Kaggle challenge, none cut: 33,762,577."""

AVAZU = (
    240, 7, 7, 4737, 7745, 26, 8552, 559, 36, 2686408, 6729486, 8251, 5, 4, 2626, 8, 9, 435, 4, 68, 172, 60,
)  # fmt: skip
"""Values of hour, C1, ..., C21 of Avazu, none cut: 9,449,445."""

PUBLISHED = (8, 8, 1, 2, 8, 8, 4, 8, 16, 4, 4, 1, 4, 8, 4, 2, 16, 4, 8, 16, 2, 16, 16, 4, 8, 4)
"""Widths of Criteo's features at a tenth, of D = 16, from the code of 2311.15578."""


def smallest_alpha(sizes: tuple[int, ...], kept: float) -> tuple[float, list[int]]:
    """To five digits, and its widths: where the tables, without projections, are within a kept fraction."""
    named = {str(place): size for place, size in enumerate(sizes)}
    for step in range(100_001):
        widths = closed_form(named, 16, alpha=step / 100_000, base=16)
        if sum(size * widths[name] for name, size in named.items()) <= kept * sum(sizes) * 16:
            return step / 100_000, list(widths.values())
    raise AssertionError


@pytest.mark.parametrize(
    ("sizes", "kept", "alpha"), [(CRITEO, 0.5, 0.070), (CRITEO, 0.1, 0.159), (AVAZU, 0.5, 0.074), (AVAZU, 0.1, 0.165)]
)
def test_the_published_alphas(sizes: tuple[int, ...], kept: float, alpha: float) -> None:
    """The published ones are to a thousandth and from below: 72, 163, 76 and 169 of 1024."""
    found, widths = smallest_alpha(sizes, kept)
    assert int(found * 1024) / 1024 == pytest.approx(alpha, abs=5e-4)
    if sizes == CRITEO and kept == 0.1:
        assert sum(sizes) == 33_762_577
        assert tuple(widths) == PUBLISHED


def criteo() -> list[Feature]:
    return [Feature(f"c{place + 1}", size, vocabulary=f"c{place + 1}") for place, size in enumerate(CRITEO)]


def test_a_tenth_of_criteo_is_the_published_allocation() -> None:
    """By our own accounting, projections included, but where full rows take no more bytes."""
    made = plan(criteo(), 16, {"*": MixedDimensionConfig()}, 0.1, exact=())
    found = {str(name): width for name, width in made.settings.items()}
    for place, (size, width) in enumerate(zip(CRITEO, PUBLISHED, strict=True)):
        saves = size * width + width * 16 < size * 16
        if saves:
            assert found[f"c{place + 1}.width"] == width
        else:
            assert f"c{place + 1}.width" not in found or found[f"c{place + 1}.width"] == 16
    full = sum(CRITEO) * 16
    assert made.serve_bytes <= made.budget_bytes == round(0.1 * 4 * full)


SIZES = st.lists(st.integers(1, 50_000), min_size=1, max_size=6)


@given(SIZES, st.sampled_from([1, 2, 12, 16, 30]), st.floats(0, 1), st.floats(0, 1), st.floats(1, 99), st.booleans())
def test_the_closed_form(sizes: list[int], dim: int, one: float, other: float, base: float, power: bool) -> None:
    """By its formula; within 1 and D; larger vocabularies and larger alphas are never wider; alpha 0 is uniform."""
    named = {str(place): size for place, size in enumerate(sizes)}
    low, high = (closed_form(named, dim, alpha=a, base=base, power_of_two=power) for a in sorted((one, other)))
    assert all(1 <= high[name] <= low[name] <= dim for name in named)
    ranked = sorted(named, key=lambda name: named[name])
    assert all(low[a] >= low[b] for a, b in itertools.pairwise(ranked))
    assert len(set(closed_form(named, dim, alpha=0, base=base, power_of_two=power).values())) == 1
    if power:
        assert all(width == dim or width & (width - 1) == 0 for width in low.values())
    else:
        exact = {name: base * (min(sizes) / size) ** min(one, other) for name, size in named.items()}
        assert all(abs(low[name] - min(max(exact[name], 1), dim)) <= 0.5 + 1e-9 for name in named)


CONFIGS = st.builds(
    MixedDimensionConfig,
    alpha=st.one_of(st.none(), st.floats(0, 1)),
    power_of_two=st.booleans(),
    storage=st.sampled_from(["fp32", "int8"]),
)


@settings(max_examples=20)
@given(SIZES, st.sampled_from([1, 2, 12, 30]), CONFIGS)
def test_a_larger_budget_never_buys_less(sizes: list[int], dim: int, config: StrategyNode) -> None:
    """Nor is any exceeded; below the smallest size the nearest is told, and is met exactly."""
    features = [Feature(f"f{place}", size, vocabulary=f"f{place}") for place, size in enumerate(sizes)]
    full, before = 4 * dim * sum(sizes), 0
    for kept in (0.02, 0.1, 0.11, 0.3, 0.7, 0.99, 1.0):
        budget = max(2, int(kept * full))
        try:
            found = plan(features, dim, {"*": config}, budget, exact=())
        except BudgetError as error:
            assert before == 0
            least = error.nearest_bytes
            assert budget < least == plan(features, dim, {"*": config}, least, exact=()).serve_bytes <= full
        else:
            assert before <= found.serve_bytes <= budget
            before = found.serve_bytes


@given(SIZES, st.sampled_from([2, 12, 30]), CONFIGS, st.lists(st.floats(0, 1), min_size=2, max_size=5))
def test_bytes_rise_with_the_knob(sizes: list[int], dim: int, config: MixedDimensionConfig, places: list[float]):
    """Also where full rows take fewer bytes than narrower ones and their projection; at its end all rows are full."""
    features = [Feature(f"f{place}", size, vocabulary=f"f{place}") for place, size in enumerate(sizes)]
    most, bytes_ = MixedDimension.most(config, features, dim), []
    for place in [*sorted(places), 1.0]:
        made = MixedDimension.divided(config, features, dim, round(place * most), "", 0)
        for one in made:
            one.storage = config.table_storage()
        bytes_.append(sum(one.serve_bytes() for one in made))
    assert bytes_ == sorted(bytes_)
    assert bytes_[-1] == sum(sizes) * dim * config.table_storage().bytes


def test_alpha_0_is_one_width_and_the_budget_finds_it() -> None:
    features = [Feature("a", 9000), Feature("b", 800), Feature("c", 70)]
    config = MixedDimensionConfig(alpha=0, power_of_two=False)
    emb = EmbeddingLayer(features, 16, strategy=config, budget=0.45, exact=())
    assert emb.plan.settings == {"a.width": 7, "b.width": 7, "c.width": 7}
    assert emb.plan.serve_bytes == 4 * 7 * (9870 + 3 * 16)
    assert len(emb.strategies) == 1
    ledger = emb.ledger()
    assert ledger["serve_bytes"].sum() == emb.plan.serve_bytes
    assert set(ledger["part"]) == {"mixed_dimension"}
    assert ledger.set_index("table")["serve_bytes"].to_dict() == {
        "a": 4 * 7 * 9000, "b": 4 * 7 * 800, "c": 4 * 7 * 70, "projections.0": 4 * 3 * 7 * 16
    }  # fmt: skip


def test_full_width_has_no_projection() -> None:
    emb = EmbeddingLayer(FEATURES, 8, strategy=MixedDimensionConfig(alpha=0), budget=1.0, exact=())
    assert emb.plan.serve_bytes == emb.plan.full_bytes
    assert not list(emb.strategies.parameters())
    int8 = EmbeddingLayer(FEATURES, 8, strategy=MixedDimensionConfig(width=8, storage="int8"))
    assert int8.plan.serve_bytes == emb.plan.full_bytes // 4


# --- widths that are given -----------------------------------------------------------------------------------


@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=3),
    st.lists(st.integers(0, 8), min_size=1, max_size=5),
    st.integers(1, 9),
)
def test_weights_per_id_by_brute_force(sizes: list[int], widths: list[int], blocks: int) -> None:
    """The mean over a block of what its ids have, where the blocks of widths and those asked for lie anyhow."""
    features = [Feature(f"f{place}", size) for place, size in enumerate(sizes)]
    made = plan(resolve(features), 8, {"*": MixedDimensionConfig(width=tuple(widths))}, None)
    found = {name: means for one in made.strategies for name, means in one.weights_per_id(blocks).items()}
    for place, size in enumerate(sizes):
        # A width of full rows that are cheaper is that of all: the strategy is another one.
        kept = Full in {type(one) for one in made.strategies if features[place].name in one.weights_per_id(1)}
        own = [8 if kept else widths[id_ * len(widths) // size] for id_ in range(size)]
        count = min(blocks, size)
        members = [[own[id_] for id_ in range(size) if id_ * count // size == block] for block in range(count)]
        assert found[f"f{place}"] == pytest.approx([sum(one) / len(one) for one in members])


def test_given_widths_are_taken_at_their_word() -> None:
    """Without a budget, above the full size, and for the smallest features: only names make one exact."""
    strategy = {"user": MixedDimensionConfig(width=(8, 4, 0)), "item": MixedDimensionConfig(width=2), "city": "full"}
    user = 4 * (1334 * 8 + 1333 * 4 + (8 + 4) * 16)
    item, city = 4 * (700 * 2 + 2 * 16), 4 * 60 * 16
    for budget in (None, 2.0, user + item + city):
        made = EmbeddingLayer(FEATURES, 16, strategy=strategy, budget=budget).plan
        assert made.serve_bytes == user + item + city
        widths = {"user.0.width": 8, "user.1.width": 4, "user.2.width": 0, "item.width": 2}
        assert made.settings == {"city": 60} | widths
    named = EmbeddingLayer(FEATURES, 16, strategy=strategy, budget=2.0, exact=["item"]).plan
    assert named.serve_bytes == user + 4 * 700 * 16 + city
    with pytest.raises(BudgetError, match=f"nearest feasible budget: {user + item + city} bytes"):
        EmbeddingLayer(FEATURES, 16, strategy=strategy, budget=user + item + city - 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 17}, "width 17 of 'user' is above dim = 16"),
        ({"width": (4, 17)}, "width 17 of"),
        ({"width": -1}, "width: a width is 0 or more, or a list of such numbers, one for each block of ids .value -1"),
        ({"width": ()}, "0 or more"),
        ({"width": 4, "alpha": 1.0}, "alpha: this is for widths that are found, and width = 4 gives them"),
        ({"width": [4, 2], "power_of_two": False}, r"power_of_two: .* and width = \(4, 2\) gives them"),
        ({"alpha": 1.5}, "less than or equal to 1"),
    ],
)
def test_widths_that_cannot_be(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EmbeddingLayer(FEATURES, 16, strategy={"name": "mixed_dimension", **options}, budget=0.5)


@given(st.integers(1, 9), st.integers(1, 60))
def test_every_id_has_a_row_of_its_own_in_the_table_of_its_block(blocks: int, size: int) -> None:
    ids = torch.arange(size)
    if size >= blocks:
        counted = torch.bincount(block_of(ids, blocks, size), minlength=blocks).cumsum(0).tolist()
        assert bounds_of(blocks, size) == [0, *counted]
    widths = tuple(range(1, blocks + 1))
    made = plan(
        [Feature("x", size, vocabulary="x")], 64, {"*": MixedDimensionConfig(width=widths, storage="int8")}, None
    )
    if not isinstance(made.strategies[0], MixedDimension):
        return  # full rows take no more
    strategy = made.strategies[0]
    rows = strategy.address(Ids(ids.unsqueeze(0), 1)).rows
    tables = {spec.name: spec for spec in strategy.tables()}
    homes = strategy.reads()
    seen: dict[int, tuple[str, int]] = {}
    for read, numbers in rows.items():
        for one, row in enumerate(numbers[0, 0].tolist()):
            if row >= 0:
                assert one not in seen
                seen[one] = homes[read][0][0], row
    assert len(seen) == len(set(seen.values())) == size == sum(spec.rows for spec in tables.values())
    assert [tables[seen[one][0]].width for one in range(size)] == [widths[one * blocks // size] for one in range(size)]


def test_dropped_ids_read_zeros_and_cannot_be_told_apart() -> None:
    strategy = {"user": MixedDimensionConfig(width=(4, 0)), "item": MixedDimensionConfig(width=0), "city": "full"}
    emb = EmbeddingLayer(FEATURES, 8, strategy=strategy, exact=())
    vectors = emb(torch.tensor([[0, 1999, 2000, 3999], [0, 1, 2, 699], [0, 1, 2, 3]]))
    there = (vectors != 0).any(2)
    assert there.tolist() == [[True, False, True], [True, False, True], [False, False, True], [False, False, True]]
    found = collisions(emb.plan.strategies)
    assert found.merged["all"] == pytest.approx((1999 + 699) / 4760)
    assert found.shared["all"] == 0


def test_a_layer_of_which_all_is_dropped_gives_zeros() -> None:
    emb = EmbeddingLayer(BAGS, 8, strategy=MixedDimensionConfig(width=0))
    emb.optimizer("sgd", lr=0.1)
    assert torch.equal(emb(draw_ids(BAGS, 5)), torch.zeros(5, 3, 8))
    assert emb.plan.serve_bytes == 0


# --- vectors and gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 4, 15])
def test_vectors_begin_with_the_spread_of_full_ones(width: int) -> None:
    features = [Feature(f"f{place}", 500) for place in range(40)]
    ids = torch.arange(500).expand(40, -1)
    config = MixedDimensionConfig(width=width)
    full, narrow = (EmbeddingLayer(features, 16, strategy=one)(ids) for one in ("full", config))
    assert narrow.std().item() == pytest.approx(full.std().item(), rel=0.1)
    assert narrow.mean().abs() < 0.1 * full.std()
    assert not torch.equal(
        EmbeddingLayer(features, 16, strategy=MixedDimensionConfig(width=width), seed=1)(ids), narrow
    )


@pytest.mark.parametrize("decay", [0.0, 0.5])
@pytest.mark.parametrize("backend", EVERY)
@pytest.mark.parametrize("width", [4, (8, 4, 0)], ids=str)
@pytest.mark.parametrize("features", [FEATURES, BAGS], ids=["single", "bags"])
def test_gradients_of_projections(features: tuple[Feature, ...], width: Any, backend: str, decay: float) -> None:
    """Against vectors written out as one-hot products in float64; pooled in the read and, with decay, after it."""
    if backend == "fused":
        pytest.importorskip("fbgemm_gpu", reason="the fused back end needs FBGEMM")
    emb = EmbeddingLayer(
        features, 8, strategy=MixedDimensionConfig(width=width), exact=(), backend=backend, decay=decay
    )
    emb.optimizer("sgd", lr=0.1)
    ids = draw_ids(features, 30)
    target = torch.randn(30, 3, 8, generator=torch.Generator().manual_seed(1))
    (emb(ids) * target).sum().backward()
    flat = ids.jagged()
    assert flat.offsets is not None
    for strategy in emb.strategies:
        assert isinstance(strategy, MixedDimension)
        for read, projection in strategy.projections.items():
            expected = torch.zeros(projection.shape, dtype=torch.float64)
            for place, feature in enumerate(strategy.features):
                table = emb.tables.get(strategy.reads()[read][place][0]).double()
                bounds = bounds_of(len(strategy.widths), feature.size)[int(read) :]
                at = features.index(next(f for f in features if f.name == feature.name))
                for sample in range(30):
                    bag = flat.values[flat.offsets[at * 30 + sample] : flat.offsets[at * 30 + sample + 1]]
                    mine = bag[(bag >= bounds[0]) & (bag < bounds[1])] - bounds[0]
                    share = len(bag) if feature.pooling == "mean" else 1
                    if len(mine):
                        vocabulary = sorted(f.vocab for f in strategy.features).index(feature.vocab)
                        row = table[mine].sum(0) / share
                        expected[vocabulary] += row.unsqueeze(1) * target[sample, at].double()
            torch.testing.assert_close(projection.grad.double(), expected, rtol=1e-4, atol=1e-6)


def test_a_read_of_single_values_gathers_no_projections() -> None:
    """Nothing as large as a matrix for each occurrence is made: the largest result is that of the vectors."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                self.numbers = max(self.numbers, out.untyped_storage().nbytes() // out.element_size())
            return out

    emb = EmbeddingLayer([Feature(f"f{place}", 50) for place in range(4)], 16, strategy=MixedDimensionConfig(width=4))
    with torch.no_grad(), Largest() as seen:
        emb(torch.zeros(4, 200, dtype=torch.int64))
    assert seen.numbers == 200 * 4 * 16
