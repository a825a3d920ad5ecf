"""Dividing bytes: never over the room, nothing left that could be used, and shares as they were drawn."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from recsys_embed.search.division import divide, shares

WEIGHTS = st.one_of(st.just(0.0), st.floats(1e-6, 14.0))
RISING = st.lists(st.integers(0, 5000), min_size=1, max_size=6, unique=True).map(sorted)


@st.composite
def problems(draw: st.DrawFn, rising: st.SearchStrategy[list[int]] = RISING) -> tuple[int, dict, dict]:
    """Room for at least the smallest sizes; weights; sizes."""
    names = draw(st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=5, unique=True))
    sizes = {name: draw(rising) for name in names}
    least = sum(one[0] for one in sizes.values())
    room = least + draw(st.integers(0, 12_000))
    return room, {name: draw(WEIGHTS) for name in names}, sizes


@given(problems())
def test_never_over_the_room_and_nothing_is_left_that_could_be_used(problem: tuple) -> None:
    room, weights, sizes = problem
    found = divide(*problem)
    taken = {name: sizes[name][place] for name, place in found.chosen.items()}
    assert found.chosen.keys() == weights.keys()
    assert sum(taken.values()) + found.left_over == room
    assert found.left_over >= 0
    for name, place in found.chosen.items():
        if place + 1 < len(sizes[name]):
            step = sizes[name][place + 1] - taken[name]
            assert step > found.left_over


@given(problems())
def test_shares_are_the_weights_within_bounds(problem: tuple) -> None:
    """There is one level, bytes for a unit of weight, that gives each part its share, its least or its most."""
    room, weights, sizes = problem
    found = shares(*problem)
    most = sum(one[-1] for one in sizes.values())
    assert sum(found.values()) == pytest.approx(min(room, most), rel=1e-9, abs=1e-6)
    for name in found:
        assert sizes[name][0] <= found[name] <= sizes[name][-1]
    inside = [name for name in found if sizes[name][0] + 1e-6 < found[name] < sizes[name][-1] - 1e-6]
    if not inside:
        return
    if all(weights[name] == 0 for name in inside):  # all others have all that they can use
        assert max(found[name] for name in inside) == pytest.approx(min(found[name] for name in inside))
        return
    level = max(found[name] / weights[name] for name in inside if weights[name])
    for name in found:
        if weights[name]:
            within = min(max(level * weights[name], sizes[name][0]), sizes[name][-1])
            assert found[name] == pytest.approx(within, rel=1e-6, abs=1e-3)


@given(problems(), st.randoms(use_true_random=False))
def test_the_order_of_names_does_not_matter(problem: tuple, random) -> None:
    room, weights, sizes = problem
    names = list(weights)
    random.shuffle(names)
    assert divide(room, {name: weights[name] for name in names}, {name: sizes[name] for name in names[::-1]}) == divide(
        *problem
    )


@given(
    st.integers(1, 50),
    st.lists(st.tuples(WEIGHTS, st.integers(0, 3), st.integers(1, 200)), min_size=1, max_size=5),
    st.integers(0, 20_000),
)
def test_shares_are_honoured_to_a_step_where_steps_are_alike(step: int, parts: list, more: int) -> None:
    sizes = {str(n): [step * (first + k) for k in range(count)] for n, (_, first, count) in enumerate(parts)}
    weights = {str(n): weight for n, (weight, _, _) in enumerate(parts)}
    room = sum(one[0] for one in sizes.values()) + more
    due, found = shares(room, weights, sizes), divide(room, weights, sizes)
    for name, place in found.chosen.items():
        assert abs(sizes[name][place] - due[name]) < step + 1e-6


@given(st.lists(st.integers(1, 400), min_size=1, max_size=6, unique=True), st.integers(1, 6), st.integers(0, 9))
def test_equal_weights_and_sizes_get_the_same_to_one_size(steps: list[int], count: int, more: int) -> None:
    sizes = {str(n): list(itertools.accumulate(sorted(steps), initial=0)) for n in range(count)}
    room = count * sizes["0"][len(steps) // 2] + more
    places = divide(room, dict.fromkeys(sizes, 0.7), sizes).chosen.values()
    assert max(places) - min(places) <= 1


def test_without_weights_all_are_alike_and_with_one_it_has_all_that_it_can_use() -> None:
    sizes = {"a": range(0, 101, 5), "b": range(0, 101, 5), "c": range(0, 101, 5)}
    assert divide(90, dict.fromkeys("abc", 0.0), sizes).chosen == {"a": 6, "b": 6, "c": 6}
    assert divide(90, {"a": 0.0, "b": 2.0, "c": 0.0}, sizes).chosen == {"a": 0, "b": 18, "c": 0}
    assert divide(140, {"a": 0.0, "b": 2.0, "c": 0.0}, sizes).chosen == {"a": 4, "b": 20, "c": 4}
    assert divide(900, {"a": 0.0, "b": 2.0, "c": 0.0}, sizes).left_over == 600


def test_a_smallest_size_above_its_share_is_paid_by_all_others() -> None:
    """And not by whoever is nearest to the next size."""
    fine = range(1001)
    found = divide(1000, {"a": 1.0, "b": 2.0, "c": 1.0}, {"a": fine, "b": fine, "c": [700]})
    assert found.chosen == {"a": 100, "b": 200, "c": 0}


@given(problems(), st.integers(1, 100))
def test_less_than_the_smallest_sizes_is_refused(problem: tuple, less: int) -> None:
    _, weights, sizes = problem
    least = sum(one[0] for one in sizes.values())
    assume(least)
    with pytest.raises(ValueError, match=f"take {least} bytes, there are {least - less}"):
        divide(least - less, weights, sizes)


@given(
    st.integers(0, 9),
    st.tuples(WEIGHTS, WEIGHTS, WEIGHTS),
    st.lists(st.lists(st.integers(1, 6), min_size=1, max_size=3, unique=True).map(sorted), min_size=3, max_size=3),
)
def test_tiny_cases_by_brute_force(more: int, weights: tuple, sizes: list[list[int]]) -> None:
    """Of all divisions that leave nothing usable, none is better for every part: not one of them dominates it."""
    room = sum(one[0] for one in sizes) + more
    found = divide(room, dict(zip("abc", weights, strict=True)), dict(zip("abc", sizes, strict=True)))
    taken = tuple(one[found.chosen[name]] for name, one in zip("abc", sizes, strict=True))
    feasible = {combination for combination in itertools.product(*sizes) if sum(combination) <= room}
    assert taken in feasible
    better = [one for one in feasible if one != taken and all(a >= b for a, b in zip(one, taken, strict=True))]
    assert not better
    due = shares(room, dict(zip("abc", weights, strict=True)), dict(zip("abc", sizes, strict=True)))
    for name, one in zip("abc", sizes, strict=True):
        assert one[found.chosen[name]] >= max([size for size in one if size <= due[name]], default=one[0])
