"""The trainer on planted data, whose best possible result is known."""

from __future__ import annotations

import io
import math
import os
import signal
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recsys_embed.config import Config
from recsys_embed.errors import CheckpointError, DataError, DivergedError
from recsys_embed.recommender import Recommender
from recsys_embed.training.checkpoints import newest, tensors_file
from recsys_embed.training.interrupt import Interrupted
from recsys_embed.training.metrics import auc, logloss
from recsys_embed.training.optimizers import Optimizers
from recsys_embed.training.trainer import predict, shuffle_seed, step, train
from tests.training.runs import build, settings

TABLES = ["adam", "lazy_adam", "rowwise_adagrad", "adagrad", "sgd"]


def fit(config: Config, data: Any, **options: Any) -> tuple[Recommender, Any]:
    model = build(config, data)
    return model, train(model, data, config.training, progress=False, **options)


def weights(model: Recommender) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- it learns, and only what there is ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["dcn_v2", "dlrm"])
@pytest.mark.parametrize("tables", TABLES)
def test_learns_the_planted_table(toy: Any, tables: str, name: str) -> None:
    """Close to the Bayes AUC and logloss of the test rows, whichever optimizer has the tables."""
    data = toy(rows=16_000)
    config = settings(tables, epochs=12, patience=3, model={"name": name, "dim": 4})
    model, result = fit(config, data)
    scores = predict(model, data, "test", 512)
    labels, truth = data.labels("test"), data.truth["test"]
    assert auc(labels, truth) - auc(labels, scores) < 0.012
    assert logloss(labels, scores) - logloss(labels, truth) < 0.025
    assert result.val["calibration"] == pytest.approx(1, abs=0.1)
    assert result.history[0]["train_loss"] > result.history[-1]["train_loss"]


