"""The space of a search: whatever is drawn from it is an embedding within the budget, and is what it says it is."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, assume, given, reject, settings
from hypothesis import strategies as st

from recsys_embed import BudgetError, ConfigError, EmbeddingLayer, Feature
from recsys_embed.budget import full_bytes, size_range
from recsys_embed.config import (
    CafeConfig,
    CompositionalConfig,
    Config,
    DnisConfig,
    EmbeddingConfig,
    FullConfig,
    HashConfig,
    MagnitudeConfig,
    MixedDimensionConfig,
    PepConfig,
    RobeConfig,
    StrategyNode,
    TrainedEmbeddingConfig,
    UnifiedConfig,
    parse_config,
)
from recsys_embed.embeddings import Full
from recsys_embed.features import resolve
from recsys_embed.report.run import Cell
from recsys_embed.search.space import Proposal, Recorder, Space, label, sized_plan
from recsys_embed.search.trials import parameters, proposed

ANY = MixedDimensionConfig()
HIGHEST = 1.0 - 2.0**-20
"""The end of a share's range."""


class Answers:
    """A trial that answers with what it was given, by name; else with what is drawn, else with the lowest."""

    def __init__(self, given: dict[str, Any] | None = None, draw: st.DataObject | None = None) -> None:
        self.given, self._draw = dict(given or {}), draw

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        if name not in self.given:
            edges = st.sampled_from([low, high])
            self.given[name] = low if self._draw is None else self._draw.draw(edges | st.floats(low, high))
        found = float(self.given[name])
        assert low <= found <= high
        return found

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        if name not in self.given:
            self.given[name] = choices[0] if self._draw is None else self._draw.draw(st.sampled_from(choices))
        assert self.given[name] in choices
        return self.given[name]


# --- what is drawn -------------------------------------------------------------------------------------------

CHOICES: list[StrategyNode] = [
    ANY,
    MixedDimensionConfig(storage="int8"),
    MixedDimensionConfig(power_of_two=False, storage="fp16"),
    MixedDimensionConfig(width=1),
    MixedDimensionConfig(width=(1, 0, 1)),
    FullConfig(),
    FullConfig(storage="int8"),
    HashConfig(),
    HashConfig(storage="bf16"),
    UnifiedConfig(chunks=1),
    UnifiedConfig(chunks=1, tables=3),
    CompositionalConfig(),
    CompositionalConfig(storage="int8", operation="add", partitions=3),
    RobeConfig(block=2),
    CafeConfig(),
]
"""Buildable at every width, from 1 up."""
PRUNED: list[StrategyNode] = [DnisConfig(), DnisConfig(blocks=2), MagnitudeConfig(), PepConfig()]
NAMES = st.sampled_from(["user", "u*", "[item]", "what?", "user.1", "name", "full", "*", "a b", "Ω"])


@st.composite
def layers(draw: st.DrawFn) -> list[Feature]:
    """Features, some with the rows of another, some multi-valued."""
    names = draw(st.lists(NAMES, min_size=1, max_size=5, unique=True))
    features = []
    for place, name in enumerate(names):
        bags = draw(st.booleans())
        if place and draw(st.integers(0, 3)) == 0:
            features.append(Feature(name, vocabulary=draw(st.sampled_from(features)).vocab, multi_valued=bags))
        else:
            features.append(Feature(name, draw(st.sampled_from([1, 2, 3, 17, 130, 2000])), multi_valued=bags))
    return features


@st.composite
def choices(draw: st.DrawFn) -> list[StrategyNode]:
    found = draw(st.lists(st.sampled_from(CHOICES), min_size=1, max_size=4, unique_by=label))
    return found + draw(st.sampled_from([[], [], [], *([one] for one in PRUNED)]))


BUDGETS = st.one_of(
    st.floats(0.001, 1.3), st.integers(2, 60_000), st.sampled_from(["2x", "7.5x", "100x", "1000x", "1KB", "20 KiB"])
)


@st.composite
def spaces(draw: st.DrawFn) -> Space:
    features, dim = draw(layers()), draw(st.sampled_from([1, 2, 5, 8, 13]))
    exact = draw(st.sampled_from([None, None, (), (features[0].name,)]))
    embedding = EmbeddingConfig(budget=draw(BUDGETS), exact=exact)
    try:
        return Space(features, dim, embedding, draw(choices()), blocks=draw(st.integers(1, 5)))
    except (BudgetError, ConfigError) as error:
        refusal = error
    if isinstance(refusal, BudgetError):
        named = [one for one in resolve(features) if one.vocab == features[0].vocab]
        assert exact
        assert refusal.nearest_bytes == full_bytes(named, dim)
    else:  # all is exact; or "user", in blocks, is beside "user.1"
        assert refusal.path == "embedding.budget" or "rename a feature" in str(refusal)
    reject()


