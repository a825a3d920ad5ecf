"""The embedding layer: strategies and tables behind one drop-in ``nn.Module``.

Shapes: F features in layer order, B samples, S slots, W width of a table, D width of a vector, L lanes of a group.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from recsys_embed import ranks
from recsys_embed.as_ids import as_ids
from recsys_embed.budget import ByteBudget, Plan, plan
from recsys_embed.config import EmbeddingConfig, ShardingConfig, StrategyNode
from recsys_embed.embeddings.base import Lookup, Strategy
from recsys_embed.errors import ConfigError, DataError
from recsys_embed.features import Feature, grown_features, resolve
from recsys_embed.ids import Ids
from recsys_embed.lanes import Part, join, lay_out, pool, request_of, rows_of, specs_of
from recsys_embed.ledger import ledger
from recsys_embed.native.choice import all_inside
from recsys_embed.stages import ONE_STAGE, SmallOptimizer, Stage
from recsys_embed.storage import FP32
from recsys_embed.tables.base import RULES, Request, Tables, UpdateRule
from recsys_embed.tables.optimizer import Read, TablesOptimizer
from recsys_embed.tables.reference import ReferenceTables

BACKENDS = ("auto", "reference", "native", "fused", "sharded")


class EmbeddingLayer(nn.Module):
    """Vectors of categorical features, within a byte budget.

    Args:
        features: the features, in the order of the output.
        dim: D, the width of every vector.
        strategy: a strategy's name, its config, or a mapping from patterns of feature names to either; the first
            pattern that matches a name wins. ``{"name": "hash", "storage": "int8"}`` stores its tables in fewer bits.
        budget: bytes of the serving form: ``"64MB"``, ``"10x"``, ``0.1`` (kept fraction) or bytes as an int.
        exact: features that are never compressed; by default the smallest, see :mod:`recsys_embed.budget`.
        on_unknown: what an id outside ``[0, cardinality)`` is: an ``"error"``, or the ``"unseen"`` id 0.
        decay: weight of the squared rows read in :meth:`penalty`, a mean over samples.
        seed: seed of the initial weights.
        hash_seed: seed of the hashes.
        backend: ``"reference"``, ``"native"`` (our own kernels, on CPU), ``"fused"`` (FBGEMM), ``"sharded"``
            (TorchRec), or ``"auto"``: sharded in a process group of several ranks, else native on CPU where its kernels
            were built, else fused where it can hold the tables without more than doubling their bytes by padding. Used
            once :meth:`optimizer` is called; until then tables are ordinary parameters, except that ``"sharded"``
            allocates none before. Frozen or shipped tables are read by the native kernels where these are there and it
            is "auto" or "native", else by plain PyTorch.
        sharding: which table lies where, on several ranks.
        shipped: an empty layer to load :meth:`shipped_state` into, for reading only. Tables are held as they are
            stored, in no more memory than that takes; a strategy that ships another form is replaced by it.

    Raises:
        BudgetError: no size of the strategy fits; raised before anything is allocated.
        ConfigError: features, patterns or options that do not fit each other.

    >>> emb = EmbeddingLayer([Feature("user", 1000), Feature("city", 20)], dim=8, strategy="hash", budget=0.25)
    >>> emb(torch.tensor([[3, 999], [1, 19]])).shape
    torch.Size([2, 2, 8])
    """

    steps: int
    """Updates so far (:meth:`after_step`); part of a run's state, as ``maintain`` is due by it."""

    stages: tuple[Stage, ...]
    """How the layer is trained; see :mod:`recsys_embed.stages`."""

    _sizes: Tensor

    def __init__(
        self,
        features: Sequence[Feature],
        dim: int,
        *,
        strategy: str | StrategyNode | Mapping[str, Any] = "full",
        budget: int | float | str | ByteBudget | None = None,
        exact: Sequence[str] | None = None,
        on_unknown: str = "error",
        decay: float = 0.0,
        seed: int = 0,
        hash_seed: int = 0,
        backend: str = "auto",
        sharding: ShardingConfig | None = None,
        shipped: bool = False,
    ) -> None:
        super().__init__()
        if on_unknown not in ("error", "unseen"):
            raise ConfigError(f"on_unknown is 'error' or 'unseen', got {on_unknown!r}")
        if backend not in BACKENDS:
            raise ConfigError(f"backend is one of {', '.join(BACKENDS)}; got {backend!r}")
        if dim < 1:
            raise ConfigError(f"dim is at least 1, got {dim}")
        self.features, self.dim = resolve(features), dim
        self.on_unknown, self.decay, self.seed, self.backend = on_unknown, decay, seed, backend
        self.sharding = sharding or ShardingConfig()
        patterns = parse_strategy(strategy)
        self._built: dict[str, Any] = {
            "strategy": patterns,
            "budget": budget,
            "exact": exact,
            "on_unknown": on_unknown,
            "decay": decay,
            "seed": seed,
            "hash_seed": hash_seed,
            "backend": backend,
            "sharding": sharding,
        }
        self.plan: Plan = plan(self.features, dim, patterns, budget, exact=exact, hash_seed=hash_seed)
        for one in self.plan.strategies:
            one.initialise(seed)
        self.strategies = nn.ModuleList(self.plan.strategies)
        self.stages = self.plan.stages
        # Which of them are shipped forms, of which features.
        self._shipped: list[tuple[int, tuple[int, ...]]] = self._take_shipped_forms() if shipped else []
        own = [strategy for _, strategy in self._own_strategies()]
        self._parts, groups = lay_out(own, self.features, decay=bool(decay))
        specs = specs_of(self.strategies)
        names = [spec.name for spec in specs]
        for name in names:
            if names.count(name) > 1:
                raise ConfigError(f"two tables are called {name!r}: rename a feature")
        empty = shipped or backend == "sharded"
        self.tables: Tables = ReferenceTables(specs, groups, seed, device="meta" if empty else None)
        if shipped:
            self.tables.hold_zeros()
            self._only_read()
        sizes = torch.tensor([feature.limit for feature in self.features])
        self.register_buffer("_sizes", sizes, persistent=False)
        self._optimizer: list[TablesOptimizer] = []  # in a list: no part of the module tree
        self._penalties: list[Tensor] = []
        self._lookups = WeakTensorKeyDictionary()  # what each leaf was read for, as long as there is the leaf
        self.steps = 0
        self._stage: str | None = None

    # --- the forward pass ------------------------------------------------------------------------------------

    def forward(self, ids: Any) -> Tensor:
        """Vectors ``[B, F, D]``.

        Args:
            ids: ``[F, B]`` integers; a dict with, for each feature, ``[B]`` ids or, where multi-valued, ``(values,
                offsets [B + 1])`` or ``(values, offsets, weights)``; ``(values [N], offsets [F*B + 1])``,
                feature-major; an :class:`~recsys_embed.ids.Ids`; or a KeyedJaggedTensor. Never changed.

        Raises:
            DataError: an id outside ``[0, cardinality)``, with the feature, the sample and the value.
            ConfigError: a forward pass to train by, of a strategy with stages of which none has begun.
        """
        if self._stage is None and self.training and torch.is_grad_enabled():
            self._refuse_without_stage()
        return self.lookup(self._checked(as_ids(ids, self.features)))

    def lookup(self, batch: Ids) -> Tensor:
        """:meth:`forward` without a check, of ids that are known to lie in ``[0, cardinality)``."""
        lookups = [part.strategy.address(self._select(part, batch)) for part in self._parts]
        asked: list[list[Request]] = [[] for _ in self.tables.groups]
        for part, lookup in zip(self._parts, lookups, strict=True):
            for place in part.reads:
                asked[place.group].append(request_of(part, lookup, place, self.tables))
        read = [self._read(group, requests) for group, requests in enumerate(asked)]
        if self._observers and torch.is_grad_enabled():
            for leaf in read:
                self._lookups[leaf] = list(zip(self._parts, lookups, strict=True))
        vectors = [(features, self.strategies[place](batch.select(features))) for place, features in self._shipped]
        for part, lookup in zip(self._parts, lookups, strict=True):
            own = [(place, read[place.group][:, place.vectors]) for place in part.reads]
            rows = {place.name: rows_of(part, lookup, one, place) for place, one in own}
            vectors.append((part.features, pool(part, lookup, part.strategy.combine(rows, lookup))))
            self._note_penalty(part, lookup, rows, batch.batch)
        return self._in_order(vectors)

    def _select(self, part: Part, batch: Ids) -> Ids:
        ids = batch.select(part.features)
        if part.jagged:
            return ids.jagged()
        if ids.offsets is not None:
            lengths = ids.offsets.diff().view(ids.features, ids.batch)
            feature, sample = (lengths != 1).nonzero()[0].tolist() if (lengths != 1).any() else (0, 0)
            name = self.features[part.features[feature]].name
            raise DataError(
                f"feature is single-valued, but sample {sample} has {int(lengths[feature, sample])} ids or weights",
                column=name,
            )
        return ids

    def _read(self, group: int, requests: list[Request]) -> Tensor:
        """Vectors ``[B, V, W]`` of a group: connected to parameters, or a leaf where a tables optimizer trains them."""
        request = requests[0] if len(requests) == 1 else join(requests)
        if self._optimizer and torch.is_grad_enabled():
            return self._optimizer[0].read(group, request)
        return self.tables.read_vectors(group, request)

    def _note_penalty(self, part: Part, lookup: Lookup, rows: Mapping[str, Tensor], batch: int) -> None:
        if not torch.is_grad_enabled():
            return
        own = part.strategy.penalty(rows, lookup)
        if own is not None:
            self._penalties.append(own)
        if self.decay and rows:
            squares = torch.stack([one.square().sum() for one in rows.values()]).sum()
            self._penalties.append(squares * (self.decay / max(batch, 1)))

    def _in_order(self, vectors: list[tuple[tuple[int, ...], Tensor]]) -> Tensor:
        """One tensor in layer order, of the features' places and vectors: no copy for a single strategy, one ``cat``
        otherwise."""
        if len(vectors) == 1 and vectors[0][0] == tuple(range(len(self.features))):
            return vectors[0][1]
        pieces: dict[int, Tensor] = {}
        for features, tensor in vectors:
            start = 0
            for end in range(1, len(features) + 1):
                if end == len(features) or features[end] != features[end - 1] + 1:
                    pieces[features[start]] = tensor[:, start:end]
                    start = end
        return torch.cat([pieces[first] for first in sorted(pieces)], dim=1)

    def _checked(self, ids: Ids) -> Ids:
        """Ids that all lie in ``[0, cardinality)``; unknown ones are an error or the unseen id, in a copy."""
        if ids.values.numel() == 0:
            return ids
        values, sizes = ids.values, self._sizes
        if all_inside(values, ids.offsets, sizes):
            return ids
        if ids.offsets is None:
            low, high = values.aminmax(dim=1)
            if not bool(((low < 0) | (high >= sizes)).any()):
                return ids
            limit = sizes.unsqueeze(1)
        else:
            limit = ids.spread(sizes.unsqueeze(1)).view(-1)
        bad = (values < 0) | (values >= limit)
        if not bool(bad.any()):
            return ids
        if self.on_unknown == "unseen":
            return Ids(values.masked_fill(bad, 0), ids.features, ids.offsets, ids.weights)
        place = int(bad.view(-1).nonzero()[0])
        if ids.offsets is None:
            feature, sample = divmod(place, ids.batch)
        else:
            bag = int(torch.searchsorted(ids.offsets, ids.offsets.new_tensor(place), right=True)) - 1
            feature, sample = divmod(bag, ids.batch)
        value, size = int(values.view(-1)[place]), self.features[feature].limit
        raise DataError(
            f"id is outside [0, {size}) in sample {sample} of the batch",
            column=self.features[feature].name,
            row=sample,
            value=value,
        )

    # --- growing ---------------------------------------------------------------------------------------------

    def grow(self, cardinalities: Mapping[str, int]) -> EmbeddingLayer:
        """The layer over larger vocabularies: ids that there were have the rows they had, and new ones those that they
        would have in a layer of that size; where ids are hashed, no row is new. This layer is left as it is.

        The new layer has no tables optimizer yet. The state of this layer's is taken up by that of the new one::

            with grown.tables.growing():
                grown_optimizer.load_state_dict(optimizer.state_dict())

        Args:
            cardinalities: by vocabulary (a feature's own name where it has none); others stay.

        Raises:
            ConfigError: no such vocabulary, fewer ids than it has, or a strategy that cannot take new ids; names them.
                Or the tables are frozen or sharded.
        """
        if self._frozen or self.backend == "sharded":
            told = "frozen: they are only read" if self._frozen else "sharded"
            raise ConfigError(
                f"the tables of this layer are {told}: build one of features with `born`, their cardinality until now"
            )
        features = grown_features(self.features, cardinalities)
        grown = EmbeddingLayer(features, self.dim, **self._built)
        with grown.tables.growing():
            grown.load_state_dict(self.state_dict())
        grown.steps, grown._stage = self.steps, self._stage
        return grown.to(self.device).train(self.training)

    def reset(self, vocabulary: str, ids: Tensor) -> bool:
        """Let distinct ids ``[n]`` of a vocabulary read as ids that were never seen: their rows as they began, with no
        optimizer state. False where they share all their rows with other ids: those stay as they are.

        Raises:
            ConfigError: no such vocabulary, or a strategy that keeps more of an id than rows.
        """
        own = self.own_rows(vocabulary, ids)
        for table, rows in own.items():
            self.tables.reset(table, rows)
        return bool(own)

    def own_rows(self, vocabulary: str, ids: Tensor) -> Mapping[str, Tensor]:
        """See :meth:`Strategy.own_rows`.

        Raises:
            ConfigError: no such vocabulary, or a strategy that keeps more of an id than rows.
        """
        for strategy in self.plan.strategies:
            if any(feature.vocab == vocabulary for feature in strategy.features):
                return strategy.own_rows(vocabulary, ids)
        raise ConfigError(f"no vocabulary {vocabulary!r}")

    # --- training --------------------------------------------------------------------------------------------

    def optimizer(
        self, name: str = "rowwise_adagrad", *, lr: float, eps: float = 1e-8, reduce: str = "mean"
    ) -> TablesOptimizer:
        """Take the tables out of ``parameters()`` and give the optimizer that trains them.

        To be called once, before other optimizers are made. Tables that are stored as integers or halves become so
        here, rounded to nearest. A backward pass alone then changes nothing; ``step()``
        applies all gradients that arrived since the last one as a single update.

        In a process group of several ranks the tables are sharded: this call, every forward pass, ``step()``,
        ``state_dict()`` and whatever else reads rows are then made by all ranks in the same order. Batches of ranks
        may differ in size and be empty.

        Args:
            name: ``sgd``, ``adagrad``, ``rowwise_adagrad`` (one running sum a row, over the logical width), or
                ``lazy_adam`` (the moments of a row decay in steps that read it; not for sharded or fused tables).
            lr: learning rate; schedulers and ``param_groups`` may change it.
            eps: added to the root that Adagrad and Adam divide by.
            reduce: what becomes of the ranks' gradients: ``"mean"``, as under DDP, where each rank's loss is a mean
                over its own samples; or ``"sum"``, where each rank's loss is its share of the global one.

        Raises:
            ConfigError: called twice or on frozen tables, an unknown name, or the layer's back end refuses it.
        """
        if self._optimizer:
            raise ConfigError("this layer has a tables optimizer already")
        if self._frozen:
            raise ConfigError("the tables of this layer are frozen: they are only read")
        if name not in RULES:
            raise ConfigError(f"a tables optimizer is one of {', '.join(RULES)}; got {name!r}")
        if reduce not in ("mean", "sum"):
            raise ConfigError(f"reduce is 'mean' or 'sum', got {reduce!r}")
        observe = self._observe if self._observers else None
        rule = UpdateRule(name, eps)
        tables = self._trained_tables(rule)
        share = 1 / ranks.count() if reduce == "mean" else 1.0
        made = TablesOptimizer(tables, lr, self._feature_of, observe, self._forget, share=share)
        self.tables = tables
        self._optimizer.append(made)
        return made

    def _trained_tables(self, rule: UpdateRule) -> Tables:
        assert isinstance(self.tables, ReferenceTables)
        world = ranks.count()
        if self.backend == "sharded" or (self.backend == "auto" and world > 1):
            from recsys_embed.sharding import sharded

            return sharded(self.tables, self.sharding, rule, self._sizes.device)
        if world > 1:
            raise ConfigError(
                f"the {self.backend} back end cannot hold tables for {world} ranks, which would drift apart: take "
                "'auto' or 'sharded', or leave the tables as parameters and wrap the model in DDP",
                path="embedding.backend",
            )
        if self.backend in ("auto", "native"):
            from recsys_embed.tables import native

            why = native.refusal(self._sizes.device, self.tables.specs.values())
            if why is None:
                return native.NativeTables(self.tables, rule)
            if self.backend == "native":
                raise ConfigError(f"the native back end cannot hold these tables: {why}", path="embedding.backend")
        if self.backend in ("auto", "fused"):
            from recsys_embed.tables.fused import FusedTables, extravagance, refusal

            why = refusal(rule, self._sizes.device, self.tables.groups, self.tables.specs.values())
            if why is None and self.backend == "auto":
                why = extravagance(self.tables.specs.values())
            if why is None:
                return FusedTables(self.tables, rule, self._sizes.device)
            if self.backend == "fused":
                raise ConfigError(f"the fused back end cannot hold these tables: {why}", path="embedding.backend")
        self.tables.train_by(rule)
        return self.tables

    def freeze(self) -> EmbeddingLayer:
        """Take the tables out of ``parameters()`` and hold them as they are stored, for reading only; returns self.

        What is loaded afterwards in the stored form takes no more memory than that. A layer with a tables optimizer
        holds its stored form already.

        Raises:
            ConfigError: the layer has a tables optimizer.
        """
        if self._optimizer:
            raise ConfigError("this layer has a tables optimizer, which goes on to change the tables: freeze a copy")
        assert isinstance(self.tables, ReferenceTables)
        self.tables.freeze()
        self._only_read()
        return self

    def _only_read(self) -> None:
        """Frozen tables are read by the native kernels where they are there, and by plain PyTorch elsewhere."""
        assert isinstance(self.tables, ReferenceTables)
        if self.backend in ("auto", "native"):
            self.tables.read_natively()

    def shipped_state(self) -> dict[str, Tensor]:
        """The state dict of what is shipped: without what only training needs, and with a strategy's shipped form
        (:meth:`Strategy.serve`) instead of its tables. A layer made with ``shipped=True`` loads it.

        Raises:
            ConfigError: a strategy is not trained so far that it could be shipped.
        """
        dropped = set(self.training_only)
        forms: dict[str, Tensor] = {}
        for place, strategy in self._own_strategies():
            form = strategy.serve(self.tables)
            if form is not None:
                dropped |= {f"strategies.{place}.{name}" for name in strategy.state_dict()}
                dropped |= {f"tables.{spec.name}" for spec in strategy.tables()}
                forms |= {f"strategies.{place}.{name}": tensor for name, tensor in form.state_dict().items()}
        return {name: tensor for name, tensor in self.state_dict().items() if name not in dropped} | forms

    @property
    def training_only(self) -> frozenset[str]:
        """Names of the state dict that only training needs."""
        return frozenset(
            f"strategies.{place}.{name}" for place, one in self._own_strategies() for name in one.training_only
        )

    def _take_shipped_forms(self) -> list[tuple[int, tuple[int, ...]]]:
        """Put an empty shipped form in the place of each strategy that has one; their places and features."""
        names = [feature.name for feature in self.features]
        taken = []
        for place, strategy in list(self._own_strategies()):
            form = strategy.serve(None)
            if form is not None:
                self.strategies[place] = form
                taken.append((place, tuple(names.index(feature.name) for feature in strategy.features)))
        return taken

    def _own_strategies(self) -> Iterator[tuple[int, Strategy]]:
        """Strategies that read tables, and their places."""
        for place, strategy in enumerate(self.strategies):
            if isinstance(strategy, Strategy):
                yield place, strategy

    @property
    def _frozen(self) -> bool:
        return isinstance(self.tables, ReferenceTables) and self.tables.held and self.tables.rule is None

    def penalty(self) -> Tensor:
        """The penalty on the reads since it was last asked for, or since ``step()`` or ``zero_grad()``; a scalar."""
        total = torch.stack(self._penalties).sum() if self._penalties else torch.zeros((), device=self._sizes.device)
        self._penalties.clear()
        return total

    def after_step(self) -> None:
        """Count a step; run ``maintain`` of the strategies where it is due.

        The count, ``steps``, belongs to a checkpoint: with it, a resumed training keeps the cadence.
        """
        if not self._optimizer:
            self.check_plain_training()
        self.steps += 1
        for part in self._parts:
            every = part.strategy.maintain_every
            if every is not None and self.steps % every == 0:
                part.strategy.maintain(self.tables)

    def check_plain_training(self) -> None:
        """Whether the tables may be trained as ordinary parameters.

        Raises:
            ConfigError: a strategy changes tables in training, or tables are not stored in fp32: :meth:`optimizer` is
                needed.
        """
        for part in self._parts:
            if part.strategy.needs_tables_optimizer():
                name = type(part.strategy).__name__
                raise ConfigError(f"strategy {name} changes tables in training: call optimizer() first")
        for spec in self.tables.specs.values():
            if spec.storage != FP32 and not self._frozen:
                raise ConfigError(
                    f"table {spec.name!r} is stored as {spec.storage.dtype}, which only a tables optimizer can train: "
                    "call optimizer() first"
                )

    @property
    def device(self) -> torch.device:
        """Where ids are expected."""
        return self._sizes.device

    # --- stages ----------------------------------------------------------------------------------------------

    def begin_stage(self, name: str) -> None:
        """Say that training is in this stage of :attr:`stages`; whoever runs the stages calls it, also on resuming.

        Raises:
            ConfigError: there is no such stage.
        """
        names = [stage.name for stage in self.stages]
        if name not in names:
            raise ConfigError(f"no stage {name!r}; there are {', '.join(names)}")
        self._stage = name

    def end_stage(self) -> None:
        """The stage that was begun is over: what it found becomes state of the strategies.

        For a strategy without stages of its own all of them together are its one, which ends with the last.
        """
        assert self._stage is not None
        for part in self._parts:
            own = part.strategy.stages()
            if own != ONE_STAGE or self._stage == self.stages[-1].name:
                part.strategy.finish(own[-1].name if own == ONE_STAGE else self._stage, self.tables)
        self._penalties.clear()

    def small_optimizers(self) -> list[tuple[str, Strategy, SmallOptimizer]]:
        """The small parameters that only the steps naming them move: name, strategy and optimizer of each."""
        return [
            (name, part.strategy, optimizer)
            for part in self._parts
            for name, optimizer in part.strategy.small_optimizers().items()
        ]

    def _refuse_without_stage(self) -> None:
        if self.stages == ONE_STAGE:
            return
        own = next(part.strategy for part in self._parts if part.strategy.stages() != ONE_STAGE)
        raise ConfigError(
            f"strategy {type(own).__name__} trains in stages ({', '.join(stage.name for stage in self.stages)}), which "
            "recsys_embed.training.train runs; a loop of your own must do what the stages say, between "
            "begin_stage(name) and end_stage()"
        )

    @property
    def _observers(self) -> bool:
        return any(part.strategy.observes for part in self._parts)

    def _observe(self, reads: list[Read]) -> None:
        for read in reads:
            for part, lookup in self._lookups.get(read.leaf, []):
                gradients = {
                    place.name: rows_of(part, lookup, read.gradient[:, place.vectors], place)
                    for place in part.reads
                    if place.group == read.group
                }
                if gradients and part.strategy.observes:
                    part.strategy.observe(lookup, gradients)

    def _forget(self) -> None:
        self._penalties.clear()

    def _feature_of(self, group: int, vector: int) -> str:
        for part in self._parts:
            for place in part.reads:
                if place.group == group and place.vectors.start <= vector < place.vectors.stop:
                    within = vector - place.vectors.start
                    position = within % len(part.features) if part.jagged else within // place.slots
                    name: str = self.features[part.features[position]].name
                    return name
        raise AssertionError(f"group {group} has no vector {vector}")

    # --- looking inside --------------------------------------------------------------------------------------

    def vectors(self, feature: str, ids: Tensor) -> Tensor:
        """Vectors ``[n, D]`` of ids ``[n]`` of one feature, without gradient.

        Raises:
            ConfigError: no such feature.
            DataError: an id outside ``[0, cardinality)``.
        """
        names = [one.name for one in self.features]
        if feature not in names:
            raise ConfigError(f"no feature {feature!r}; there are {', '.join(names)}")
        place = names.index(feature)
        pieces = []
        with torch.no_grad():
            for part in ids.reshape(-1).split(65_536):
                batch = torch.zeros(len(names), part.numel(), dtype=torch.int64, device=part.device)
                batch[place] = part
                pieces.append(self(batch)[:, place])
        return torch.cat(pieces) if pieces else torch.zeros(0, self.dim)

    def ledger(self, optimizer: str | None = None) -> pd.DataFrame:
        """Bytes of every part; see :func:`recsys_embed.ledger.ledger`."""
        rule = UpdateRule(optimizer) if optimizer else self.tables.rule
        return ledger(self.plan, rule, self.tables.padded_width)

    @property
    def budget_report(self) -> Plan:
        """What was asked for, what was reached, and the sizes that led to."""
        return self.plan

    def extra_repr(self) -> str:
        """Sizes at a glance."""
        return f"features={len(self.features)}, dim={self.dim}, serve_bytes={self.plan.serve_bytes}"

    def __deepcopy__(self, memo: dict[int, Any]) -> EmbeddingLayer:
        """A copy with ordinary parameters: it carries no tables optimizer."""
        twin = EmbeddingLayer.__new__(EmbeddingLayer)
        memo[id(self)] = twin
        nn.Module.__init__(twin)
        twin.features, twin.dim, twin.plan = self.features, self.dim, copy.deepcopy(self.plan, memo)
        twin.on_unknown, twin.decay, twin.seed, twin.backend = self.on_unknown, self.decay, self.seed, self.backend
        twin.sharding, twin._built = self.sharding, dict(self._built)
        twin.strategies = copy.deepcopy(self.strategies, memo)
        twin._shipped = list(self._shipped)
        own = [strategy for _, strategy in twin._own_strategies()]
        twin._parts, groups = lay_out(own, twin.features, decay=bool(twin.decay))
        twin.register_buffer("_sizes", self._sizes.clone(), persistent=False)
        twin._optimizer, twin._penalties, twin._lookups = [], [], WeakTensorKeyDictionary()
        twin.stages, twin.steps, twin._stage = self.stages, self.steps, self._stage
        if self._optimizer:
            twin.tables = ReferenceTables(list(self.tables.specs.values()), groups, self.seed).to(self._sizes.device)
            twin.tables.load_state_dict(self.tables.state_dict())
        else:
            twin.tables = copy.deepcopy(self.tables, memo)
        return twin.train(self.training)


def parse_strategy(strategy: str | StrategyNode | Mapping[str, Any]) -> dict[str, StrategyNode]:
    """Patterns and their strategies, checked as the config file is.

    Raises:
        ConfigError: an unknown strategy or option.
    """
    from pydantic import ValidationError

    from recsys_embed.config import explain

    value = dict(strategy) if isinstance(strategy, Mapping) else strategy
    try:
        return dict(EmbeddingConfig.model_validate({"strategy": value}).strategy)
    except ValidationError as error:
        raise explain(error, "strategy", EmbeddingConfig) from None
