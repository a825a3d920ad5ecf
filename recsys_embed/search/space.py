"""The space of a search over widths and strategies: whatever is drawn from it fits the byte budget.

A point of the space is a weight for every part of the embedding, and a strategy for every vocabulary. The weights
divide the budget (:mod:`recsys_embed.search.division`), so nothing is ever proposed only to be refused, and no sampler
has to learn where the budget ends. A part with weight 0 is dropped, whatever is left over; and so is one whose share
does not pay for a single column, unless what rounding left over does.
"""

from __future__ import annotations

import contextlib
import glob
import json
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard

from pydantic import ValidationError

from recsys_embed.budget import ByteBudget, Plan, full_bytes, plan, size_range, size_within, smallest
from recsys_embed.config import (
    Config,
    EmbeddingConfig,
    FullConfig,
    HashConfig,
    MixedDimensionConfig,
    SearchConfig,
    StrategyNode,
    explain,
)
from recsys_embed.embeddings import Full
from recsys_embed.errors import BudgetError, ConfigError
from recsys_embed.features import Feature, resolve
from recsys_embed.search.division import divide
from recsys_embed.stages import agreed

_GRID = 512
"""Sizes of a strategy from its smallest to its largest, each as much larger than the one before: by 4 % at a billion
times."""

_DROPPED = 0.125
"""The share of its range in which a weight is 0."""

_LEAST = 2
"""The smallest number of bytes that a budget can be."""


class Suggests(Protocol):
    """What is asked of an Optuna trial; its fixed twin answers too."""

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """A number in ``[low, high]``."""

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        """One of the choices."""


@dataclass(frozen=True)
class Proposal:
    """An embedding within the budget: its config, its serving bytes, and bytes of the budget that it leaves unused."""

    embedding: EmbeddingConfig
    serve_bytes: int
    left_over: int


@dataclass(frozen=True)
class _Vocabulary:
    """The features that share rows, and the parts that its ids are cut into."""

    name: str
    features: tuple[Feature, ...]
    parts: tuple[str, ...]


