"""Bytes: what a budget means, which strategy sizes fit it, and where the bytes go.

A budget is bytes of the serving form: every tensor needed to turn ids into vectors, at logical widths. 1 MB = 10^6
bytes, 1 MiB = 2^20. A float is a kept fraction of the full fp32 tables, ``"10x"`` is one tenth, an int is bytes.
"""

from __future__ import annotations

import fnmatch
import re
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from recsys_embed.config import FullConfig, StrategyNode
from recsys_embed.embeddings import CLASSES, Full, Strategy
from recsys_embed.embeddings.base import common_stages
from recsys_embed.errors import BudgetError, ConfigError
from recsys_embed.features import Feature
from recsys_embed.hashed import check_hashed
from recsys_embed.stages import Stage

EXACT_SHARE = 10
"""Small features stay exact while their full tables together take at most one tenth of the budget."""

COARSE = 0.98
"""A strategy whose sizes are too coarse to reach this share of the budget is marked ``coarse``."""

NO_END = sys.maxsize
"""Stands for the bytes of tables that have no size: of a row for each id, where nobody knows how many there are."""

_UNITS = {"B": 1} | {
    prefix + unit: base**power
    for unit, base in (("B", 1000), ("iB", 1024))
    for power, prefix in enumerate(("K", "M", "G", "T"), start=1)
}


@dataclass(frozen=True)
class ByteBudget:
    """A budget as the user wrote it: ``64MB``, ``64MiB``, ``10x``, ``0.1`` or a number of bytes.

    >>> ByteBudget.parse("64MB").resolve(full_bytes=10**9), ByteBudget.parse("10x").resolve(full_bytes=10**9)
    (64000000, 100000000)
    >>> ByteBudget.parse(0.5).resolve(full_bytes=1000), ByteBudget.parse(640).resolve(full_bytes=1000)
    (500, 640)
    """

    text: str
    bytes: int | None = None
    kept: float | None = None

    @classmethod
    def parse(cls, value: int | float | str | ByteBudget) -> ByteBudget:
        """Read a budget.

        Raises:
            ConfigError: it is none of the forms, not positive, or the int 1 (write 1.0 for the whole).
        """
        if isinstance(value, ByteBudget):
            return value
        text = str(value).strip()
        if isinstance(value, bool):
            raise ConfigError(f"a budget is bytes, a size like '64MB', a ratio like '10x' or a fraction; got {value!r}")
        if isinstance(value, int):
            if value <= 1:
                raise ConfigError(f"a budget of {value} byte: write 1.0 to keep the whole, or a size like '64MB'")
            return cls(text, bytes=value)
        if isinstance(value, float):
            return cls._kept(text, value)
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]*)", text)
        if match is None:
            raise ConfigError(f"a budget is bytes, a size like '64MB', a ratio like '10x' or a fraction; got {value!r}")
        number, unit = match.groups()
        if unit == "x":
            if float(number) <= 0:
                raise ConfigError(f"a ratio is positive, got {value!r}")
            return cls._kept(text, 1 / float(number))
        if unit == "":
            return cls.parse(float(number) if "." in number else int(number))
        units = {name.lower(): size for name, size in _UNITS.items()}
        if unit.lower() not in units:
            raise ConfigError(f"unknown unit in budget {value!r}; known: {', '.join(_UNITS)}, x")
        return cls(text, bytes=int(float(number) * units[unit.lower()]))

    @classmethod
    def _kept(cls, text: str, kept: float) -> ByteBudget:
        if not 0 < kept < float("inf"):
            raise ConfigError(f"a kept fraction is positive, got {text}")
        return cls(text, kept=kept)

    def resolve(self, *, full_bytes: int) -> int:
        """The budget in bytes, against full tables of ``full_bytes``."""
        return self.bytes if self.bytes is not None else round((self.kept or 0.0) * full_bytes)


def size_in_bytes(value: int | str) -> int:
    """Bytes of a size such as ``"80GB"``; a number is bytes, and may be 0.

    Raises:
        ConfigError: it is no size, or a ratio.
    """
    if value in (0, "0", 1):
        return int(value)
    size = ByteBudget.parse(value).bytes
    if size is None:
        raise ConfigError(f"a size is bytes or like '64MB', got {value!r}")
    return size