def config_of(space: Space, embedding: EmbeddingConfig) -> Config:
    tree = {"data": {"path": "x.csv", "categorical": ["x"]}, "model": {"name": "dlrm", "dim": space._dim}}
    return parse_config(tree).model_copy(update={"embedding": TrainedEmbeddingConfig(**dict(embedding))})


def check(space: Space, found: Proposal, budget: int) -> None:
    """It is what it says, and what it says is within the budget."""
    made = sized_plan(found.embedding, space._features, space._dim)
    assert made.serve_bytes == found.serve_bytes <= budget
    assert found.left_over == budget - found.serve_bytes
    config = config_of(space, found.embedding)
    read = parse_config(tomllib.loads(config.to_toml()))
    assert read == config
    assert Cell(read).digest("") == Cell(config).digest("")
    exact = {name for one in made.strategies if isinstance(one, Full) for name in [f.name for f in one.features]}
    assert set(space.exact) <= exact
    for one in space.vocabularies:
        patterns = [next(p for p in found.embedding.strategy if fnmatchcase(f.name, p)) for f in one.features]
        (node,) = {found.embedding.strategy[pattern] for pattern in patterns}
        if node == MixedDimensionConfig(width=0):
            (strategy,) = (made_ for made_ in made.strategies if one.features[0] in made_.features)
            assert strategy.tables() == []
            assert strategy.serve_bytes() == 0


SLOW = settings(max_examples=25, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow])


@SLOW
@given(spaces(), st.data())
def test_whatever_is_drawn_fits(space: Space, data: st.DataObject) -> None:
    answers = Answers(draw=data)
    found = space.suggest(answers)
    check(space, found, space.budget_bytes)
    # What was asked does not depend on the answers, and the same answers are the same proposal.
    recorder = Recorder()
    space.suggest(recorder)
    assert sorted(recorder.asked) == sorted(answers.given)
    assert space.suggest(Answers(answers.given)) == found


@SLOW
@given(spaces(), st.data())
def test_whatever_is_drawn_fits_a_budget_below(space: Space, data: st.DataObject) -> None:
    """Two budgets that round to the same sizes are one run."""
    assume(space.least_bytes <= space.budget_bytes)
    budget = data.draw(st.integers(space.least_bytes, space.budget_bytes))
    answers = Answers(draw=data)
    found = space.suggest(answers, budget)
    check(space, found, budget)
    assert found.embedding.budget == max(found.serve_bytes, 2)
    again = space.suggest(answers, max(found.serve_bytes, space.least_bytes))
    check(space, again, max(found.serve_bytes, space.least_bytes))
    for more in (1, 3):
        other = space.suggest(answers, budget + more)
        if other.embedding.strategy == found.embedding.strategy:
            digests = [Cell(config_of(space, one.embedding)).digest("") for one in (found, other)]
            assert digests[0] == digests[1]


@settings(max_examples=15)
@given(spaces(), st.data())
def test_whatever_is_drawn_is_a_layer(space: Space, data: st.DataObject) -> None:
    """Built, read and stepped; its ledger has the bytes that were told."""
    found = space.suggest(Answers(draw=data))
    emb = EmbeddingLayer(space._features, space._dim, **dict(found.embedding))
    assert emb.ledger()["serve_bytes"].sum() == found.serve_bytes
    tables = emb.optimizer("sgd", lr=0.1)
    emb.begin_stage(emb.stages[0].name)
    ids = {
        f.name: (torch.tensor([0, f.size - 1]), torch.tensor([0, 2, 2])) if f.multi_valued else torch.tensor([0, 0])
        for f in space._features
    }
    model = torch.nn.Linear(len(ids) * space._dim, 1)
    model(emb(ids).flatten(1)).sum().backward()
    tables.step()
    emb.after_step()


# --- extremes ------------------------------------------------------------------------------------------------

FEATURES = (
    Feature("user", 4000),
    Feature("item", 700),
    Feature("history", vocabulary="item", multi_valued=True),
    Feature("city", 60),
)


def widths_of(found: Proposal) -> dict[str, Any]:
    return {name: node.width for name, node in found.embedding.strategy.items() if hasattr(node, "width")}


