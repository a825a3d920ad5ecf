"""The contract of an embedding strategy.

A strategy never owns a big table. It says which rows to read (``address``), and how rows become a vector
(``combine``). A back end in :mod:`recsys_embed.tables` stores, reads and updates the rows.

Shapes: F features, B samples, N id occurrences, S slots of a feature (chunks, probes, partitions), W the width of a
table, D the width of a vector.

    ids [F, B] --address--> rows [F, S, B] --read--> [B, F, S, W] --combine--> [B, F, D]
    jagged:  ids [N]     -> rows [S, N]    -- pooled in the read: [B, F, S, W]
                                           -- per occurrence:     [N, S, W] -> [N, D], pooled by the layer

The slot axis stands next to the width, so that concatenating chunks is a view and not a copy, and ``combine`` is
written once for ``[..., S, W]``. Where it begins with a sum or product over slots, it may say so (``combination``): the
read then does that, and S is 1.

A row number -1 stands for an absent row: it reads as zeros and is never updated. Only a strategy that says so
(``absent``) may ask for one; only back ends that say so (``takes_absent``) see it.

State that changes in training (remaps, sketches, masks) consists of buffers that only :meth:`Strategy.maintain` and
:meth:`Strategy.finish` change, on all ranks alike, from statistics merged with :mod:`recsys_embed.ranks`. Statistics on
the way there (importance seen since the last merge) are per rank, and in the state dict too, so that a resumed training
is the same bit for bit; but they are extra state and no buffers, which others may broadcast (see ``tally.py``). Extra
state is a tensor of rows ``[n, ...]``, any n, that may be dealt to ranks in any way.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, cast

from torch import Tensor, nn

from recsys_embed.embeddings.index_maps import IndexMap, RowNumbers
from recsys_embed.errors import ConfigError
from recsys_embed.features import Feature
from recsys_embed.hashing import MAX_ROWS
from recsys_embed.ids import Ids
from recsys_embed.stages import ONE_STAGE, SmallOptimizer, Stage, agreed, check_names
from recsys_embed.storage import FP32, Storage
from recsys_embed.tables.combination import Combination


@dataclass(frozen=True)
class Uniform:
    """Uniform initial weights in ``[low, high)``."""

    low: float
    high: float

    @property
    def middle(self) -> float:
        """Their mean."""
        return (self.low + self.high) / 2


FULL_INIT = Uniform(-0.05, 0.05)
"""The initial weights of a vector, in every strategy. Wide ones cost accuracy: N(0, 1) about 5 AUC points on
MovieLens-1M in a replication of Unified Embedding (2305.12102)."""


@dataclass(frozen=True)
class TableSpec:
    """A tall table: ``rows`` x ``width`` weights. Its name is unique within the layer.

    A strategy leaves ``storage`` alone: :meth:`Strategy.stored_tables` fills it in.
    """

    name: str
    rows: int
    width: int
    init: Uniform = FULL_INIT
    storage: Storage = FP32

    @property
    def bytes(self) -> int:
        """Bytes of the stored weights."""
        return self.rows * self.width * self.storage.bytes


@dataclass(frozen=True)
class Lookup:
    """What a strategy asks for: the row numbers of each of its reads, and the ids they came from.

    ``aux`` are further integers that ``combine`` needs, per id and in the order of vectors (:meth:`Ids.by_vector`).
    """

    rows: Mapping[str, Tensor]
    ids: Ids
    aux: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Rows:
    """Rows of a table, copied out: weights ``[n, width]`` and optimizer state ``[n, state width]``, both float32.

    Put back into the table they came from, they are what they were, however it is stored.
    """

    weights: Tensor
    state: Tensor


class TableAccess(Protocol):
    """What ``maintain`` and ``finish`` may do with tables: logical rows, optimizer state included.

    Every call is made by all ranks with the same arguments.
    """

    def get_rows(self, name: str, rows: Tensor) -> Rows:
        """Copies of the rows ``[n]`` of a table."""

    def put_rows(self, name: str, rows: Tensor, values: Rows) -> None:
        """Replace the distinct rows ``[n]`` of a table."""


class Strategy(nn.Module, ABC):
    """One way to store the vectors of some features. Concrete classes are final: vary by argument or by wrapping.

    A subclass sets ``index_maps`` (one per read) and implements the abstract members. Building one allocates no table.
    """

    absent: bool = False
    """Whether row numbers may be -1."""

    linear: bool = True
    """Whether ``combine`` commutes with pooling; if so, the bags of a multi-valued feature are pooled in the read."""

    combination: Combination | None = None
    """What ``combine`` makes of the rows of an id's slots before anything else: a read may do that, and ``combine``
    then sees ``[..., 1, W]``. None where it needs them one by one."""

    takes_hashed: ClassVar[bool] = False
    """Whether it takes hashed features, of which nobody knows the number of ids."""

    paper: ClassVar[str]
    """The arXiv number of the paper, for the catalogue."""

    use: ClassVar[str]
    """When to use it, in a line, for the catalogue."""

    index_maps: nn.ModuleDict

    storage: Storage = FP32
    """How its tables are stored: set from the config by whoever sizes the strategy, to be read by the layer only."""

    def __init__(self, features: Sequence[Feature], dim: int, index_maps: Mapping[str, IndexMap]) -> None:
        super().__init__()
        self.features, self.dim = tuple(features), dim
        self.index_maps = nn.ModuleDict(index_maps)

    # The one budget knob: a number of rows. `sized` is monotone in bytes and allocates nothing.

    @staticmethod
    @abstractmethod
    def least(config: Any, features: Sequence[Feature], dim: int) -> int:
        """The smallest feasible number of rows."""

    @staticmethod
    @abstractmethod
    def most(config: Any, features: Sequence[Feature], dim: int) -> int:
        """The largest number of rows that is of use."""

    @classmethod
    @abstractmethod
    def sized(cls, config: Any, features: Sequence[Feature], dim: int, rows: int, label: str, seed: int) -> Strategy:
        """The strategy with ``rows`` rows in all. ``label`` is unique in the layer; ``seed`` is the hash seed."""

    @classmethod
    def divided(
        cls, config: Any, features: Sequence[Feature], dim: int, rows: int, label: str, seed: int
    ) -> tuple[Strategy, ...]:
        """The strategies that have ``rows`` rows together: more than one where features need reads of their own, as
        all rows of a read are of one width."""
        return (cls.sized(config, features, dim, rows, label, seed),)

    fixed: ClassVar[str] = "what it keeps of an id follows from the vocabulary that it was sized for"
    """Why it cannot :meth:`grow`, for the message."""

    def grow(self, features: Sequence[Feature]) -> None:
        """Take its features with larger vocabularies, before tables are made of it. Ids that there were keep their
        rows, and the ids beyond read rows by the same rule, appended ones or shared ones.

        A strategy that grows keeps nothing of an id but rows: see :meth:`own_rows`.

        Raises:
            ConfigError: it cannot take new ids, which is the default.
        """
        raise ConfigError(
            f"strategy {name_of(self)!r} cannot take new ids: {self.fixed}; `recsys-embed strategies` says "
            "which ones can",
            path="embedding.strategy",
        )

    def own_rows(self, vocabulary: str, ids: Tensor) -> Mapping[str, Tensor]:
        """By table, the rows that ids ``[n]`` of a vocabulary read and no others do; none where all rows are shared.

        Raises:
            ConfigError: it keeps more of an id than rows.
        """
        table = self.vector_tables().get(vocabulary)
        if table is not None:
            return {table: ids}
        if self.grows():
            return {}
        raise ConfigError(
            f"strategy {name_of(self)!r} cannot give the ids of {vocabulary!r} to other values: {self.fixed}",
            path="embedding.strategy",
        )

    @classmethod
    def grows(cls) -> bool:
        """Whether :meth:`grow` is overridden."""
        return cls.grow is not Strategy.grow

    def initialise(self, seed: int) -> None:
        """Draw small parameters that do not begin as constants: a function of the layer's seed and of names."""

    @abstractmethod
    def tables(self) -> list[TableSpec]:
        """The tables it reads."""

    def stored_tables(self) -> list[TableSpec]:
        """The tables with their storage, which is centred on the initial weights of each."""
        return [replace(table, storage=self.storage.centred(table.init.middle)) for table in self.tables()]

    @abstractmethod
    def reads(self) -> dict[str, list[list[str]]]:
        """For each read, the table of every feature and slot: ``[F][S]`` names, all of one width."""

    @abstractmethod
    def combine(self, rows: Mapping[str, Tensor], lookup: Lookup) -> Tensor:
        """Vectors ``[..., D]`` of the rows ``[..., S, W]`` of each read; differentiable."""

    def vector_tables(self) -> Mapping[str, str]:
        """By vocabulary, the table where the row of number i is the vector of id i, as it is: what initial vectors are
        put into. Vocabularies without such a table are left out."""
        return {}

    def settings(self) -> dict[str, object]:
        """The sizes the budget led to, in JSON-able values, for reports."""
        return {table.name: table.rows for table in self.tables()}

    def address(self, ids: Ids) -> Lookup:
        """The rows to read for a batch of ids."""
        return Lookup(RowNumbers(cast(Mapping[str, IndexMap], self.index_maps), ids), ids)

    def penalty(self, rows: Mapping[str, Tensor], lookup: Lookup) -> Tensor | None:
        """A term of the loss over the rows just read, or nothing."""
        return None

    # Optional members: a strategy that needs them overrides them, and then needs a tables optimizer.

    maintain_every: int | None = None
    """Steps between two calls of :meth:`maintain`; ``None`` for never."""

    def observe(self, lookup: Lookup, gradients: Mapping[str, Tensor]) -> None:
        """See the gradient of every occurrence before the update: ``[..., S, W]`` of each read."""

    def maintain(self, tables: TableAccess) -> None:
        """Change integer state and row contents together; the only place that may."""

    training_only: ClassVar[frozenset[str]] = frozenset()
    """Entries of the state dict that the shipped form does without: they cost no serving bytes."""

    def serving(self) -> dict[str, int]:
        """Bytes of what is shipped, by part, known before training: tables as stored, small parameters and buffers.

        A strategy that ships another form than it trains overrides it together with :meth:`serve`. Tables and state
        that it leaves out are not shipped; names that are neither are parts that only the shipped form has.
        """
        tables = {table.name: table.bytes for table in self.stored_tables()}
        state = {name: tensor.numel() * tensor.element_size() for name, tensor in self.state_dict().items()}
        return tables | {name: size for name, size in state.items() if name not in self.training_only}

    def serve_bytes(self) -> int:
        """Bytes of what is shipped: what a budget is about."""
        return sum(self.serving().values())

    def serve(self, tables: TableAccess | None) -> nn.Module | None:
        """The form that is shipped, after training: a module from the :class:`Ids` of this strategy's features to
        vectors ``[B, F, D]``, whose state dict has as many bytes as :meth:`serving` promised; equal to the layer.
        Without ``tables`` an empty form of the same shapes, to load one into.

        None: tables and state are shipped as they are.

        Raises:
            ConfigError: it is not trained so far that it could be shipped.
        """
        return None

    def weights_per_id(self, blocks: int) -> dict[str, list[float]]:
        """How many weights there are for an id, on average over each of ``blocks`` blocks of every vocabulary; see
        :mod:`recsys_embed.embeddings.blocks`. What several ids share counts for each in equal parts."""
        sizes = vocabularies(self.features)
        readers: dict[str, set[str]] = {}
        for tables in self.reads().values():
            for feature, slots in zip(self.features, tables, strict=True):
                for name in slots:
                    readers.setdefault(name, set()).add(feature.vocab)
        found = dict.fromkeys(sizes, 0.0)
        for table in self.tables():
            sharing = readers.get(table.name, set())
            for vocabulary in sharing:
                found[vocabulary] += table.rows * table.width / sum(sizes[one] for one in sharing)
        return {name: [one] * min(blocks, sizes[name]) for name, one in found.items()}

    def stages(self) -> tuple[Stage, ...]:
        """How it is trained; see :mod:`recsys_embed.stages`."""
        return ONE_STAGE

    def small_optimizers(self) -> dict[str, SmallOptimizer]:
        """Small parameters, by name, that are moved only by the steps that name them."""
        return {}

    def normalise(self, name: str, gradient: Tensor) -> Tensor:
        """The gradient of a small parameter of :meth:`small_optimizers`, as its optimizer shall see it."""
        return gradient

    def finish(self, stage: str, tables: TableAccess) -> None:
        """A stage has ended: what it found becomes state. Called on all ranks, and again where a run resumes before the
        next stage's first step was saved: from the same state it does the same."""

    @property
    def observes(self) -> bool:
        """Whether :meth:`observe` is overridden."""
        return type(self).observe is not Strategy.observe

    @classmethod
    def needs_tables_optimizer(cls) -> bool:
        """Whether it observes or maintains: ordinary parameters cannot train it."""
        return cls.observe is not Strategy.observe or cls.maintain is not Strategy.maintain