@dataclass(frozen=True)
class Plan:
    """Strategies sized to a budget; nothing is allocated yet. Fields in bytes of the serving form."""

    strategies: tuple[Strategy, ...]
    budget: ByteBudget | None
    budget_bytes: int | None
    serve_bytes: int
    full_bytes: int | None
    """None where a feature is hashed: there are no full tables."""

    @property
    def coarse(self) -> bool:
        """Whether the sizes of the strategy left more than 2 % of the budget unused."""
        usable = [size for size in (self.budget_bytes, self.full_bytes) if size is not None]
        return self.budget_bytes is not None and self.serve_bytes < COARSE * min(usable)

    @property
    def kept_fraction(self) -> float | None:
        """The kept fraction that was asked for, of the full tables."""
        return None if self.budget_bytes is None else self.share_of_full(self.budget_bytes)

    def share_of_full(self, size: int) -> float | None:
        """Bytes in units of the full tables'."""
        return None if self.full_bytes is None else size / self.full_bytes

    @property
    def stages(self) -> tuple[Stage, ...]:
        """How the layer is trained."""
        return common_stages(self.strategies)

    @property
    def settings(self) -> dict[str, object]:
        """What the budget led to: every table with its rows."""
        return {name: rows for strategy in self.strategies for name, rows in strategy.settings().items()}


@dataclass(frozen=True)
class _Group:
    """Features of a pattern, and the range of their strategy's knob."""

    pattern: str
    config: StrategyNode
    features: tuple[Feature, ...]
    dim: int
    label: str
    seed: int

    @property
    def cls(self) -> type[Strategy]:
        return CLASSES[type(self.config)]

    @property
    def own_bytes(self) -> int | None:
        return None if self.config.bytes is None else size_in_bytes(self.config.bytes)

    def only(self, vocabularies: Collection[str]) -> _Group:
        """With those of its features alone."""
        return replace(self, features=tuple(f for f in self.features if f.vocab in vocabularies))

    def without(self, vocabularies: Collection[str]) -> _Group:
        """With its other features alone."""
        return replace(self, features=tuple(f for f in self.features if f.vocab not in vocabularies))

    def sized(self, rows: int) -> tuple[Strategy, ...]:
        if not self.features:
            return ()
        made = self.cls.divided(self.config, self.features, self.dim, rows, self.label, self.seed)
        for one in made:
            one.storage = self.config.table_storage()
        return made

    def least(self) -> int:
        return self.cls.least(self.config, self.features, self.dim) if self.features else 0

    def most(self) -> int:
        return self.cls.most(self.config, self.features, self.dim)

    def bytes(self, rows: int) -> int:
        with torch.device("meta"):  # trying a size allocates nothing, index maps included
            return sum(one.serve_bytes() for one in self.sized(rows))

    def full_bytes(self) -> int:
        return full_bytes(self.features, self.dim)

    def rows_within(self, limit: int) -> int:
        """The largest setting of the knob whose bytes are within ``limit``, or the least."""
        low = self.least()
        high = self.most() if self.features else low
        while low < high:
            middle = (low + high + 1) // 2
            if self.bytes(middle) <= limit:
                low = middle
            else:
                high = middle - 1
        return low


def full_bytes(features: Sequence[Feature], dim: int) -> int:
    """Bytes of the fp32 tables with a row per id; :data:`NO_END` where a feature is hashed."""
    if any(feature.hashed for feature in features):
        return NO_END
    return sum(size for _, size in {(f.vocab, f.size) for f in features}) * dim * 4


def size_range(config: StrategyNode, features: Sequence[Feature], dim: int) -> tuple[int, int]:
    """Bytes of the smallest and the largest size of a strategy for these features, all of them compressed."""
    group = _alone(config, features, dim)
    return group.bytes(group.least()), group.bytes(group.most())


