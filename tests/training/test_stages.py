"""Stages: what a step names moves and nothing else does, what ends a stage, and who is refused."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from recsys_embed import ConfigError, EmbeddingLayer, Feature
from recsys_embed.embeddings import Full
from recsys_embed.embeddings.base import Strategy, TableAccess
from recsys_embed.errors import DivergedError
from recsys_embed.stages import EVERYTHING, MODEL, ONE_STAGE, TABLES, SmallOptimizer, Stage, Step, agreed
from recsys_embed.training import trainer
from recsys_embed.training.evaluation import Validation
from recsys_embed.training.feed import Feed
from recsys_embed.training.optimizers import Optimizers
from recsys_embed.training.step import step
from tests.training.staged import Staged, build, fit, record, settings, unique_rows

TABLE_RULES = ["adam", "lazy_adam", "rowwise_adagrad", "adagrad", "sgd"]
CPU = torch.device("cpu")


@pytest.fixture
def staged(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recsys_embed.budget.Full", Staged)


# --- the validation batches -----------------------------------------------------------------------------------


def test_validation_batches_have_an_order_of_their_own_and_no_end(toy: Any) -> None:
    data = unique_rows(toy(rows=110))
    feed = Feed(data, 20, 5, CPU, 10**6)
    numbers = [batch.dense[:, 0].tolist() for batch, _ in zip(feed.val(0), range(6), strict=False)]
    passes = [numbers[place] + numbers[place + 1] for place in (0, 2, 4)]
    rows = sorted(data.split["val"].dense[0].tolist())
    assert all(sorted(one) == rows for one in passes)
    assert passes[0] != passes[1] != passes[2] != passes[0]
    for start in range(6):
        again = [batch.dense[:, 0].tolist() for batch, _ in zip(feed.val(start), range(6 - start), strict=False)]
        assert again == numbers[start:]
    other = next(iter(Feed(data, 20, 6, CPU, 10**6).val(0))).dense[:, 0].tolist()
    assert other != numbers[0]


# --- what moves -----------------------------------------------------------------------------------------------


def moving(model: nn.Module, optimizers: Optimizers) -> dict[str, Tensor]:
    """All that could move, by name, optimizer state included."""
    named = dict(model.state_dict()) | {
        f"optimizer.{name}": one for name, one in {**optimizers.state()[0], **optimizers.state()[1]}.items()
    }
    return {name: tensor.clone() for name, tensor in named.items()}


def parts_of(name: str, tables: str) -> set[str]:
    """The part of a run that a tensor belongs to."""
    if "tables." in name and not name.startswith("optimizer."):
        return {TABLES}
    if name.endswith("strategies.0.alpha") or name.startswith("optimizer.small"):
        return {"alpha"}
    if name.startswith(("optimizer.tables", "optimizer.rows")):
        return {TABLES}
    if name.startswith("optimizer.dense"):  # with two Adams in one, numbered after the dense parameters
        return {TABLES, MODEL} if tables == "adam" else {MODEL}
    return {MODEL}


@pytest.mark.parametrize("tables", TABLE_RULES)
@pytest.mark.parametrize("dense", ["adam", "sgd"])
@pytest.mark.parametrize("trains", [{TABLES}, {MODEL}, {"alpha"}, {TABLES, "alpha"}, set(EVERYTHING), set()])
@pytest.mark.usefixtures("staged")
def test_nothing_moves_that_is_not_named(toy: Any, tables: str, dense: str, trains: set[str]) -> None:
    """Bit for bit, momentum included, after updates of everything have filled it."""
    config = settings(tables, optimizer={"dense": dense, "dense_decay": 0.01}, warmup_steps=0)
    data = toy(rows=200)
    model = build(config, data)
    model.embedding.begin_stage("warm_up")
    optimizers = Optimizers(model, config.training)
    batches = list(data.batches("train", 20))
    for batch in batches[:3]:
        step(model, batch, optimizers, Step("train", EVERYTHING | {"alpha"}))
    before = moving(model, optimizers)
    step(model, batches[3], optimizers, Step("val", frozenset(trains)))
    after = moving(model, optimizers)
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    if tables == dense == "adam":  # one optimizer: tell its parameters apart by their place
        count = len(optimizers._by_name["dense"].param_groups[0]["params"])
        shared = {name for name in moved if name.startswith("optimizer.dense")}
        places = {int(name.split(".")[2]) >= count for name in shared}
        assert places == {part == TABLES for part in trains & EVERYTHING}
        moved -= shared
    for name in moved:
        assert parts_of(name, "") & trains, name
    for part in trains:
        assert any(parts_of(name, "") == {part} for name in moved), part
    still = model.embedding.steps
    assert still == 3 + (TABLES in trains)


@pytest.mark.parametrize("tables", ["rowwise_adagrad", "adagrad", "sgd"])
@pytest.mark.usefixtures("staged")
def test_fused_tables_stay_too(toy: Any, tables: str) -> None:
    pytest.importorskip("fbgemm_gpu")
    config, data = settings(tables, backend="fused", warmup_steps=0), toy(rows=200)
    model = build(config, data)
    model.embedding.begin_stage("search")
    optimizers = Optimizers(model, config.training)
    batches = list(data.batches("train", 20))
    torch.nn.init.constant_(model.embedding.strategies[0].alpha, 0.5)
    step(model, batches[0], optimizers, Step("train", EVERYTHING | {"alpha"}))
    before = moving(model, optimizers)
    step(model, batches[1], optimizers, Step("val", frozenset({"alpha"})))
    after = moving(model, optimizers)
    assert {name for name in before if not torch.equal(before[name], after[name])} == {
        "embedding.strategies.0.alpha",
        *(name for name in before if name.startswith("optimizer.small")),
    }
    step(model, batches[2], optimizers)
    assert not torch.equal(model.state_dict()["embedding.tables.user"], after["embedding.tables.user"])


@pytest.mark.usefixtures("staged")
def test_a_small_parameter_sees_only_its_own_gradient(toy: Any) -> None:
    """By hand: normalised, one step of its optimizer, clamped; gradients of other steps leave nothing behind."""
    config = settings(warmup_steps=0, clip_norm=None)
    data = toy(rows=200)
    model = build(config, data)
    model.interaction.eval()
    model.embedding.begin_stage("search")
    optimizers = Optimizers(model, config.training)
    alpha = model.embedding.strategies[0].alpha
    batches = list(data.batches("train", 20))
    by_hand = torch.full((4,), 0.9)
    with torch.no_grad():
        alpha.copy_(by_hand)
    theirs = nn.Parameter(by_hand.clone())
    adam = torch.optim.Adam([theirs], lr=0.05)
    for number, batch in enumerate(batches):
        if number % 2:
            step(model, batch, optimizers, Step("train", frozenset({TABLES})))
            assert torch.equal(alpha, theirs)
        else:
            vectors = model.embedding(batch.ids)
            loss = nn.functional.binary_cross_entropy_with_logits(model.interaction(vectors, batch.dense), batch.label)
            gradient = torch.autograd.grad(loss, alpha)[0]
            model.embedding.penalty()
            theirs.grad = gradient / (gradient.abs().mean() + 1e-8)
            adam.step()
            with torch.no_grad():
                theirs.clamp_(0, 1)
            step(model, batch, optimizers, Step("val", frozenset({"alpha"})))
            torch.testing.assert_close(alpha, theirs, rtol=1e-6, atol=1e-7)
            with torch.no_grad():
                theirs.copy_(alpha)
    assert alpha.max() <= 1
    assert alpha.min() >= 0


@pytest.mark.usefixtures("staged")
def test_a_gradient_of_a_small_parameter_that_is_not_finite(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    config, data = settings(), toy(rows=110)
    model = build(config, data)
    model.embedding.begin_stage("search")
    optimizers = Optimizers(model, config.training)
    before = moving(model, optimizers)
    model.embedding.strategies[0].alpha.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(DivergedError, match="gradient of 'alpha' is not finite"):
        step(model, next(iter(data.batches("val", 20))), optimizers, Step("val", frozenset({"alpha"})))
    assert all(torch.equal(before[name], tensor) for name, tensor in moving(model, optimizers).items())


# --- a whole course -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("staged")
def test_stages_run_one_after_the_other(toy: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    data = unique_rows(toy(rows=110))
    kept = record(monkeypatch)
    finished: list[tuple[str, Tensor]] = []
    plain = Staged.finish

    def finish(self: Staged, stage: str, tables: TableAccess) -> None:
        finished.append((stage, self.alpha.detach().clone()))
        plain(self, stage, tables)

    monkeypatch.setattr(Staged, "finish", finish)
    _, result = fit(settings(epochs=6, patience=2, warmup_steps=0), data)
    retrained = result.epochs - 3
    stages = ["warm_up"] + ["search"] * 2 + ["retrain"] * retrained
    assert [line["stage"] for line in result.history] == stages
    assert [line["epoch"] for line in result.history] == list(range(1, result.epochs + 1))
    assert [stage for stage, _ in finished] == ["warm_up", "search", "retrain"]
    assert torch.equal(finished[0][1], torch.ones(4))  # alpha moves in the search only
    assert not torch.equal(finished[1][1], torch.ones(4))
    assert torch.equal(finished[1][1], finished[2][1])
    # Patience and the best epoch are those of the last stage alone.
    last = result.history[3:]
    best = max(last, key=lambda line: line["val_auc"])["epoch"]
    assert result.best_epoch == best
    assert result.epochs == min(best + 2, 9)
    assert result.val["auc"] == result.history[best - 1]["val_auc"]
    # Alternating: a training batch, then one of validation, and again.
    splits = [split for split, _ in kept.samples]
    search = splits[110 : 110 + 2 * 110 + 6 * 27]
    runs = [split for place, split in enumerate(search) if place == 0 or search[place - 1] != split]
    assert runs == ["train", "val"] * 12
    assert Counter(splits)["train"] == 110 * result.epochs
    assert result.samples_seen == len(kept.samples)


@pytest.mark.usefixtures("staged")
def test_a_stage_of_fixed_length_keeps_its_last_weights(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    stages = (Stage("first"), Stage("last", epochs=3))
    monkeypatch.setattr(Staged, "stages", lambda self: stages)
    _, result = fit(settings(epochs=4, patience=1), toy(rows=400))
    assert result.best_epoch == result.epochs
    assert result.val["auc"] == result.history[-1]["val_auc"]
    assert [line["stage"] for line in result.history][-3:] == ["last"] * 3


@pytest.mark.usefixtures("staged")
def test_the_bar_names_the_stage(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(trainer.Bar, "begin", lambda self, description, done: shown.append(description))
    fit(settings(epochs=2), toy(rows=110))
    assert shown == [
        "warm_up: epoch 1/1",
        "search: epoch 1/2",
        "search: epoch 2/2",
        "retrain: epoch 1/2",
        "retrain: epoch 2/2",
    ]


@pytest.mark.usefixtures("staged")
def test_where_it_diverged_names_the_stage(toy: Any) -> None:
    data = toy(rows=110)
    data.split["val"].dense[0][:] = float("nan")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Validation, "judge", lambda self, model, stop: (0.5, 0.7))
        with pytest.raises(DivergedError, match=r"validation batch 1 after batch 1 of epoch 2, stage search") as caught:
            fit(settings(), data)
    assert caught.value.step == 8


# --- who is refused -------------------------------------------------------------------------------------------


class Other(Staged):
    def stages(self) -> tuple[Stage, ...]:
        return (Stage("only", epochs=2),)


def layer(*strategies: Strategy) -> EmbeddingLayer:
    """A layer of given strategies."""
    features = [feature for strategy in strategies for feature in strategy.features]
    with pytest.MonkeyPatch.context() as patch:
        plain = EmbeddingLayer(features, 4).plan
        changed = dataclasses.replace(plain, strategies=strategies)
        patch.setattr("recsys_embed.layer.plan", lambda *args, **kwargs: changed)
        return EmbeddingLayer(features, 4)


X, Y = [Feature("x", 10, vocabulary="x")], [Feature("y", 10, vocabulary="y")]


def test_strategies_that_disagree_are_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"Staged \(x\): warm_up \(1 .*, search .*; Other \(y\): only") as caught:
        layer(Staged(X, 4), Other(Y, 4))
    assert caught.value.path == "embedding.strategy"
    assert len(layer(Staged(X, 4), Staged(Y, 4)).stages) == 3
    assert len(layer(Full(X, 4), Staged(Y, 4)).stages) == 3
    assert layer(Full(X, 4), Full(Y, 4)).stages == ONE_STAGE


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ((), "different names"),
        ((Stage("a"), Stage("a", epochs=1)), "different names"),
        ((Stage("a", (Step("val"),)),), "never reads the training split"),
        ((Stage("a", ()),), "never reads the training split"),
        ((Stage("a", epochs=0),), "has 0 epochs"),
    ],
)
def test_stages_that_cannot_be_run(stages: tuple[Stage, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        agreed({"S": stages})


def test_names_that_nothing_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Other, "stages", lambda self: (Stage("a", (Step("train", frozenset({"beta"})),)),))
    with pytest.raises(ConfigError, match="stage 'a' trains 'beta', which has no optimizer"):
        layer(Other(X, 4))
    monkeypatch.setattr(Other, "small_optimizers", lambda self: {"gamma": SmallOptimizer(0.1)})
    with pytest.raises(ConfigError, match="optimizer for 'gamma', which is none of its parameters"):
        layer(Other(X, 4))


def test_a_loop_of_ones_own_must_say_its_stage() -> None:
    emb = layer(Staged(X, 4))
    ids = torch.tensor([[1, 2]])
    with pytest.raises(ConfigError, match=r"Staged trains in stages \(warm_up, search, retrain\)"):
        emb(ids)
    with torch.no_grad():
        emb(ids)
    emb.eval()(ids)
    emb.train()
    with pytest.raises(ConfigError, match="no stage 'serach'"):
        emb.begin_stage("serach")
    emb.begin_stage("warm_up")
    emb(ids).sum().backward()
    emb.end_stage()


class Finished(Full):
    """Without stages of its own."""

    def __init__(self, features: Sequence[Feature], dim: int) -> None:
        super().__init__(features, dim)
        self.ended: list[str] = []

    def finish(self, stage: str, tables: TableAccess) -> None:
        self.ended.append(stage)


class Recorded(Staged):
    def finish(self, stage: str, tables: TableAccess) -> None:
        self.ended = [*getattr(self, "ended", []), stage]


def test_without_stages_of_its_own_a_strategy_ends_with_the_last() -> None:
    one, other = Finished(X, 4), Recorded(Y, 4)
    emb = layer(one, other)
    for stage in emb.stages:
        emb.begin_stage(stage.name)
        emb.end_stage()
    assert one.ended == ["train"]
    assert other.ended == ["warm_up", "search", "retrain"]


def test_history_has_no_stage_where_there_is_one(toy: Any) -> None:
    _, result = fit(settings(epochs=1), toy(rows=110))
    assert "stage" not in result.history[0]