def test_blocks_teach_as_much_as_a_whole_shuffle(toy: Any) -> None:
    """Of rows that the file has user by user, with room for a fifth of them."""
    data = toy(rows=16_000)
    train = data.split["train"]
    data.split["train"] = train.take(np.argsort(train.ids[0], kind="stable"))
    found = {}
    for memory in ("2GB", train.nbytes // 5):
        config = settings(epochs=6, shuffle_memory=memory)
        model, _ = fit(config, data)
        found[memory] = auc(data.labels("test"), predict(model, data, "test", 512))
    best = auc(data.labels("test"), data.truth["test"])
    assert all(best - one < 0.012 for one in found.values()), (best, found)


def test_shuffled_labels_teach_nothing(toy: Any) -> None:
    data = toy(shuffled_labels=True)
    model, _ = fit(settings(), data)
    assert auc(data.labels("test"), predict(model, data, "test", 512)) == pytest.approx(0.5, abs=0.03)


def test_result_is_of_the_best_epoch(toy: Any) -> None:
    """Overfitting on purpose: the last epochs are worse, and the weights of the best one come back."""
    data = toy(rows=1000)
    seen: list[dict[str, Any]] = []
    config = settings(epochs=30, patience=3, batch_size=50, optimizer={"dense_lr": 0.02})
    model, result = fit(config, data, on_epoch=seen.append)
    best = max(result.history, key=lambda line: line["val_auc"])
    assert seen == result.history
    assert [line["epoch"] for line in seen] == list(range(1, result.epochs + 1))
    assert result.best_epoch == best["epoch"]
    assert result.epochs == result.best_epoch + 3 < 30
    assert result.val["auc"] == best["val_auc"]
    assert result.val["logloss"] == best["val_logloss"]
    assert auc(data.labels("val"), predict(model, data, "val", 10_000)) == best["val_auc"]
    assert not math.isnan(result.val["auc_head"])
    assert result.samples_seen == 1000 * result.epochs
    assert result.train_samples_per_second == result.samples_seen / result.train_seconds
    assert sum(line["seconds"] for line in seen) >= result.train_seconds


def test_monitor_logloss(toy: Any) -> None:
    _, result = fit(settings(epochs=20, monitor="logloss", patience=1, batch_size=50), toy(rows=1000))
    losses = [line["val_logloss"] for line in result.history]
    assert result.best_epoch == int(np.argmin(losses)) + 1
    assert result.epochs == result.best_epoch + 1 < 20


def test_train_loss_is_the_mean_over_rows(toy: Any) -> None:
    """At a learning rate of almost nothing it is the loss of the initial weights, short last batch included."""
    data = toy(rows=1050)
    config = settings("sgd", epochs=1, optimizer={"tables_lr": 1e-30, "dense": "sgd", "dense_lr": 1e-30})
    _, result = fit(config, data)
    expected = logloss(data.labels("train"), predict(build(config, data), data, "train", 300))
    assert result.history[0]["train_loss"] == pytest.approx(expected, rel=1e-6)


# --- it is repeatable -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("tables", ["adam", "rowwise_adagrad"])
def test_same_seed_same_bits(toy: Any, tables: str, deterministic: bool) -> None:
    data = toy(rows=2000)
    options: dict[str, Any] = {"deterministic": deterministic, "epochs": 2}
    model = {"name": "dcn_v2", "dim": 4, "dropout": 0.2}
    first, one = fit(settings(tables, model=model, **options), data)
    torch.rand(7)  # whatever else the process draws
    second, two = fit(settings(tables, model=model, **options), data)
    assert same(weights(first), weights(second))
    assert [line["val_auc"] for line in one.history] == [line["val_auc"] for line in two.history]
    other, _ = fit(settings(tables, model=model, **options, seed=6), data)
    assert not same(weights(first), weights(other))
    assert not torch.are_deterministic_algorithms_enabled()


def test_leaves_the_process_as_it_was(toy: Any) -> None:
    torch.manual_seed(1)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    fit(settings(epochs=1, threads=2), toy(rows=400))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.get_num_threads() == threads
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_every_epoch_has_an_order_of_its_own() -> None:
    seeds = {shuffle_seed(seed, epoch) for seed in (-1, 0, 1, 2**40) for epoch in range(1, 50)}
    assert len(seeds) == 4 * 49
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_test_split_is_never_read(toy: Any) -> None:
    """Permuted test labels leave weights and chosen epoch byte-identical; the split is not even touched."""
    plain, permuted = toy(rows=2000), toy(rows=2000)
    np.random.default_rng(0).shuffle(permuted.split["test"].label)
    assert not np.array_equal(plain.split["test"].label, permuted.split["test"].label)
    first, one = fit(settings(), plain)
    second, two = fit(settings(), permuted)
    assert same(weights(first), weights(second))
    assert one.best_epoch == two.best_epoch
    assert set(plain.touched) == {"train", "val"}


# --- steps ----------------------------------------------------------------------------------------------------


def test_warm_up_is_linear_for_both(toy: Any) -> None:
    data = toy(rows=2000)
    config = settings(warmup_steps=4, optimizer={"tables_lr": 0.4, "dense_lr": 0.04})
    model = build(config, data)
    optimizers = Optimizers(model, config.training)
    rates = []
    for batch in data.batches("train", 200):
        rates.append([optimizers._by_name[name].param_groups[0]["lr"] for name in ("tables", "dense")])
        step(model, batch, optimizers)
    np.testing.assert_allclose(rates[:6], np.outer([0.25, 0.5, 0.75, 1, 1, 1], [0.4, 0.04]))


@pytest.mark.parametrize("tables", ["adam", "sgd"])
def test_clipping_is_by_the_global_norm(toy: Any, tables: str) -> None:
    """With SGD on everything else, a step is the gradient scaled to the norm, read-outs of tables included."""
    data = toy(rows=400)
    batch = next(iter(data.batches("train", 400)))
    norms = []
    for clip in (None, 0.01):
        config = settings(tables, clip_norm=clip, optimizer={"dense": "sgd", "dense_lr": 1.0})
        model = build(config, data)
        optimizers = Optimizers(model, config.training)
        before = weights(model)
        step(model, batch, optimizers)
        after = weights(model)
        moved = [after[name] - before[name] for name in before if name.startswith("interaction")]
        norms.append(torch.cat([one.flatten() for one in moved]).norm().item())
    assert norms[1] < 0.01 < norms[0]
    vectors = build(config, data).embedding(batch.ids).detach().requires_grad_()
    model = build(config, data)
    loss = torch.nn.functional.binary_cross_entropy_with_logits(model.interaction(vectors, batch.dense), batch.label)
    loss.backward()
    assert vectors.grad is not None
    if tables == "sgd":
        whole = math.hypot(vectors.grad.norm().item(), norms[0])
        assert norms[1] == pytest.approx(norms[0] * 0.01 / whole, rel=1e-4)


def test_adam_has_a_rate_for_tables_and_one_for_the_rest(toy: Any) -> None:
    """Adam's first step moves every weight with a gradient by its learning rate."""
    data = toy(rows=2000)
    for dense in ("adam", "sgd"):
        config = settings("adam", optimizer={"tables_lr": 0.125, "dense": dense, "dense_lr": 0.001})
        model = build(config, data)
        before = weights(model)
        step(model, next(iter(data.batches("train", 2000))), Optimizers(model, config.training))
        moved = {name: (tensor - before[name]).abs().max().item() for name, tensor in weights(model).items()}
        for name, distance in moved.items():
            if name.startswith("embedding"):
                assert distance == pytest.approx(0.125, rel=1e-3), name
            else:
                assert 0 < distance < 0.00101, name


def test_penalty_is_part_of_what_is_minimised(toy: Any) -> None:
    sizes = []
    for decay in (0.0, 0.05):
        model, _ = fit(settings(embedding={"strategy": "full", "decay": decay}), toy())
        sizes.append(model.embedding.vectors("user", torch.arange(30)).norm().item())
    assert sizes[1] < sizes[0] / 2


# --- what is not finite stops it before a row changes ---------------------------------------------------------


@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("tables", TABLES)
@pytest.mark.parametrize("where", ["row", "dense", "gradient"])
def test_not_finite_stops_before_a_row_changes(toy: Any, tables: str, where: str, clip: float | None) -> None:
    data = toy(rows=2000)
    config = settings(tables, clip_norm=clip)
    model = build(config, data)
    state = weights(model)
    if where == "row":
        state["embedding.tables.item"][3, 1] = math.nan
        model.load_state_dict(state)
    if where == "dense":
        data.split["train"].dense[0][:] = math.inf
    if where == "gradient":  # a loss that is finite with a gradient that is not
        model.embedding.register_forward_hook(lambda module, args, out: _poison(out))
    with pytest.raises(DivergedError, match=r"step 1 \(batch 1 of epoch 1\)") as caught:
        train(model, data, config.training, progress=False)
    after = model.state_dict()
    for name, tensor in state.items():
        np.testing.assert_array_equal(after[name].numpy(), tensor.numpy(), err_msg=name)
    assert caught.value.step == 1
    assert caught.value.feature == {"row": "item", "dense": None, "gradient": "item"}[where]
    assert {"row": "'item'", "dense": "dense column 0", "gradient": "'item'"}[where] in str(caught.value)


def _poison(vectors: Tensor) -> Tensor:
    if vectors.requires_grad:
        vectors = vectors.clone()
        vectors.register_hook(lambda gradient: gradient.index_fill(1, torch.tensor(1), math.nan))
    return vectors


def test_the_last_checkpoint_stays_finite(toy: Any, tmp_path: Path) -> None:
    """NaN in the third epoch: the state of the second is there, all finite, and says which batch it was."""
    data = toy(rows=1000)
    config = settings()
    model = build(config, data)

    def spoil(line: dict[str, Any]) -> None:
        if line["epoch"] == 2:
            data.split["train"].dense[0][:] = math.nan

    with pytest.raises(DivergedError, match=r"step 11 \(batch 1 of epoch 3\)"):
        train(model, data, config.training, progress=False, checkpoints=tmp_path, on_epoch=spoil)
    found = newest(tmp_path)
    assert found is not None
    assert found.step == 10
    assert all(bool(torch.isfinite(tensor.double()).all()) for tensor in found.tensors.values())


def test_a_prediction_that_is_not_finite(toy: Any) -> None:
    data = toy(rows=400)
    data.split["val"].dense[0][7] = math.nan
    with pytest.raises(DivergedError, match=r"validation after epoch 1: 1 of 100 scores .* row 7"):
        fit(settings(), data)


def test_nothing_to_rank(toy: Any) -> None:
    data = toy(rows=400)
    data.split["val"].label[:] = 1
    with pytest.raises(DataError, match="every label of the val split is 1"):
        fit(settings(), data)


# --- it goes on where it stopped ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tables", "stop", "backend", "strategy"),
    [(tables, stop, "reference", "unified") for tables in TABLES for stop in (1, 2, 3)]
    + [("rowwise_adagrad", 2, "auto", "unified"), ("rowwise_adagrad", 1, "reference", "cafe")],
)
def test_resumed_equals_uninterrupted(
    toy: Any, tmp_path: Path, tables: str, stop: int, backend: str, strategy: str
) -> None:
    """Bit for bit, with dropout, warm-up over the stop, clipping, a penalty and the best epoch before the stop."""
    data = toy(rows=1000)
    config = settings(
        tables,
        model={"name": "dcn_v2", "dim": 4, "dropout": 0.2},
        embedding={"strategy": strategy, "budget": 0.5, "decay": 1e-4, "backend": backend},
        warmup_steps=13,
        clip_norm=0.5,
        patience=4,
    )
    straight, expected = fit(config, data)

    def interrupt(line: dict[str, Any]) -> None:
        if line["epoch"] == stop:
            raise KeyboardInterrupt

    with pytest.raises(
        Interrupted, match=f"with {stop} of at most 4 epochs finished, in .*the same command goes on"
    ) as caught:
        fit(config, data, checkpoints=tmp_path, on_epoch=interrupt)
    assert caught.value.exit_code == 130
    torch.rand(3)
    resumed, result = fit(config, data, checkpoints=tmp_path)
    assert same(weights(straight), weights(resumed))
    assert result.best_epoch == expected.best_epoch
    assert result.val == expected.val
    for line, other in zip(result.history, expected.history, strict=True):
        assert {**line, "seconds": 0} == {**other, "seconds": 0}
    assert result.samples_seen == expected.samples_seen
    again, once_more = fit(config, data, checkpoints=tmp_path)  # finished: nothing left to do
    assert same(weights(straight), weights(again))
    assert once_more.history == result.history