@pytest.mark.parametrize("blocks", [1, 4])
@pytest.mark.parametrize("name", ["user", "item", "city"])
@pytest.mark.parametrize("budget", [0.02, 0.3, 0.97])
def test_each_vocabulary_can_be_dropped_and_can_have_all_that_it_can_use(blocks: int, name: str, budget: float) -> None:
    """That is the full width, or the widest within the budget."""
    space = Space(FEATURES, 16, EmbeddingConfig(budget=budget, exact=()), blocks=blocks)
    assert [one.name for one in space.vocabularies] == ["city", "item", "user"]
    shares = {part: f"share.{part}" for one in space.vocabularies for part in one.parts}
    own = {key for part, key in shares.items() if part.partition(".")[0] == name}
    without = space.suggest(Answers({key: 0.0 if key in own else 0.7 for key in shares.values()}))
    alone = space.suggest(Answers({key: 0.7 if key in own else 0.0 for key in shares.values()}))
    assert widths_of(without)[name] == 0
    size = {"user": 4000, "item": 700, "city": 60}[name]
    found = widths_of(alone)[name]
    names = ["item", "history"] if name == "item" else [name]
    assert {key for key, width in widths_of(alone).items() if width} <= set(names)
    if 4 * 16 * size <= space.budget_bytes:
        assert found == 16
        return
    for width in found if isinstance(found, tuple) else (found,) * blocks:  # none could be the next
        more = 2 * width or 1
        assert 4 * (more - width) * size // blocks + 4 * 16 * (more * (more < 16) - width) > alone.left_over


def test_a_block_can_be_dropped_and_can_have_all() -> None:
    space = Space([Feature("user", 4000)], 16, EmbeddingConfig(budget=0.25), blocks=4)
    keys = [f"share.user.{block}" for block in range(1, 5)]
    for block, key in enumerate(keys):
        found = space.suggest(Answers(dict.fromkeys(keys, 0.0) | {key: HIGHEST}))
        assert widths_of(found)["user"] == tuple(16 if place == block else 0 for place in range(4))
        assert found.left_over == 0
    alike = [space.suggest(Answers(dict.fromkeys(keys, share))) for share in (0.0, 0.5)]
    assert alike[0] == alike[1]  # to drop all is no proposal
    assert widths_of(alike[0])["user"] == (4, 4, 4, 2)


def test_a_vocabulary_with_fewer_ids_than_blocks_has_one_for_each() -> None:
    space = Space([Feature("a", 2), Feature("b", 50)], 4, EmbeddingConfig(budget=0.6, exact=()), blocks=5)
    assert [one.parts for one in space.vocabularies] == [("a.1", "a.2"), tuple(f"b.{n}" for n in range(1, 6))]
    found = space.suggest(Answers({"share.a.2": HIGHEST}))
    assert widths_of(found)["a"] == (0, 4)
    emb = EmbeddingLayer([Feature("a", 2), Feature("b", 50)], 4, **dict(found.embedding))
    assert emb.vectors("a", torch.tensor([0])).abs().sum() == 0
    assert emb.vectors("a", torch.tensor([1])).abs().sum() > 0


# --- choices -------------------------------------------------------------------------------------------------


def test_widths_are_sized_as_they_are_stored() -> None:
    """int8 and fp32 beside each other, in both orders."""
    int8 = MixedDimensionConfig(storage="int8")
    for nodes in ([ANY, int8], [int8, ANY]):
        space = Space(FEATURES, 16, EmbeddingConfig(budget=0.25, exact=()), nodes)
        strategy = {f"strategy.{name}": label(int8) for name in ("item", "user", "city")}
        found = space.suggest(Answers(strategy | {f"share.{name}": 0.5 for name in ("item", "user", "city")}))
        assert found.serve_bytes <= space.budget_bytes
        assert set(widths_of(found).values()) == {16}  # a quarter is all of it in a quarter of the bits
        both = strategy | {"strategy.user": label(ANY)}
        found = space.suggest(Answers(both | {"share.user": 0.5}))
        assert widths_of(found) == {"user": 4, "item": 0, "history": 0, "city": 0} | {
            key: width for key, width in widths_of(found).items() if key != "user"
        }
        assert found.serve_bytes <= space.budget_bytes


def test_all_integers_are_widths_where_powers_of_two_are_not_asked_for() -> None:
    node = MixedDimensionConfig(power_of_two=False)
    space = Space([Feature("a", 1000)], 16, EmbeddingConfig(budget=0.46), [node])
    found = space.suggest(Answers())
    assert widths_of(found) == {"a": 7}
    assert found.serve_bytes == 4 * 7 * 1016
    by_powers = Space([Feature("a", 1000)], 16, EmbeddingConfig(budget=0.46)).suggest(Answers())
    assert widths_of(by_powers) == {"a": 4}


