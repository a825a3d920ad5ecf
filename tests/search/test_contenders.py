"""Methods of one training: what they stand for, against the rule that each is named after."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys_embed import BudgetError, Feature
from recsys_embed.budget import full_bytes
from recsys_embed.config import parse_config
from recsys_embed.embeddings import Full
from recsys_embed.embeddings.mixed_dimension import MixedDimension, closed_form
from recsys_embed.features import resolve
from recsys_embed.report.study import sized
from recsys_embed.search.contenders import ONE_TRAINING, trained_once

DIM = 16


def widths(method: str, features: list[Feature], budget: float, exact: tuple[str, ...] | None) -> tuple[dict, set, int]:
    """Widths of vocabularies that are not exact, the exact features, and bytes."""
    config = parse_config(
        {
            "data": {"path": "x.csv", "categorical": ["x"]},
            "model": {"name": "dlrm", "dim": DIM},
            "embedding": {"budget": budget} | ({} if exact is None else {"exact": list(exact)}),
        }
    )
    made = sized(trained_once(config, method), features)
    found = {
        name: one.widths[0]
        for one in made.strategies
        if isinstance(one, MixedDimension)
        for name in one.weights_per_id(1)
    }
    full = {f.name for one in made.strategies if isinstance(one, Full) for f in one.features}
    return found, full, made.serve_bytes


def bytes_of(sizes: dict[str, int], chosen: dict[str, int]) -> int:
    """A row is full wherever a narrower one and its projection would take as many bytes."""
    return sum(4 * min(size * DIM, size * chosen[name] + chosen[name] * DIM) for name, size in sizes.items())


CARDINALITIES = st.lists(st.integers(1, 20_000), min_size=1, max_size=5)


@settings(max_examples=25)
@given(CARDINALITIES, st.floats(0.02, 0.999))
def test_uniform_is_one_width_and_the_widest_that_fits(cardinalities: list[int], budget: float) -> None:
    features = list(resolve([Feature(f"f{place}", size) for place, size in enumerate(cardinalities)]))
    sizes = {feature.name: feature.size for feature in features}
    room = round(budget * full_bytes(features, DIM))
    fitting = [width for width in range(1, DIM + 1) if bytes_of(sizes, dict.fromkeys(sizes, width)) <= room]
    if not fitting:
        with pytest.raises(BudgetError):
            widths("uniform", features, budget, ())
        return
    found, full, used = widths("uniform", features, budget, ())
    assert used == bytes_of(sizes, dict.fromkeys(sizes, max(fitting))) <= room
    narrow = {width for width in found.values() if width < DIM}
    assert narrow <= {max(fitting)}
    for name in full | {name for name, width in found.items() if width == DIM}:
        assert sizes[name] * DIM <= sizes[name] * max(fitting) + max(fitting) * DIM


@settings(max_examples=25)
@given(CARDINALITIES, st.floats(0.02, 0.999))
def test_mde_is_the_closed_form_at_the_smallest_alpha_that_fits(cardinalities: list[int], budget: float) -> None:
    """Alpha in steps of 1/4096; where no alpha fits, the widest is narrowed, which only lowers bytes."""
    features = list(resolve([Feature(f"f{place}", size) for place, size in enumerate(cardinalities)]))
    sizes = {feature.name: feature.size for feature in features}
    room = round(budget * full_bytes(features, DIM))
    for step in range(4097):
        expected = closed_form(sizes, DIM, alpha=step / 4096, base=DIM)
        if bytes_of(sizes, expected) <= room:
            break
    else:
        return
    found, _, used = widths("mde", features, budget, ())
    assert bytes_of(sizes, expected) <= used <= room
    if used == bytes_of(sizes, expected):
        assert found == {name: width for name, width in expected.items() if name in found and width < DIM} | {
            name: DIM for name in found if found[name] == DIM
        }


def test_mde_of_known_widths_beside_what_is_exact() -> None:
    """By hand, at alpha = 0.34, just below which user has 4: n_min is the least of those that are not exact."""
    features = list(resolve([Feature("user", 64_000), Feature("item", 4000), Feature("tag", 250), Feature("day", 7)]))
    assert [round(16 * (250 / size) ** 0.34, 1) for size in (64_000, 4000, 250)] == [2.4, 6.2, 16]
    found, full, used = widths("mde", features, 0.2, ("day",))
    assert found == {"user": 2, "item": 8, "tag": 16}
    assert full == {"day"}
    assert used == 4 * (2 * 64_000 + 2 * 16 + 8 * 4000 + 8 * 16 + 16 * 257)


@pytest.mark.parametrize("method", ONE_TRAINING)
def test_each_has_the_budget_of_the_search_and_full_has_none(method: str) -> None:
    config = parse_config(
        {
            "data": {"path": "x.csv", "categorical": ["x"]},
            "model": {"name": "dlrm", "dim": DIM},
            "embedding": {"budget": 0.5, "exact": ["b"], "decay": 1e-6, "strategy": "hash"},
        }
    )
    made = trained_once(config, method)
    assert made.embedding.strategy == {"*": ONE_TRAINING[method]}
    assert made.embedding.budget == (None if method == "full" else 0.5)
    assert made.embedding.exact == ("b",)
    assert made.training == config.training
    features = resolve([Feature("a", 3000), Feature("b", 100)])
    whole = full_bytes(features, DIM)
    used = sized(made, features).serve_bytes
    assert used == whole if method == "full" else used <= whole / 2