def test_a_damaged_checkpoint_is_skipped(toy: Any, tmp_path: Path) -> None:
    data, config = toy(rows=1000), settings(patience=4)
    straight, _ = fit(config, data, checkpoints=tmp_path)
    path = tmp_path / "step-00000020" / tensors_file()
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(bytes(damaged))
    epochs: list[int] = []
    model = build(config, data)
    with pytest.warns(UserWarning, match=r"step 20 is skipped: .*rank-00000-of-00001\.safetensors"):
        train(
            model,
            data,
            config.training,
            progress=False,
            checkpoints=tmp_path,
            on_epoch=lambda line: epochs.append(line["epoch"]),
        )
    assert epochs == [4]
    assert same(weights(straight), weights(model))


def test_another_configuration_is_refused(toy: Any, tmp_path: Path) -> None:
    data = toy(rows=400)
    fit(settings(epochs=1), data, checkpoints=tmp_path)
    for other, difference in (
        (
            settings(epochs=1, optimizer={"dense_lr": 0.25}),
            r"training\.optimizer\.dense_lr is 0\.005 there and 0\.25 here",
        ),
        (settings(epochs=1, embedding={"strategy": "full", "seed": 4}), r"embedding\.seed is 3 there and 4 here"),
        (settings(epochs=1, model={"name": "dlrm", "dim": 4}), r"model\.name is 'dcn_v2' there and 'dlrm' here"),
    ):
        with pytest.raises(CheckpointError, match=difference):
            fit(other, data, checkpoints=tmp_path)
    data.fingerprint = "other rows"
    with pytest.raises(CheckpointError, match=r"data\.fingerprint"):
        fit(settings(epochs=1), data, checkpoints=tmp_path)