def test_a_strategy_that_does_not_fit_is_dropped_and_the_others_go_on() -> None:
    space = Space(FEATURES, 16, EmbeddingConfig(budget=0.2, exact=()), [ANY, FullConfig()])
    told = {"strategy.user": "full", "strategy.item": "full", "strategy.city": "mixed_dimension"}
    found = space.suggest(Answers(told))
    assert found.embedding.strategy["user"] == MixedDimensionConfig(width=0)
    assert found.embedding.strategy["item"] == FullConfig(bytes=4 * 16 * 700)
    assert found.serve_bytes <= space.budget_bytes
    only = Space(FEATURES, 16, EmbeddingConfig(budget=0.2, exact=()), [FullConfig()]).suggest(Answers())
    assert only.embedding.strategy["user"] == MixedDimensionConfig(width=0)


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("node", [HashConfig(), RobeConfig(), CafeConfig(), UnifiedConfig(), DnisConfig()])
def test_other_strategies_can_be_dropped_and_reach_their_smallest_and_largest_size(
    node: StrategyNode, blocks: int
) -> None:
    """With blocks they have what all blocks were given."""
    space = Space(FEATURES, 16, EmbeddingConfig(budget=0.9, exact=()), [node], blocks=blocks)
    least, most = size_range(node, FEATURES[:1], 16)
    keys = {one.name: [f"share.{part}" for part in one.parts] for one in space.vocabularies}
    none, low, high = (
        space.suggest(Answers({keys["user"][-1]: share, keys["item"][0]: 0.13})).embedding.strategy["user"]
        for share in (0.0, 0.125001, HIGHEST)
    )
    assert none == MixedDimensionConfig(width=0)
    assert low.bytes >= 0.5 * (space.budget_bytes - 700 * 64)  # what the item cannot use
    assert high.bytes >= 0.95 * min(most, 4000 * 64)
    tight = Space(FEATURES, 16, EmbeddingConfig(budget=3 * least, exact=()), [node], blocks=blocks)
    shares = {key: 0.125001 for one in keys for key in keys[one]} | {keys["item"][0]: HIGHEST}
    user = tight.suggest(Answers(shares)).embedding.strategy["user"]
    assert user == node.model_copy(update={"bytes": least})


def test_bytes_are_those_that_are_taken() -> None:
    """A share of 70 and one of 130 bytes are one row of 64: one config, which is planned within what it takes."""
    space = Space([Feature("a", 500), Feature("b", 500)], 16, EmbeddingConfig(budget=400, exact=()), [HashConfig()])
    seen: dict[tuple[int, ...], set[str]] = {}
    for share in range(40):
        found = space.suggest(Answers({"share.a": 0.2 + share / 50, "share.b": 0.5}), 399)
        rows = tuple(sized_plan(found.embedding, space._features, 16).settings.values())
        seen.setdefault(rows, set()).add(found.embedding.model_dump_json())
        assert all(node.bytes % 64 == 0 for node in found.embedding.strategy.values())
        assert found.serve_bytes == found.embedding.budget == 64 * sum(rows)
    assert len(seen) > 3
    assert {len(one) for one in seen.values()} == {1}


# --- what stays exact ----------------------------------------------------------------------------------------


@given(layers(), BUDGETS)
def test_what_stays_exact_is_what_the_layer_keeps(features: list[Feature], budget: Any) -> None:
    try:
        emb = EmbeddingLayer(features, 4, strategy="hash", budget=budget)
    except BudgetError:
        kept: set[str] = set()
    else:
        kept = {f.name for one in emb.strategies if isinstance(one, Full) for f in one.features}
    if kept == {feature.name for feature in features}:
        with pytest.raises(ConfigError, match="nothing to search"):
            Space(features, 4, EmbeddingConfig(budget=budget))
        return
    space = Space(features, 4, EmbeddingConfig(budget=budget))
    assert set(space.exact) == kept
    assert {f.name for one in space.vocabularies for f in one.features} == {f.name for f in features} - kept


def test_a_vocabulary_is_exact_as_a_whole() -> None:
    for exact in (("item",), ("history",)):
        space = Space(FEATURES, 16, EmbeddingConfig(budget=0.4, exact=exact))
        assert [one.name for one in space.vocabularies] == ["city", "user"]
        made = sized_plan(space.suggest(Answers()).embedding, space._features, 16)
        full = next(one for one in made.strategies if isinstance(one, Full))
        assert {feature.name for feature in full.features} >= {"item", "history"}
    whole = Space(FEATURES, 16, EmbeddingConfig(budget=0.4, exact=()))
    assert [one.name for one in whole.vocabularies] == ["city", "item", "user"]


