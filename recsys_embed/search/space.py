"""The space of a search over widths and strategies: whatever is drawn from it fits the byte budget.

A point of the space is a weight for every part of the embedding, and a strategy for every vocabulary. The weights
divide the budget (:mod:`recsys_embed.search.division`), so nothing is ever proposed only to be refused, and no sampler
has to learn where the budget ends. A part whose share does not pay for a single column is dropped.
"""

from __future__ import annotations

import contextlib
import glob
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from recsys_embed.budget import ByteBudget, Plan, full_bytes, plan, size_range
from recsys_embed.config import Config, EmbeddingConfig, FullConfig, HashConfig, MixedDimensionConfig, StrategyNode
from recsys_embed.embeddings import Full
from recsys_embed.errors import BudgetError, ConfigError
from recsys_embed.features import Feature
from recsys_embed.search.division import divide

_GRID = 48
"""Sizes of a strategy between its smallest and its largest, each as much larger than the one before."""


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
    """The features that share rows."""

    name: str
    features: tuple[Feature, ...]


class Space:
    """Embeddings of some features within a budget.

    Args:
        features: in layer order.
        dim: D.
        embedding: where ``budget``, ``exact`` and whatever else is the same for all come from. What it keeps exact is
            not searched.
        strategies: what a vocabulary may be stored as. ``mixed_dimension`` without a width stands for all widths.
        blocks: ids of a vocabulary are cut into this many blocks by frequency, each with a width of its own.

    Raises:
        BudgetError: what stays exact is over the budget already.
        ConfigError: no budget, or none of the features is left to search.
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
        self._features, self._dim, self._embedding, self._blocks = tuple(features), dim, embedding, blocks
        self._nodes = {label(node): node for node in strategies}
        self.budget_bytes = ByteBudget.parse(embedding.budget).resolve(full_bytes=full_bytes(features, dim))
        self.exact = self._exact_features()
        shared: dict[str, list[Feature]] = {}
        for feature in features:
            if feature.name not in self.exact:
                shared.setdefault(feature.vocab, []).append(feature)
        self.vocabularies = tuple(_Vocabulary(name, tuple(shared[name])) for name in sorted(shared))
        if not self.vocabularies:
            raise ConfigError(
                f"a budget of {self.budget_bytes} bytes keeps every feature exact: there is nothing to search",
                path="embedding.budget",
            )
        kept = [feature for feature in features if feature.name in self.exact]
        self._fixed_bytes = full_bytes(kept, dim)
        if self._fixed_bytes > self.budget_bytes:
            raise BudgetError(
                f"{', '.join(self.exact)} stay exact and need {self._fixed_bytes} bytes, the budget is "
                f"{self.budget_bytes} bytes; nearest feasible budget: {self._fixed_bytes} bytes",
                min_bytes=self._fixed_bytes,
                max_bytes=full_bytes(features, dim),
                nearest_bytes=self._fixed_bytes,
            )
        self._widths = {
            one.name: [self._width_sizes(one, block) for block in range(blocks)] for one in self.vocabularies
        }
        self._sizes = {
            (one.name, name): self._other_sizes(one, node)
            for one in self.vocabularies
            for name, node in self._nodes.items()
            if not _any_width(node)
        }

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
        room = budget - self._fixed_bytes
        chosen = {one.name: self._strategy_of(one, trial) for one in self.vocabularies}
        self._drop_until_feasible(chosen, room)
        weights: dict[str, float] = {}
        sizes: dict[str, list[int]] = {}
        for one in self.vocabularies:
            node = chosen[one.name]
            # Weights drawn like this divide the budget uniformly among all its divisions.
            for block in range(self._blocks):
                part = one.name if self._blocks == 1 else f"{one.name}.{block + 1}"
                share = -math.log1p(-trial.suggest_float(f"share.{part}", 0.0, 1.0 - 2.0**-20))
                if node is None or _any_width(node):
                    weights[part] = share
                    sizes[part] = [0] if node is None else [size for size, _ in self._widths[one.name][block]]
                elif block == 0:
                    weights[part] = share
                    sizes[part] = self._sizes[one.name, label(node)]
        division = divide(room, weights, sizes)
        patterns = self._patterns(chosen, division.chosen)
        embedding = self._embedding.model_copy(update={"strategy": patterns, "exact": self.exact})
        made = sized_plan(embedding, self._features, self._dim)
        if budget_bytes is not None:  # by what it takes: budgets that lead to the same sizes are one proposal
            embedding = embedding.model_copy(update={"budget": made.serve_bytes})
        return Proposal(embedding, made.serve_bytes, budget - made.serve_bytes)

    @property
    def least_bytes(self) -> int:
        """The smallest budget that :meth:`suggest` takes."""
        return max(1, self._fixed_bytes)

    def _exact_features(self) -> tuple[str, ...]:
        """What the layer keeps exact at this budget: by the rule for strategies whose size follows from a budget."""
        if self._embedding.exact is not None:
            return self._embedding.exact
        with contextlib.suppress(BudgetError):
            made = plan(self._features, self._dim, {"*": HashConfig()}, self.budget_bytes)
            return tuple(f.name for one in made.strategies if isinstance(one, Full) for f in one.features)
        return ()

    def _strategy_of(self, one: _Vocabulary, trial: Suggests) -> StrategyNode | None:
        if len(self._nodes) == 1:
            return next(iter(self._nodes.values()))
        return self._nodes[trial.suggest_categorical(f"strategy.{one.name}", list(self._nodes))]

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
            node = chosen[one.name]
            if node is None or _any_width(node):
                widths = [
                    0 if node is None else self._width_at(one.name, block, places) for block in range(self._blocks)
                ]
                width = widths[0] if len(set(widths)) == 1 else tuple(widths)
                picked: StrategyNode = (node or MixedDimensionConfig()).model_copy(update={"width": width})
            else:
                part = one.name if self._blocks == 1 else f"{one.name}.1"
                picked = node.model_copy(update={"bytes": self._sizes[one.name, label(node)][places[part]]})
            patterns |= {glob.escape(feature.name): picked for feature in one.features}
        return patterns | ({"*": FullConfig()} if self.exact else {})

    def _width_at(self, name: str, block: int, places: Mapping[str, int]) -> int:
        part = name if self._blocks == 1 else f"{name}.{block + 1}"
        return self._widths[name][block][places[part]][1]

    def _width_sizes(self, one: _Vocabulary, block: int) -> list[tuple[int, int]]:
        """Bytes and width of all widths of a block that are of use: no wider one is as cheap."""
        node = next((node for node in self._nodes.values() if _any_width(node)), MixedDimensionConfig())
        candidates = []
        for width in (0, *(2**power for power in range(self._dim.bit_length()) if 2**power < self._dim), self._dim):
            widths = tuple(width if place == block else 0 for place in range(self._blocks))
            given = node.model_copy(update={"width": widths if self._blocks > 1 else width})
            candidates.append((size_range(given, one.features, self._dim)[0], width))
        return [
            (size, width)
            for size, width in candidates
            if all(size < other for other, more in candidates if more > width)
        ]

    def _other_sizes(self, one: _Vocabulary, node: StrategyNode) -> list[int]:
        least, most = size_range(node, one.features, self._dim)
        if least >= most:
            return [least]
        steps = [round(least * (most / least) ** (place / _GRID)) for place in range(_GRID + 1)]
        return sorted({*steps, least, most})


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


def _any_width(node: StrategyNode) -> bool:
    return isinstance(node, MixedDimensionConfig) and node.width is None


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
    strategies: Sequence[StrategyNode] = (MixedDimensionConfig(),),
    blocks: int = 1,
    exact: Sequence[str] | None = None,
) -> EmbeddingConfig:
    """Options of an :class:`~recsys_embed.EmbeddingLayer` within a byte budget, drawn by an Optuna trial.

    For an objective of your own, ``EmbeddingLayer(features, dim, **suggest_layer(trial, features, dim, "64MB"))``.

    Args:
        trial: an Optuna trial, or anything with ``suggest_float`` and ``suggest_categorical``.
        features, dim, budget, exact: as for the layer.
        strategies, blocks: as for :class:`Space`.

    Raises:
        BudgetError, ConfigError: as :class:`Space`.
    """
    embedding = EmbeddingConfig(budget=budget, exact=None if exact is None else tuple(exact))
    return Space(features, dim, embedding, strategies, blocks=blocks).suggest(trial).embedding