def size_within(limit: int, config: StrategyNode, features: Sequence[Feature], dim: int) -> int:
    """Bytes that :func:`plan` takes for features under a pattern with ``limit`` bytes of its own, none of them named
    exact. At least those of the smallest size, or of full tables where it is above them."""
    group = _alone(config, features, dim)
    return min(group.bytes(group.rows_within(limit)), group.full_bytes())


def smallest(config: StrategyNode, features: Sequence[Feature], dim: int) -> Strategy:
    """A strategy at its smallest size, in which nothing is allocated: to ask what does not depend on the size."""
    group = _alone(config, features, dim)
    with torch.device("meta"):
        return group.sized(group.least())[0]


def _alone(config: StrategyNode, features: Sequence[Feature], dim: int) -> _Group:
    return _Group("*", config, tuple(features), dim, config.name, 0)


def assign(features: Sequence[Feature], strategy: Mapping[str, StrategyNode]) -> dict[str, list[Feature]]:
    """The features of each pattern; the first pattern that matches a feature's name wins.

    Features that share a vocabulary go together, to the pattern of the first of them.

    Raises:
        ConfigError: a feature without pattern, a pattern without feature, or a vocabulary under two strategies.
    """
    groups: dict[str, list[Feature]] = {pattern: [] for pattern in strategy}
    owners: dict[str, str] = {}
    matched = set()
    for feature in features:
        pattern = next((p for p in strategy if fnmatch.fnmatchcase(feature.name, p)), None)
        if pattern is None:
            raise ConfigError(f"no strategy for feature {feature.name!r}: add a pattern '*'", path="embedding.strategy")
        matched.add(pattern)
        owner = owners.setdefault(feature.vocab, pattern)
        if strategy[owner] != strategy[pattern]:
            raise ConfigError(
                f"vocabulary {feature.vocab!r} is shared by features under patterns {owner!r} and {pattern!r}: "
                "features that share rows need one strategy",
                path="embedding.strategy",
            )
        groups[owner].append(feature)
    for pattern in groups:
        if pattern not in matched:
            names = ", ".join(feature.name for feature in features)
            raise ConfigError(
                f"pattern {pattern!r} matches no feature (of {names})", path=f"embedding.strategy.{pattern}"
            )
    return groups