# --- what is refused -----------------------------------------------------------------------------------------


def refused(nodes: Sequence[StrategyNode] = (ANY,), features: Sequence[Feature] = FEATURES, **embedding: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        Space(features, 16, EmbeddingConfig(**({"budget": 0.1} | embedding)), nodes)
    assert caught.value.path is not None
    return f"{caught.value.path}: {caught.value}"


def test_no_budget_nothing_to_search_and_unknown_names() -> None:
    assert refused(budget=None).startswith("embedding.budget: a search needs a budget")
    assert "keeps every feature exact" in refused(budget=1.5)
    assert "keeps every feature exact" in refused(budget=2.0, exact=("user", "item", "city"))
    assert refused(exact=("user", "nobody")) == "embedding.exact: exact names 'nobody', which is no feature"


def test_exact_features_over_the_budget() -> None:
    with pytest.raises(BudgetError, match=r"user, city stay exact and need 259840 bytes") as caught:
        Space(FEATURES, 16, EmbeddingConfig(budget=0.5, exact=("user", "city")))
    error = caught.value
    assert (error.min_bytes, error.nearest_bytes, error.max_bytes) == (259_840, 259_840, 304_640)
    space = Space(FEATURES, 16, EmbeddingConfig(budget=error.nearest_bytes, exact=("user", "city")))
    assert space.suggest(Answers()).left_over == 0
    assert space.least_bytes == 259_840
    with pytest.raises(BudgetError, match="the budget is 259839 bytes"):
        space.suggest(Answers(), 259_839)


@pytest.mark.parametrize("one", PRUNED)
@pytest.mark.parametrize("other", PRUNED)
def test_strategies_in_different_stages_are_refused_before_any_trial(one: StrategyNode, other: StrategyNode) -> None:
    """Unless there is one vocabulary alone; with strategies that have no stages of their own, all go together."""
    budget = EmbeddingConfig(budget=0.2, exact=())
    nodes = list(dict.fromkeys([HashConfig(), one, other]))
    assert Space(FEATURES[:1], 16, budget, nodes).vocabularies
    if one.name == other.name:  # blocks are no matter of stages
        space = Space(FEATURES, 16, budget, nodes)
        told = {"strategy.user": label(one), "strategy.item": label(other), "strategy.city": "hash"}
        assert sized_plan(space.suggest(Answers(told)).embedding, space._features, 16).stages
    else:
        told = refused(nodes, exact=())
        assert told.startswith("search.strategies: search.strategies: strategies of one layer train in the same stages")
        assert one.name in told
        assert other.name in told


def test_choices_that_are_none() -> None:
    assert "needs strategies" in refused([])
    assert "leave out 'bytes'" in refused([HashConfig(bytes="1KB")])
    assert "leave out 'alpha'" in refused([MixedDimensionConfig(alpha=0.3)])
    assert "width 17" in refused([MixedDimensionConfig(width=17)])
    assert refused([UnifiedConfig(chunks=3)]).startswith("search.strategies:")
    named = [Feature("user", 500), Feature("user.1", 400)]
    assert "rename a feature" in refused([ANY, CompositionalConfig()], named, exact=())
    assert Space(named, 16, EmbeddingConfig(budget=0.1, exact=())).suggest(Answers())


# --- a trial's config ----------------------------------------------------------------------------------------


def test_a_trial_of_the_front_stays_within_its_budget_and_is_asked_for_the_same() -> None:
    tree = {
        "data": {"path": "x.csv", "categorical": ["x"]},
        "model": {"name": "dlrm", "dim": 16},
        "embedding": {"budget": 0.3},
        "search": {"strategies": ["mixed_dimension", "hash"], "tables_lr": [0.01, 1.0], "decay": [1e-6, 1e-3]},
    }
    config = parse_config(tree)
    space = Space.of(config, resolve(FEATURES))
    asked = parameters(config, space, "pareto")
    assert asked == [
        "budget", "strategy.item", "strategy.user", "share.item", "share.user", "tables_lr", "decay",
    ]  # fmt: skip
    assert parameters(config, space, "optuna") == asked[1:]
    low = Answers({"budget": config.search.smallest, "tables_lr": 0.5, "decay": 1e-4})
    found, left_over = proposed(config, space, "pareto", low)
    assert found.embedding.decay == 1e-4
    assert found.training.optimizer.tables_lr == 0.5
    assert found.embedding.budget == int(0.1 * space.budget_bytes) - left_over