class Space:
    """Embeddings of some features within a budget.

    Args:
        features: in layer order.
        dim: D.
        embedding: where ``budget``, ``exact`` and whatever else is the same for all come from. What it keeps exact is
            not searched.
        strategies: what a vocabulary may be stored as. ``mixed_dimension`` without a width stands for all widths: those
            that are a power of two, or with ``power_of_two = false`` all.
        blocks: ids of a vocabulary are cut into this many blocks by frequency, each with a width of its own.

    Raises:
        BudgetError: what stays exact is over the budget already.
        ConfigError: no budget, none of the features is left to search, a strategy has options that the search finds
            itself, or strategies of two vocabularies could not be trained together or would have a table of one name.
    """

    def __init__(
        self,
        features: Sequence[Feature],
        dim: int,
        embedding: EmbeddingConfig,
        strategies: Sequence[StrategyNode] = (MixedDimensionConfig(),),
        *,
        blocks: int = 1,
    ) -> None:
        if embedding.budget is None:
            raise ConfigError("a search needs a budget: set embedding.budget", path="embedding.budget")
        check_choices(strategies)
        self._features, self._dim, self._embedding = resolve(features), dim, embedding
        self._nodes = {label(node): node for node in strategies}
        whole = full_bytes(self._features, dim)
        self.budget_bytes = ByteBudget.parse(embedding.budget).resolve(full_bytes=whole)
        self.exact = self._exact_features()
        kept = {feature.vocab for feature in self._features if feature.name in self.exact}
        self._fixed_bytes = full_bytes([feature for feature in self._features if feature.vocab in kept], dim)
        self._check(self.budget_bytes)
        self.vocabularies = self._vocabularies(kept, blocks)
        if not self.vocabularies:
            raise ConfigError(
                f"a budget of {self.budget_bytes} bytes keeps every feature exact: there is nothing to search",
                path="embedding.budget",
            )
        with _told_as_choices():
            self._widths = {
                (one.name, name): [self._width_sizes(one, node, block) for block in range(len(one.parts))]
                for one in self.vocabularies
                for name, node in self._nodes.items()
                if _any_width(node)
            }
            self._sizes = {
                (one.name, name): self._other_sizes(one, node)
                for one in self.vocabularies
                for name, node in self._nodes.items()
                if not _any_width(node)
            }
            self._check_names(kept)
            if len(self.vocabularies) > 1:
                self._check_stages()

    @classmethod
    def of(cls, config: Config, features: Sequence[Feature]) -> Space:
        """That of a search."""
        search = config.search
        return cls(features, config.model.dim, config.embedding, search.strategies, blocks=search.blocks)

    def suggest(self, trial: Suggests, budget_bytes: int | None = None) -> Proposal:
        """Draw an embedding. ``budget_bytes``: less than the space's own budget.

        Raises:
            BudgetError: ``budget_bytes`` are fewer than what stays exact takes.
        """
        budget = self.budget_bytes if budget_bytes is None else min(budget_bytes, self.budget_bytes)
        self._check(budget)
        room = budget - self._fixed_bytes
        named, drawn = self._strategies(trial), self._weights(trial)
        chosen = {
            one.name: named[one.name] if any(drawn[part] for part in one.parts) else None for one in self.vocabularies
        }
        self._drop_until_feasible(chosen, room)
        weights: dict[str, float] = {}
        sizes: dict[str, list[int]] = {}
        for one in self.vocabularies:
            node = chosen[one.name]
            if node is not None and _any_width(node):
                for part, known in zip(one.parts, self._widths[one.name, label(node)], strict=True):
                    weights[part] = drawn[part]
                    sizes[part] = [size for size, _ in known] if drawn[part] else [0]
            elif node is not None:
                weights[one.parts[0]] = sum(drawn[part] for part in one.parts)
                sizes[one.parts[0]] = self._sizes[one.name, label(node)]
        division = divide(room, weights, sizes)
        patterns = self._patterns(chosen, division.chosen)
        embedding = self._embedding.model_copy(update={"strategy": patterns, "exact": self.exact})
        made = sized_plan(embedding, self._features, self._dim)
        if budget_bytes is not None:  # by what it takes: budgets that lead to the same sizes are one proposal
            embedding = embedding.model_copy(update={"budget": max(made.serve_bytes, _LEAST)})
        return Proposal(embedding, made.serve_bytes, budget - made.serve_bytes)

    @property
    def least_bytes(self) -> int:
        """The smallest budget that :meth:`suggest` takes."""
        return max(_LEAST, self._fixed_bytes)

    def _exact_features(self) -> tuple[str, ...]:
        """What the layer keeps exact at this budget: by the rule for strategies whose size follows from a budget."""
        if self._embedding.exact is not None:
            names = [feature.name for feature in self._features]
            for name in self._embedding.exact:
                if name not in names:
                    raise ConfigError(f"exact names {name!r}, which is no feature", path="embedding.exact")
            return self._embedding.exact
        with contextlib.suppress(BudgetError):
            made = plan(self._features, self._dim, {"*": HashConfig()}, self._embedding.budget)
            return tuple(f.name for one in made.strategies if isinstance(one, Full) for f in one.features)
        return ()

    def _check(self, budget_bytes: int) -> None:
        """What stays exact is within a budget."""
        if self._fixed_bytes > budget_bytes:
            raise BudgetError(
                f"{', '.join(self.exact)} stay exact and need {self._fixed_bytes} bytes, the budget is "
                f"{budget_bytes} bytes; nearest feasible budget: {self._fixed_bytes} bytes",
                min_bytes=self._fixed_bytes,
                max_bytes=full_bytes(self._features, self._dim),
                nearest_bytes=self._fixed_bytes,
            )

    def _vocabularies(self, kept: Collection[str], blocks: int) -> tuple[_Vocabulary, ...]:
        """Those that are searched, by name. One with fewer ids than blocks has a block for each id."""
        shared: dict[str, list[Feature]] = {}
        for feature in self._features:
            if feature.vocab not in kept:
                shared.setdefault(feature.vocab, []).append(feature)
        return tuple(
            _Vocabulary(
                name,
                tuple(members),
                (name,)
                if blocks == 1
                else tuple(f"{name}.{block + 1}" for block in range(min(blocks, members[0].size))),
            )
            for name, members in sorted(shared.items())
        )

    def _weights(self, trial: Suggests) -> dict[str, float]:
        """A weight for each part. Those that are not 0 divide a budget uniformly among all its divisions."""
        parts = [part for one in self.vocabularies for part in one.parts]
        drawn = {part: trial.suggest_float(f"share.{part}", 0.0, 1.0 - 2.0**-20) for part in parts}
        weights = {part: -math.log1p(-max(0.0, one - _DROPPED) / (1 - _DROPPED)) for part, one in drawn.items()}
        return weights if any(weights.values()) else dict.fromkeys(parts, 1.0)  # to drop all is no proposal

    def _strategies(self, trial: Suggests) -> dict[str, StrategyNode]:
        """A strategy for each vocabulary, by name."""
        choices = list(self._nodes)
        return {
            one.name: self._nodes[
                trial.suggest_categorical(f"strategy.{one.name}", choices) if len(choices) > 1 else choices[0]
            ]
            for one in self.vocabularies
        }

    def _drop_until_feasible(self, chosen: dict[str, StrategyNode | None], room: int) -> None:
        """Drop the vocabularies whose strategy has the largest smallest size, until the smallest sizes fit."""

        def least(name: str) -> int:
            node = chosen[name]
            return 0 if node is None or _any_width(node) else self._sizes[name, label(node)][0]

        while sum(map(least, chosen)) > room:
            chosen[max(chosen, key=lambda name: (least(name), name))] = None

    def _patterns(
        self, chosen: Mapping[str, StrategyNode | None], places: Mapping[str, int]
    ) -> dict[str, StrategyNode]:
        patterns: dict[str, StrategyNode] = {}
        for one in self.vocabularies:
            picked = self._picked(one, chosen[one.name], places)
            patterns |= {glob.escape(feature.name): picked for feature in one.features}
        return patterns | ({"*": FullConfig()} if self.exact else {})

    def _picked(self, one: _Vocabulary, node: StrategyNode | None, places: Mapping[str, int]) -> StrategyNode:
        """The strategy of a vocabulary, with its size: what has the same tables is equal."""
        if node is None:
            return MixedDimensionConfig(width=0)
        if _any_width(node):
            known = zip(one.parts, self._widths[one.name, label(node)], strict=True)
            widths = [sizes[places[part]][1] for part, sizes in known]
            if not any(widths):
                return MixedDimensionConfig(width=0)
            width = widths[0] if len(set(widths)) == 1 else tuple(widths)
            return MixedDimensionConfig(width=width, storage=node.storage, scale=node.scale)
        if node.settled:
            return node
        size = self._sizes[one.name, label(node)][places[one.parts[0]]]
        return node.model_copy(update={"bytes": size_within(size, node, one.features, self._dim)})

    def _width_sizes(self, one: _Vocabulary, node: MixedDimensionConfig, block: int) -> list[tuple[int, int]]:
        """Bytes and width of all widths of a block that are of use: no wider one is as cheap."""
        below = [width for width in range(1, self._dim) if not node.power_of_two or width & (width - 1) == 0]
        candidates = []
        for width in (0, *below, self._dim):
            widths = tuple(width if place == block else 0 for place in range(len(one.parts)))
            given = node.model_copy(update={"width": widths})
            candidates.append((size_range(given, one.features, self._dim)[0], width))
        return [
            (size, width)
            for size, width in candidates
            if all(size < other for other, more in candidates if more > width)
        ]

    def _other_sizes(self, one: _Vocabulary, node: StrategyNode) -> list[int]:
        """Bytes from the smallest size to the largest, none above that of full tables."""
        whole = full_bytes(one.features, self._dim)
        least, most = (min(size, whole) for size in size_range(node, one.features, self._dim))
        return sorted({round(least * (most / max(least, 1)) ** (place / _GRID)) for place in range(_GRID + 1)})

    def _check_names(self, kept: Collection[str]) -> None:
        """No two tables have one name, whatever is drawn."""
        owners = {name: name for name in [*kept, *(one.name for one in self.vocabularies)]}
        for one in self.vocabularies:
            for node in self._nodes.values():
                cut = node.model_copy(update={"width": (1,) * len(one.parts)}) if _any_width(node) else node
                for table in smallest(cut, one.features, self._dim).tables():
                    own = table.name.startswith(f"{one.name}.")
                    if own and owners.setdefault(table.name, one.name) != one.name:
                        raise ConfigError(
                            f"{one.name!r} as {node.name} would have a table called {table.name!r}, as "
                            f"{owners[table.name]!r} has: rename a feature, or leave the strategy out"
                        )

    def _check_stages(self) -> None:
        """Whatever is drawn for the vocabularies trains in the same stages."""
        features = self.vocabularies[0].features
        agreed({name: smallest(node, features, self._dim).stages() for name, node in self._nodes.items()})