def plan(
    features: Sequence[Feature],
    dim: int,
    strategy: Mapping[str, StrategyNode],
    budget: int | float | str | ByteBudget | None,
    *,
    exact: Sequence[str] | None = None,
    hash_seed: int = 0,
) -> Plan:
    """Size the strategies so that the whole layer fits the budget; allocates nothing.

    What stays exact is subtracted first: the features named in ``exact``, or where that is ``None``, the smallest ones
    (see :data:`EXACT_SHARE`); and features that the strategy could not make smaller. So are patterns with bytes of
    their own, or with a size that their options give: of these only what is named stays exact. Then one kept fraction
    is found for all other groups of features, each clamped between its smallest and full size. A budget above the full
    size gives full, for a layer, a pattern with bytes of its own, or what is left beside such patterns. What stays
    exact is stored as fp32, and so is everything above the full size; a strategy in fewer bits cannot use all of a
    budget near the full size, and is then ``coarse``.

    Where a feature is hashed there are no full tables. Budgets are then bytes, all of which are used.

    Where a vocabulary has grown (``Feature.born``), all this is about the ids that it was born with; the strategies so
    found then :meth:`~recsys_embed.embeddings.base.Strategy.grow`, beyond the budget where they append rows.

    Raises:
        BudgetError: below the smallest feasible size, or ``full`` below its size; of the layer, or of a pattern with
            bytes of its own. Or these are together over the budget.
        ConfigError: patterns or names that do not fit the features; no budget where one is needed; strategies that
            cannot be trained together; a strategy or a budget that hashed features cannot have; a vocabulary that has
            grown under a strategy that cannot take new ids.
    """
    born = as_born(features)
    if born != tuple(features):
        return _grown(plan(born, dim, strategy, budget, exact=exact, hash_seed=hash_seed), features, dim)
    groups = _groups(features, dim, strategy, hash_seed)
    for name in exact or ():
        if name not in {feature.name for feature in features}:
            raise ConfigError(f"exact names {name!r}, which is no feature", path="embedding.exact")
    whole = full_bytes(features, dim)
    wanted = None if budget is None else ByteBudget.parse(budget)
    check_hashed({group.pattern: group.features for group in groups}, strategy, wanted, exact)
    limit = sys.maxsize if wanted is None else wanted.resolve(full_bytes=whole)
    own = [group for group in groups if group.config.settled or group.own_bytes is not None]
    scarce = [group for group in groups if group not in own]
    squeezed = [group.config.name for group in scarce if not isinstance(group.config, FullConfig)]
    if wanted is None and squeezed:
        raise ConfigError(f"strategy {squeezed[0]!r} needs a budget", path="embedding.budget")

    kept = _incompressible(groups) | {feature.vocab for feature in features if feature.name in (exact or ())}
    _refuse_more_than(limit, groups, kept, whole)
    rows: dict[str, int] = {}
    for group in own:
        if group.own_bytes is not None and group.own_bytes > group.full_bytes() and not group.config.settled:
            kept |= {feature.vocab for feature in group.features}
        rows[group.pattern] = _within_own_bytes(group, kept)
    left = limit - _bytes(own, kept, rows)
    if wanted is not None and left > sum(group.full_bytes() for group in scarce):
        kept |= {feature.vocab for group in scarce for feature in group.features}
    elif wanted is not None and exact is None:
        kept |= _small(scarce, kept, left)
    rows |= _share(scarce, kept, left)
    exact_features = [feature for feature in features if feature.vocab in kept]
    sized = [one for group in groups for one in group.without(kept).sized(rows[group.pattern])]
    built = tuple(([Full(exact_features, dim)] if exact_features else []) + sized)
    used = sum(one.serve_bytes() for one in built)
    if used > limit:
        least = min(used, whole)
        raise BudgetError(
            f"{_names(strategy)} needs at least {least} bytes for these features, the budget is {limit} bytes"
            f"{_told_full(whole)}; nearest feasible budget: {least} bytes",
            min_bytes=least,
            max_bytes=whole,
            nearest_bytes=least,
        )
    common_stages(built)
    return Plan(built, wanted, None if wanted is None else limit, used, None if whole == NO_END else whole)


def as_born(features: Sequence[Feature]) -> tuple[Feature, ...]:
    """The features as their model was sized for them: with the ids and frequencies that there were then."""
    sizes = {one.vocab: one.born for one in features if one.born is not None}
    return tuple(
        replace(one, cardinality=sizes[one.vocab], born=None, counts=None if one.counts is None else one.counts[:size])
        if (size := sizes.get(one.vocab)) is not None
        else one
        for one in features
    )


def _grown(plan: Plan, features: Sequence[Feature], dim: int) -> Plan:
    """A plan for the ids that there were, over those there are."""
    by_name = {one.name: one for one in features}
    for strategy in plan.strategies:
        now = [by_name[one.name] for one in strategy.features]
        if [one.cardinality for one in now] != [one.cardinality for one in strategy.features]:
            strategy.grow(now)
    used, whole = sum(one.serve_bytes() for one in plan.strategies), full_bytes(features, dim)
    return replace(plan, serve_bytes=used, full_bytes=None if whole == NO_END else whole)


def _told_full(size: int) -> str:
    return "" if size == NO_END else f" (full: {size} bytes)"


def _names(strategy: Mapping[str, StrategyNode]) -> str:
    return " + ".join(dict.fromkeys(config.name for config in strategy.values()))


def _groups(
    features: Sequence[Feature], dim: int, strategy: Mapping[str, StrategyNode], hash_seed: int
) -> list[_Group]:
    """One for each pattern."""
    groups = []
    for pattern, members in assign(features, strategy).items():
        config = strategy[pattern]
        place = [p for p in strategy if type(strategy[p]) is type(config)].index(pattern)
        label = config.name + (f"_{place + 1}" if place else "")
        groups.append(_Group(pattern, config, tuple(members), dim, label, hash_seed))
    return groups