def test_kept_checkpoints(toy: Any, tmp_path: Path) -> None:
    """The newest two, and the best epochs of these."""
    data = toy(rows=1000)
    config = settings(epochs=30, patience=5, batch_size=50, optimizer={"dense_lr": 0.02})
    kept: list[set[str]] = []
    _, result = fit(config, data, checkpoints=tmp_path, on_epoch=lambda line: kept.append(set(os.listdir(tmp_path))))
    assert result.epochs == result.best_epoch + 5
    assert kept[0] == {"step-00000020"}
    assert kept[-1] == {f"step-{20 * epoch:08d}" for epoch in (result.best_epoch, result.epochs - 1, result.epochs)}
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_sigterm(toy: Any, tmp_path: Path) -> None:
    data = toy(rows=1000)

    def terminate(line: dict[str, Any]) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):
            pass

    with pytest.raises(Interrupted, match="step 5 is saved, with 1 of at most 4 epochs") as caught:
        fit(settings(), data, checkpoints=tmp_path, on_epoch=terminate)
    assert caught.value.exit_code == 143
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_interrupted_with_nothing_saved(toy: Any, tmp_path: Path) -> None:
    data = toy(rows=1000)
    model = build(settings(), data)

    def interrupt(*args: Any) -> None:
        raise KeyboardInterrupt

    model.embedding.register_forward_hook(interrupt)
    with pytest.raises(Interrupted, match="starts over"):
        train(model, data, settings().training, progress=False, checkpoints=tmp_path)
    with pytest.raises(Interrupted, match="no checkpoints were asked for"):
        fit(settings(), data, on_epoch=interrupt)