def common_stages(strategies: Sequence[Strategy]) -> tuple[Stage, ...]:
    """The stages that the strategies of one layer agree on, checked against what they train.

    Raises:
        ConfigError: they do not agree, or a step or an optimizer names a parameter that there is not.
    """
    named = {f"{type(one).__name__} ({', '.join(f.name for f in one.features)})": one for one in strategies}
    for name, one in named.items():
        parameters = dict(one.named_parameters())
        for small in one.small_optimizers():
            if small not in parameters:
                raise ConfigError(f"strategy {name} has an optimizer for {small!r}, which is none of its parameters")
        check_names(one.stages(), one.small_optimizers())
    return agreed({name: one.stages() for name, one in named.items()})


def name_of(strategy: nn.Module) -> str:
    """What a config calls a strategy: the name of its class in lower case, words apart."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(strategy).__name__).lower()


def vocabularies(features: Sequence[Feature]) -> dict[str, int]:
    """The cardinality of each vocabulary of the features, in name order: sizes never depend on feature order."""
    return dict(sorted({feature.vocab: feature.size for feature in features}.items()))


def rows_of_use(features: Sequence[Feature]) -> dict[str, int]:
    """For each vocabulary, in name order, as many rows as ids; where it is hashed, as many as a table can have."""
    return dict(sorted({f.vocab: MAX_ROWS if f.hashed else f.size for f in features}.items()))


def starts_of(sizes: Mapping[str, int]) -> dict[str, int]:
    """Where each begins when all lie one after another, in their order."""
    starts, total = {}, 0
    for name, size in sizes.items():
        starts[name] = total
        total += size
    return starts


def evenly(total: int, most: Mapping[str, int]) -> dict[str, int]:
    """Split ``total`` rows over vocabularies in equal parts, but for those with less use for rows.

    >>> evenly(1000, {"city": 60, "item": 10**6, "user": 10**6})
    {'city': 60, 'item': 470, 'user': 470}
    """
    parts: dict[str, int] = {}
    for place, name in enumerate(sorted(most, key=lambda name: (most[name], name))):
        parts[name] = min(most[name], (total - sum(parts.values())) // (len(most) - place))
    return parts


def apportion(total: int, weights: Mapping[str, int], lowest: Mapping[str, int]) -> dict[str, int]:
    """Split ``total`` rows over vocabularies in proportion to ``weights``, at least ``lowest`` and at most weight each.

    The parts sum to ``total`` exactly (largest remainder, ties in name order) wherever the bounds allow it.
    """
    if total <= sum(lowest.values()):
        return dict(lowest)
    fixed: dict[str, int] = {}
    while True:
        # Clamp whoever falls below its least share, then share the rest again: ends after at most one pass per name.
        free = {name: weight for name, weight in weights.items() if name not in fixed}
        left, weight_sum = total - sum(fixed.values()), sum(free.values())
        below = [name for name, weight in free.items() if left * weight < lowest[name] * weight_sum]
        if not below:
            break
        fixed.update({name: lowest[name] for name in below})
    left = min(left, weight_sum)
    parts = {name: left * weight // weight_sum for name, weight in free.items()}
    order = sorted(free, key=lambda name: (-(left * free[name] % weight_sum), name))
    for name in order[: left - sum(parts.values())]:
        parts[name] += 1
    return {name: fixed.get(name, parts.get(name, 0)) for name in weights}