class Recorder:
    """Answers with the middle, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        self.asked.append(name)
        return (low + high) / 2

    def suggest_categorical(self, name: str, choices: Sequence[Any]) -> Any:
        self.asked.append(name)
        return choices[0]


def label(node: StrategyNode) -> str:
    """A strategy's name with its options that are not the default, to tell choices apart."""
    options = {
        key: value for key, value in node.model_dump(mode="json", exclude_defaults=True).items() if key != "name"
    }
    return f"{node.name} {json.dumps(options)}" if options else node.name


def _any_width(node: StrategyNode) -> TypeGuard[MixedDimensionConfig]:
    return isinstance(node, MixedDimensionConfig) and node.width is None


def check_choices(strategies: Sequence[StrategyNode]) -> None:
    """There are some, and none has options whose values the search finds.

    Raises:
        ConfigError: they are not so.
    """
    if not strategies:
        raise ConfigError("a search needs strategies to choose from", path="search.strategies")
    for node in strategies:
        found = "bytes" if node.bytes is not None else "alpha" if getattr(node, "alpha", None) is not None else None
        if found:
            raise ConfigError(
                f"search.strategies: {label(node)}: sizes are what a search finds, leave out {found!r}",
                path="search.strategies",
            )


@contextlib.contextmanager
def _told_as_choices() -> Iterator[None]:
    """Errors of strategies name where a search has them from."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"search.strategies: {error}", path="search.strategies") from error


def sized_plan(embedding: EmbeddingConfig, features: Sequence[Feature], dim: int) -> Plan:
    """The plan of an embedding config."""
    return plan(
        features, dim, embedding.strategy, embedding.budget, exact=embedding.exact, hash_seed=embedding.hash_seed
    )


def suggest_layer(
    trial: Suggests,
    features: Sequence[Feature],
    dim: int,
    budget: int | float | str,
    *,
    strategies: Sequence[str | Mapping[str, Any] | StrategyNode] = ("mixed_dimension",),
    blocks: int = 1,
    exact: Sequence[str] | None = None,
) -> EmbeddingConfig:
    """Options of an :class:`~recsys_embed.EmbeddingLayer` within a byte budget, drawn by an Optuna trial.

    For an objective of your own: ``EmbeddingLayer(features, dim, **dict(suggest_layer(trial, features, dim, "64MB")))``

    Args:
        trial: an Optuna trial, or anything with ``suggest_float`` and ``suggest_categorical``.
        features, dim, budget, exact: as for the layer.
        strategies: what a vocabulary may be stored as: names, or tables as in a config.
        blocks: as for :class:`Space`.

    Raises:
        BudgetError, ConfigError: as :class:`Space`; or an unknown strategy or option.
    """
    try:
        embedding = EmbeddingConfig(
            budget=budget, exact=None if exact is None else tuple(exact), on_unknown="error"
        )  # what the layer does with an unknown id where nothing else is said
        search = SearchConfig.model_validate({"strategies": list(strategies), "blocks": blocks})
    except ValidationError as error:
        raise explain(error, "suggest_layer", SearchConfig) from None
    return Space(features, dim, embedding, search.strategies, blocks=search.blocks).suggest(trial).embedding
