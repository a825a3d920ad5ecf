"""Contract tests that a new strategy inherits: see CONTRIBUTING.md, "Add a strategy in one file".

A test module subclasses :class:`StrategyContract` and names the config::

    class TestHash(StrategyContract):
        config = HashConfig()
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from recsys_embed.budget import Plan, plan
from recsys_embed.config import StrategyNode
from recsys_embed.embeddings.base import Strategy, vocabularies
from recsys_embed.embeddings.blocks import bounds_of
from recsys_embed.errors import BudgetError, ConfigError
from recsys_embed.features import Feature, resolve
from recsys_embed.ids import Ids
from recsys_embed.layer import EmbeddingLayer
from recsys_embed.stages import ONE_STAGE
from recsys_embed.storage import FP32, Storage
from recsys_embed.tables.optimizer import TablesOptimizer
from recsys_embed.tables.rounding import quantum

FEATURES = (Feature("user", 4000), Feature("item", 700), Feature("city", 60))
SHARING = (Feature("user", 4000), Feature("seen", vocabulary="item"), Feature("item", 700))
BAGS = (Feature("user", 4000), Feature("tags", 700, multi_valued=True, pooling="mean"), Feature("city", 60))


def draw_ids(features: Sequence[Feature], batch: int, seed: int = 0) -> Ids:
    """Random ids; bags of multi-valued features hold 0 to 4 ids, with repeats."""
    rng, features = np.random.default_rng(seed), resolve(features)
    lengths = np.stack([rng.integers(0, 5, batch) if f.multi_valued else np.ones(batch, int) for f in features])
    values = [rng.integers(0, f.limit, n) for f, n in zip(features, lengths.sum(1), strict=True)]
    if not any(feature.multi_valued for feature in features):
        return Ids(torch.tensor(np.stack(values)), len(features))
    offsets = np.concatenate([[0], lengths.reshape(-1).cumsum()])
    return Ids(torch.tensor(np.concatenate(values)), len(features), torch.tensor(offsets))


def slow_vectors(layer: EmbeddingLayer, ids: Ids) -> np.ndarray:
    """Vectors ``[B, F, D]`` by one Python loop over bags and ids, in float64: the oracle of every fast path."""
    with torch.no_grad():
        return slow_combined(layer, ids, {name: layer.tables.get(name).double() for name in layer.tables.specs}).numpy()


def slow_combined(layer: EmbeddingLayer, ids: Ids, tables: Mapping[str, Tensor]) -> Tensor:
    """The same from weights ``[rows, width]`` of your own, differentiable in them."""
    flat = ids.jagged()
    assert flat.offsets is not None
    bounds, values, batch = flat.offsets.tolist(), flat.values.tolist(), ids.batch
    found: dict[str, Tensor] = {}
    for strategy in layer.strategies:
        assert isinstance(strategy, Strategy)
        names = [feature.name for feature in strategy.features]
        for f, feature in enumerate(layer.features):
            if feature.name not in names:
                continue
            place = names.index(feature.name)
            bags = []
            for b in range(batch):
                bag = values[bounds[f * batch + b] : bounds[f * batch + b + 1]]
                vector = torch.zeros(layer.dim, dtype=torch.float64)
                for value in bag:
                    one = torch.zeros(len(names), 1, dtype=torch.int64)
                    one[place] = value
                    lookup = strategy.address(Ids(one, len(names)))
                    rows = {
                        name: torch.stack(
                            [
                                _row(tables[home], int(lookup.rows[name][place, s, 0]))
                                for s, home in enumerate(homes[place])
                            ]
                        )
                        for name, homes in strategy.reads().items()
                    }
                    mean = feature.multi_valued and feature.pooling == "mean"
                    aux = {name: integers[0, place] for name, integers in lookup.aux.items()}
                    vector = vector + strategy.combine(rows, replace(lookup, aux=aux)) / (len(bag) if mean else 1)
                bags.append(vector)
            found[feature.name] = torch.stack(bags)
    return torch.stack([found[feature.name] for feature in layer.features], dim=1)


def _within(weights: Tensor, storage: Storage) -> Tensor:
    """Weights beyond what the integers reach, at the end of their range."""
    if not storage.integer:
        return weights
    low, high = (limit * storage.scale + storage.midpoint for limit in storage.limits)
    return weights.clamp(low, high)


def _row(table: Tensor, row: int) -> Tensor:
    return table[row] if row >= 0 else torch.zeros_like(table[0])


class StrategyContract:
    """What holds for every strategy. Subclasses set ``config`` and, where the default does not suit, the others."""

    config: ClassVar[StrategyNode]
    dim: ClassVar[int] = 12
    budget: ClassVar[Any] = 0.2
    features: ClassVar[tuple[Feature, ...]] = FEATURES
    bags: ClassVar[tuple[Feature, ...]] = BAGS
    sharing: ClassVar[tuple[Feature, ...]] = SHARING

    def layer(self, features: Sequence[Feature] | None = None, **options: Any) -> EmbeddingLayer:
        """A layer of this strategy alone."""
        features = self.features if features is None else features
        given = {"strategy": self.config, "budget": self.budget, "exact": (), **options}
        layer = EmbeddingLayer(features, self.dim, **given)
        layer.begin_stage(layer.stages[0].name)
        return layer

    def trained(self, layer: EmbeddingLayer, steps: int = 9) -> torch.optim.Optimizer:
        """Train a layer on few batches that recur, so that state that follows the ids has something to follow."""
        optimizer = layer.optimizer("rowwise_adagrad", lr=0.1)
        train_steps(layer, optimizer, self.batches(layer, steps), self.target(layer))
        return optimizer

    def batches(self, layer: EmbeddingLayer, steps: int) -> list[Ids]:
        """Three batches in turn."""
        return [draw_ids(layer.features, 30, step % 3) for step in range(steps)]

    def target(self, layer: EmbeddingLayer) -> Tensor:
        """``[30, F, D]``, fixed."""
        shape = (30, len(layer.features), layer.dim)
        return torch.randn(shape, generator=torch.Generator().manual_seed(2)) / 10

    def test_vectors_equal_a_slow_loop(self) -> None:
        """Single-valued features, before and after training."""
        self._compare_with_a_slow_loop(self.features)

    def test_bags_equal_a_slow_loop(self) -> None:
        """A multi-valued feature beside single-valued ones, empty bags and repeats included; before and after."""
        self._compare_with_a_slow_loop(self.bags)

    def _compare_with_a_slow_loop(self, features: Sequence[Feature]) -> None:
        layer, ids = self.layer(features), draw_ids(features, 9)
        np.testing.assert_allclose(layer(ids).detach().numpy(), slow_vectors(layer, ids), rtol=0, atol=1e-6)
        self.trained(layer)
        np.testing.assert_allclose(layer(ids).detach().numpy(), slow_vectors(layer, ids), rtol=0, atol=1e-6)

    def test_a_penalty_reads_bags_id_by_id(self) -> None:
        """The path where bags are not pooled in the read gives the same vectors and the mean squared rows."""
        layer, ids = self.layer(self.bags, decay=0.5), draw_ids(self.bags, 9)
        np.testing.assert_allclose(layer(ids).detach().numpy(), slow_vectors(layer, ids), rtol=0, atol=1e-6)
        assert layer.penalty().item() > 0
        assert layer.penalty().item() == 0

    def test_rows_are_within_their_tables(self) -> None:
        """For the smallest and the largest ids."""
        for strategy in self.layer().strategies:
            assert isinstance(strategy, Strategy)
            sizes = {spec.name: spec.rows for spec in strategy.tables()}
            count = len(strategy.features)
            edges = [[0, 1, feature.limit // 2, feature.limit - 2, feature.limit - 1] for feature in strategy.features]
            lookup = strategy.address(Ids(torch.tensor(edges), count))
            for name, homes in strategy.reads().items():
                limit = torch.tensor([[sizes[home] for home in row] for row in homes]).unsqueeze(2)
                rows = lookup.rows[name]
                assert bool((rows >= (-1 if strategy.absent else 0)).all())
                assert bool((rows < limit).all())

    def test_the_ledger_is_what_is_stored(self) -> None:
        """Predicted bytes against tensors: of the state dict, and of what is shipped, before and after training."""
        untrained = self.layer().freeze()
        self._compare_the_ledger(untrained)
        layer = self.layer()
        assert layer.ledger()["checkpoint_bytes"].sum() == stored_bytes(layer)
        self.trained(layer)
        self._compare_the_ledger(layer)

    def _compare_the_ledger(self, layer: EmbeddingLayer) -> None:
        for stage in layer.stages:
            layer.begin_stage(stage.name)
            layer.end_stage()
        assert layer.ledger()["serve_bytes"].sum() == layer.plan.serve_bytes == shipped_bytes(layer)

    def test_what_is_shipped_gives_the_same_vectors(self) -> None:
        """Where a strategy ships a form of its own, after its stages; before them it says so."""
        for features in (self.features, self.bags):
            layer, ids = self.layer(features), draw_ids(features, 9)
            strategy = layer.strategies[0]
            assert isinstance(strategy, Strategy)
            for stage in layer.stages:
                layer.begin_stage(stage.name)
                layer.end_stage()
            shipped = strategy.serve(layer.tables)
            if shipped is not None:
                places = [f for f, one in enumerate(layer.features) if one in strategy.features]
                vectors = layer(ids)[:, places].detach()
                torch.testing.assert_close(shipped(ids.select(places)), vectors, rtol=0, atol=1e-6)

    def test_weights_per_id_are_those_of_the_tables(self) -> None:
        """Times the ids of each block they are all weights, however many blocks are asked for; until any is pruned."""
        for blocks in (1, 7, 500):
            for strategy in self.layer().strategies:
                assert isinstance(strategy, Strategy)
                found, sizes = strategy.weights_per_id(blocks), vocabularies(strategy.features)
                assert found.keys() == sizes.keys()
                total = 0.0
                for name, means in found.items():
                    bounds = bounds_of(min(blocks, sizes[name]), sizes[name])
                    counts = [end - begin for begin, end in pairwise(bounds)]
                    total += sum(mean * ids for mean, ids in zip(means, counts, strict=True))
                np.testing.assert_allclose(total, sum(table.rows * table.width for table in strategy.tables()))

    def test_a_loop_of_ones_own_is_told_of_stages(self) -> None:
        """A layer that trains in stages refuses a forward pass for training until one has begun."""
        layer = EmbeddingLayer(self.features, self.dim, strategy=self.config, budget=self.budget, exact=())
        told = False
        try:
            layer(draw_ids(self.features, 3))
        except ConfigError as error:
            told = "begin_stage" in str(error)
        assert told == (layer.stages != ONE_STAGE)

    def test_a_budget_is_met_or_refused(self) -> None:
        """In [0.98 b, b] or coarse; below the smallest size the nearest feasible budget is accepted."""
        full = self.layer(budget=1.0).plan.full_bytes
        assert full is not None
        for kept in (0.003, 0.02, 0.1, 0.33, 0.5, 0.9, 0.999, 1.0):
            budget = max(2, int(kept * full))
            try:
                plan = self.layer(budget=budget).plan
            except BudgetError as error:
                refusal = error
            else:
                assert plan.serve_bytes <= budget
                assert plan.coarse or plan.serve_bytes >= 0.98 * budget
                continue
            assert budget < refusal.min_bytes == refusal.nearest_bytes <= full
            assert self.layer(budget=refusal.nearest_bytes).plan.serve_bytes <= refusal.nearest_bytes

    def test_order_of_features_changes_nothing(self) -> None:
        """The same rows and weights for a feature wherever it stands."""
        layer, turned = self.layer(), self.layer(self.features[::-1])
        ids = draw_ids(self.features, 50)
        back = turned(Ids(ids.values.flip(0), ids.features)).flip(1)
        assert torch.equal(layer(ids), back)

    def test_update_equals_a_slow_loop(self) -> None:
        """One SGD step of the tables optimizer, repeats included, against float64 and autograd: up to a quantum."""
        layer, ids = self.layer(self.bags, backend="reference"), draw_ids(self.bags, 40)
        target = torch.randn(40, len(self.bags), self.dim, generator=torch.Generator().manual_seed(3))
        optimizer = layer.optimizer("sgd", lr=0.7)
        before = {name: layer.tables.get(name).clone() for name in layer.tables.specs}
        expected = {name: weights.double().requires_grad_() for name, weights in before.items()}
        slow = torch.nn.functional.mse_loss(slow_combined(layer, ids, expected), target.double(), reduction="sum")
        gradients = torch.autograd.grad(slow, list(expected.values()), materialize_grads=True)
        torch.nn.functional.mse_loss(layer(ids), target, reduction="sum").backward()
        optimizer.step()
        for (name, weights), gradient in zip(expected.items(), gradients, strict=True):
            storage, after = layer.tables.specs[name].storage, layer.tables.get(name)
            goal = _within(weights.detach() - 0.7 * gradient, storage)
            allowed = 1e-5 * (1 + goal.abs()) + torch.maximum(quantum(before[name], storage), quantum(after, storage))
            assert bool(((after - goal).abs() <= allowed).all())
        assert any(not torch.equal(layer.tables.get(name), weights) for name, weights in before.items())

    def test_update_equals_that_of_torch(self) -> None:
        """One SGD step of the tables optimizer against one of torch over plain parameters, where torch may train."""
        ids = draw_ids(self.bags, 40)
        target = torch.randn(40, len(self.bags), self.dim, generator=torch.Generator().manual_seed(3))
        plain, tabled = self.layer(self.bags), self.layer(self.bags, backend="reference")
        by_torch = torch.optim.SGD(plain.parameters(), lr=0.7)
        loss = torch.nn.functional.mse_loss(plain(ids), target, reduction="sum")
        if any(spec.storage != FP32 for spec in plain.tables.specs.values()):
            try:
                loss.backward()
            except ConfigError as error:
                refusal = str(error)
            else:
                raise AssertionError("low-precision tables were trained as parameters")
            assert "call optimizer() first" in refusal
            return
        loss.backward()
        by_torch.step()
        by_tables = tabled.optimizer("sgd", lr=0.7)
        torch.nn.functional.mse_loss(tabled(ids), target, reduction="sum").backward()
        by_tables.step()
        _assert_same_tables(plain, tabled, 1e-6)
        assert not torch.equal(plain(ids), self.layer(self.bags)(ids))

    def test_what_is_stored_is_what_is_read(self) -> None:
        """Frozen tables, single-valued and in bags: within half a quantum of before, and the vectors of a slow loop."""
        for features in (self.features, self.bags):
            before, layer, ids = self.layer(features), self.layer(features).freeze(), draw_ids(features, 9)
            assert not list(layer.tables.parameters())
            np.testing.assert_allclose(layer(ids).detach().numpy(), slow_vectors(layer, ids), rtol=0, atol=1e-6)
            for name, spec in layer.tables.specs.items():
                one, other = before.tables.get(name).detach(), layer.tables.get(name)
                assert bool(((one - other).abs() <= 0.51 * quantum(one, spec.storage)).all())
            assert torch.equal(copy.deepcopy(layer)(ids), layer(ids))

    def test_state_moves_between_layers(self) -> None:
        """A state dict of the layer with a tables optimizer loads into one without, and into a frozen one."""
        trained, ids = self.layer(), draw_ids(self.features, 30)
        self.trained(trained)
        for fresh in (self.layer(seed=5), self.layer(seed=5).freeze()):
            assert not torch.equal(fresh(ids), trained(ids))
            fresh.load_state_dict(trained.state_dict())
            assert torch.equal(fresh(ids), trained(ids))

    def test_a_resumed_training_is_the_same(self) -> None:
        """Bit for bit, wherever it stopped: tables, their optimizer's state, and what else changes in training.

        On the reference back end: the fused one converts the state of padded rows, which may cost the last bit.
        """
        straight = self.layer(self.bags, backend="reference")
        expected = self.trained(straight, steps=12)
        for stop in (3, 6, 7):
            begun, resumed = (self.layer(self.bags, backend="reference") for _ in range(2))
            saved = self.trained(begun, steps=stop).state_dict()
            optimizer = resumed.optimizer("rowwise_adagrad", lr=0.1)
            assert isinstance(optimizer, TablesOptimizer)
            for name, spec in resumed.tables.specs.items():  # whatever is not loaded shows
                resumed.tables.put(name, torch.zeros(spec.rows, spec.width))
            resumed.load_state_dict({name: tensor.clone() for name, tensor in begun.state_dict().items()})
            optimizer.load_state_dict(saved)
            resumed.steps = begun.steps
            train_steps(resumed, optimizer, self.batches(resumed, 12)[stop:], self.target(resumed))
            torch.testing.assert_close(resumed.state_dict(), straight.state_dict(), rtol=0, atol=0)
            ours, theirs = optimizer.state_dict(), expected.state_dict()
            torch.testing.assert_close(ours["state"], theirs["state"], rtol=0, atol=0)
            assert resumed.steps == straight.steps == 12

    def test_shared_vocabulary_shares_vectors(self) -> None:
        """Two features of one vocabulary give an id one vector."""
        layer = self.layer(self.sharing)
        ids = torch.tensor([[1, 2], [13, 600], [13, 600]])
        vectors = layer(ids)
        assert torch.equal(vectors[:, 1], vectors[:, 2])


class HashedContract(StrategyContract):
    """What holds for a strategy that takes hashed features: the same of them, and of what they cannot have, a refusal.

    class TestHashOfHashes(HashedContract):
        config = HashConfig()
    """

    budget: ClassVar[Any] = 50_000
    features: ClassVar[tuple[Feature, ...]] = (
        Feature("user", hashed=True),
        Feature("item", hashed=True),
        Feature("city", 60),
    )
    bags: ClassVar[tuple[Feature, ...]] = (
        Feature("user", hashed=True),
        Feature("tags", hashed=True, multi_valued=True, pooling="mean"),
        Feature("city", 60),
    )
    sharing: ClassVar[tuple[Feature, ...]] = (
        Feature("user", hashed=True),
        Feature("seen", vocabulary="item"),
        Feature("item", hashed=True),
    )

    def test_a_budget_is_met_or_refused(self) -> None:
        """Any number of bytes is used up, below the smallest size the nearest is named, and a share is refused."""
        for budget in (5_000, 20_000, 10**6, 10**9):
            one = self._plan(budget)
            assert 0.98 * budget <= one.serve_bytes <= budget
            assert (one.full_bytes, one.kept_fraction, one.coarse) == (None, None, False)
        try:
            self._plan(3)
        except BudgetError as error:
            nearest = error.nearest_bytes
        else:
            raise AssertionError("three bytes were enough")
        assert self._plan(nearest).serve_bytes == nearest
        for share in (0.2, "10x", None):
            assert self._refusal(share) == "embedding.budget"
        assert self._refusal(50_000, exact=("user",)) == "embedding.exact"

    def _plan(self, budget: Any, exact: Sequence[str] = ()) -> Plan:
        return plan(resolve(self.features), self.dim, {"*": self.config}, budget, exact=exact)

    def _refusal(self, budget: Any, exact: Sequence[str] = ()) -> str | None:
        """The path of the error, if it names the feature."""
        try:
            self._plan(budget, exact)
        except ConfigError as error:
            return error.path if "user" in str(error) else None
        raise AssertionError(f"{budget} was accepted")

    def test_weights_per_id_are_those_of_the_tables(self) -> None:
        """Nobody knows how many ids there are: there is no such mean."""
        for strategy in self.layer().strategies:
            assert isinstance(strategy, Strategy)
            told = ""
            try:
                strategy.weights_per_id(1)
            except ConfigError as error:
                told = str(error)
            assert "is hashed" in told


def _assert_same_tables(one: EmbeddingLayer, other: EmbeddingLayer, tolerance: float) -> None:
    for name in one.tables.specs:
        torch.testing.assert_close(one.tables.get(name), other.tables.get(name), rtol=tolerance, atol=tolerance)


def stored_bytes(module: torch.nn.Module) -> int:
    """Bytes of a state dict."""
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())


def shipped_bytes(layer: EmbeddingLayer) -> int:
    """Bytes of what a layer ships, after its stages."""
    total = 0
    for strategy in layer.strategies:
        assert isinstance(strategy, Strategy)
        shipped = strategy.serve(layer.tables)
        if shipped is not None:
            total += stored_bytes(shipped)
            continue
        tables = [layer.tables.state_dict()[spec.name] for spec in strategy.tables()]
        state = [one for name, one in strategy.state_dict().items() if name not in strategy.training_only]
        total += sum(tensor.numel() * tensor.element_size() for tensor in [*tables, *state])
    return total


def train_steps(
    layer: EmbeddingLayer, optimizer: torch.optim.Optimizer, batches: Sequence[Ids], target: Tensor
) -> None:
    """Fit fixed random targets, a step for each batch, in the order of most training loops."""
    for ids in batches:
        loss = torch.nn.functional.mse_loss(layer(ids), target, reduction="sum")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        layer.after_step()