def test_trains_in_a_thread(toy: Any) -> None:
    """Where no signal handler can be set."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(fit(settings(epochs=1), toy(rows=400))))
    thread.start()
    thread.join()
    assert len(results) == 1


# --- on the way -----------------------------------------------------------------------------------------------


def test_predict_keeps_mode_and_order(toy: Any) -> None:
    data = toy(rows=1000)
    model = build(settings(model={"name": "dcn_v2", "dim": 4, "dropout": 0.5}), data).train()
    one, other = predict(model, data, "val", 7), predict(model, data, "val", 1000)
    assert model.training
    assert one.dtype == np.float64
    assert one.shape == (250,)
    np.testing.assert_allclose(one, other, rtol=1e-5)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_on_a_terminal_only(toy: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr("recsys_embed.training.progress._SECONDS_BETWEEN", 0.0)
    data, config = toy(rows=4000), settings(epochs=3)
    shown = {}
    for kind, shows in ((Terminal, True), (Terminal, False), (io.StringIO, True)):
        stream = kind()
        monkeypatch.setattr("sys.stderr", stream)
        train(build(config, data), data, config.training, progress=shows)
        shown[kind, shows] = stream.getvalue()
    assert shown[io.StringIO, True] == shown[Terminal, False] == ""
    for text in ("epoch 2/3", "loss 0.", "val AUC 0.", "samples/s"):
        assert text in shown[Terminal, True]


def test_no_warning_is_raised(toy: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit(settings(warmup_steps=3, deterministic=True), toy(rows=400))