def _refuse_more_than(limit: int, groups: Sequence[_Group], kept: Collection[str], whole: int) -> None:
    """Own bytes together are within the budget, as far as features can use them."""
    claims = {
        f"embedding.strategy.{group.pattern}.bytes": min(group.own_bytes, group.full_bytes())
        for group in groups
        if group.own_bytes is not None
    }
    claimed = sum(claims.values())
    if claimed > limit:
        least = claimed + _bytes((group for group in groups if group.own_bytes is None), kept)
        raise BudgetError(
            f"{' + '.join(claims)} are {claimed} bytes, embedding.budget is {limit} bytes; nearest feasible budget: "
            f"{least} bytes",
            min_bytes=least,
            max_bytes=whole,
            nearest_bytes=least,
        )


def _within_own_bytes(group: _Group, kept: Collection[str]) -> int:
    """Rows of a pattern with bytes or a size of its own.

    Raises:
        BudgetError: it cannot be made that small.
    """
    free, limit = group.without(kept), group.own_bytes
    if limit is None:
        return free.least()
    rows = free.rows_within(limit - group.only(kept).full_bytes())
    used = _bytes([group], kept, {group.pattern: rows})
    if used > limit:
        raise BudgetError(
            f"embedding.strategy.{group.pattern}.bytes: {group.config.name} needs at least {used} bytes for these "
            f"features, and may have {limit} bytes{_told_full(group.full_bytes())}; nearest feasible: {used} bytes",
            min_bytes=used,
            max_bytes=group.full_bytes(),
            nearest_bytes=used,
        )
    return rows


def _incompressible(groups: Iterable[_Group]) -> set[str]:
    """Vocabularies that their strategy alone could not make smaller than full."""
    found = set()
    for group in groups:
        for vocab in dict.fromkeys(feature.vocab for feature in group.features):
            alone = group.only({vocab})
            if alone.bytes(alone.least()) >= alone.full_bytes():
                found.add(vocab)
    return found


def _bytes(groups: Iterable[_Group], kept: Collection[str], rows: Mapping[str, int] | None = None) -> int:
    """Bytes of the groups with ``kept`` vocabularies full and the others at ``rows``, or at the smallest size."""
    total = 0
    for group in groups:
        free = group.without(kept)
        total += group.only(kept).full_bytes() + free.bytes(free.least() if rows is None else rows[group.pattern])
    return total


def _small(groups: Sequence[_Group], kept: Collection[str], limit: int) -> set[str]:
    """The smallest vocabularies beside those ``kept`` already, whose full tables take a small share of the limit."""
    size = {f.vocab: group.only({f.vocab}).full_bytes() for group in groups for f in group.features}
    added: list[str] = []
    room = limit // EXACT_SHARE - sum(size[vocab] for vocab in size.keys() & kept)
    for vocab in sorted(size.keys() - kept, key=lambda vocab: (size[vocab], vocab)):
        room -= size[vocab]
        if room < 0:
            break
        added.append(vocab)
    # Exact features must not make an otherwise feasible budget infeasible.
    while added and _bytes(groups, {*kept, *added}) > limit:
        added.pop()
    return set(added)


def _share(groups: Sequence[_Group], kept: Collection[str], limit: int) -> dict[str, int]:
    """Rows of each pattern within the limit: one kept fraction for all, then what rounding left over."""
    free = [group.without(kept) for group in groups]
    rows = {group.pattern: group.least() for group in free}
    room = limit - sum(group.only(kept).full_bytes() for group in groups)
    free = [group for group in free if group.features]

    def used(rows: Mapping[str, int]) -> int:
        return sum(group.bytes(rows[group.pattern]) for group in free)

    if not free or used(rows) > room:
        return rows
    if len(free) > 1:
        low, high = 0.0, 1.0
        for _ in range(40):
            middle = (low + high) / 2
            tried = {group.pattern: group.rows_within(int(middle * group.full_bytes())) for group in free}
            if used(tried) <= room:
                low, rows = middle, {**rows, **tried}
            else:
                high = middle
    for group in free:
        others = used(rows) - group.bytes(rows[group.pattern])
        rows[group.pattern] = max(rows[group.pattern], group.rows_within(room - others))
    return rows
