"""Stopped anywhere, a run goes on as if it had never stopped: to the last bit, no sample twice, none missing."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recsys_embed.errors import CheckpointError, ConfigError
from recsys_embed.files import only_writer
from recsys_embed.training import trainer
from recsys_embed.training.checkpoints import newest, tensors_file
from recsys_embed.training.interrupt import Interrupted, interruptible
from tests.training.staged import (
    Maintained,
    Record,
    Staged,
    build,
    damage,
    fit,
    record,
    same_state,
    settings,
    stop_after,
    unique_rows,
    without_times,
)

PER_EPOCH, SEARCH, EPOCHS = 6, 12, 3
"""Steps of an epoch of the data below: 6 training batches, and as many of validation while searching."""


@pytest.fixture(params=["one stage", "three stages"])
def staged(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    if request.param == "three stages":
        monkeypatch.setattr("recsys_embed.budget.Full", Staged)
    return bool(request.param == "three stages")


@pytest.fixture
def data(toy: Any) -> Any:
    return unique_rows(toy(rows=110))  # the last batch of an epoch is short, that of validation too


def stops(staged: bool) -> list[int]:
    """In an epoch, at its end, right after it; in the search after a training and after a validation step."""
    if not staged:
        return [1, 4, PER_EPOCH, PER_EPOCH + 1, 2 * PER_EPOCH - 1]
    edges = [PER_EPOCH, PER_EPOCH + SEARCH, PER_EPOCH + 2 * SEARCH]
    return [1, *(edge + shift for edge in edges for shift in (-1, 0, 1)), PER_EPOCH + 4, PER_EPOCH + 5, edges[-1] + 9]


@pytest.mark.parametrize("tables", ["adam", "rowwise_adagrad"])
def test_stopped_at_any_step(
    data: Any, tables: str, staged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if staged and tables != "adam":  # plain parameters have no maintenance
        monkeypatch.setattr("recsys_embed.budget.Full", Maintained)
    config = settings(tables)
    kept = record(monkeypatch)
    straight, expected = fit(config, data)
    losses, samples = list(kept.losses), list(kept.samples)
    total = PER_EPOCH * EPOCHS + (PER_EPOCH + 2 * SEARCH if staged else 0)
    assert len(losses) == 2 * total
    assert Counter(split for split, _ in samples)["train"] == 110 * (EPOCHS + 3 * staged)
    for k in stops(staged):
        folder = tmp_path / str(k)
        kept.losses.clear(), kept.samples.clear()
        stopped = stop_after(config, data, k, folder)
        assert stopped is not None
        assert stopped.exit_code == 143
        assert f"step {k} is saved" in str(stopped)
        assert len(kept.losses) == 2 * k
        assert newest(folder).step == k
        torch.rand(3), np.random.default_rng().random()
        resumed, result = fit(config, data, checkpoints=folder)
        assert kept.losses == losses
        assert Counter(kept.samples) == Counter(samples)
        assert kept.samples == samples
        assert same_state(straight, resumed)
        assert without_times(result) == without_times(expected)
        assert result.val == expected.val
        assert result.samples_seen == expected.samples_seen
        assert straight.embedding.steps == resumed.embedding.steps


@pytest.mark.parametrize("memory", [400, 900])  # a batch, two batches a window; in the former validation's, too
def test_stopped_in_a_shuffle_by_blocks(
    data: Any, memory: int, staged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(shuffle_memory=memory)
    kept = record(monkeypatch)
    straight, expected = fit(config, data)
    samples = list(kept.samples)
    kept.samples.clear()
    fit(settings(), data)
    assert samples != kept.samples
    trained, shuffled = ([row for split, row in one if split == "train"] for one in (samples, kept.samples))
    assert Counter(trained) == Counter(shuffled)
    for k in stops(staged)[:7]:
        folder = tmp_path / str(k)
        kept.samples.clear()
        assert stop_after(config, data, k, folder) is not None
        with pytest.raises(CheckpointError, match=f"training.shuffle_memory is {memory} there and 2000000000 here"):
            fit(settings(), data, checkpoints=folder)
        resumed, result = fit(config, data, checkpoints=folder)
        assert kept.samples == samples
        assert same_state(straight, resumed)
        assert without_times(result) == without_times(expected)


def test_stopped_again_and_again(data: Any, staged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings()
    kept = record(monkeypatch)
    straight, expected = fit(config, data)
    losses = list(kept.losses)
    kept.losses.clear()
    rounds = 0
    while stop_after(config, data, 5, tmp_path) is not None:
        rounds += 1
    assert rounds >= len(losses) // 2 // 5 - 1
    assert kept.losses == losses
    kept.losses.clear()
    again, result = fit(config, data, checkpoints=tmp_path)  # finished: nothing left to do
    assert kept.losses == []
    assert same_state(straight, again)
    assert without_times(result) == without_times(expected)
    assert result.val == expected.val


def test_killed_between_checkpoints(data: Any, staged: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was done after the last checkpoint is done again, to the same end."""
    config = settings(checkpoint_steps=4, keep_checkpoints=3)
    straight, expected = fit(config, data)

    for k in (3, 7, 5):  # steps of each attempt
        with monkeypatch.context() as patch:
            kept, model = record(patch), build(config, data)

            def kill(*args: Any, kept: Record = kept, k: int = k) -> None:
                if len(kept.losses) == 2 * k:
                    raise Killed

            model.interaction.register_forward_hook(kill)
            with pytest.raises(Killed):
                trainer.train(model, data, config.training, progress=False, checkpoints=tmp_path)
    assert newest(tmp_path).step == 8  # none after 3, then 6 after 7, and 11 after 5 more
    resumed, result = fit(config, data, checkpoints=tmp_path)
    assert same_state(straight, resumed)
    assert without_times(result) == without_times(expected)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(data: Any, staged: bool, tmp_path: Path) -> None:
    config = settings(checkpoint_steps=5)
    straight, expected = fit(config, data)
    stop_after(config, data, 9, tmp_path)
    steps = sorted(int(path.name.removeprefix("step-")) for path in tmp_path.iterdir())
    assert steps[-1] == 9
    damage(tmp_path / "step-00000009" / tensors_file())
    with pytest.warns(UserWarning, match=r"step 9 is skipped: .*rank-00000-of-00001\.safetensors"):
        resumed, result = fit(config, data, checkpoints=tmp_path)
    assert same_state(straight, resumed)
    assert without_times(result) == without_times(expected)


def test_kept_checkpoints(data: Any, tmp_path: Path) -> None:
    """As many as asked for, and the best epochs of these, at steps that are multiples or ends of epochs."""
    config = settings(checkpoint_steps=4, keep_checkpoints=3, epochs=4, patience=4)
    seen: list[set[int]] = []

    def look(line: dict[str, Any]) -> None:
        seen.append({int(re.sub(r"\D", "", name)) for name in os.listdir(tmp_path)})

    _, result = fit(config, data, checkpoints=tmp_path, on_epoch=look)
    best = [max(result.history[: n + 1], key=lambda line: line["val_auc"])["epoch"] * PER_EPOCH for n in range(4)]
    for number, steps in enumerate(seen):
        taken = {4, 6} | {8, 12} | {16, 18} | {20, 24}
        newest_three = set(sorted(step for step in taken if step <= PER_EPOCH * (number + 1))[-3:])
        assert newest_three <= steps
        assert best[number] in steps
        assert len(steps) <= 5


def test_what_a_killed_writer_left_goes(data: Any, tmp_path: Path) -> None:
    """The folder that a process died in while it wrote step 3 goes, though a run that goes on never writes step 3."""
    left = tmp_path / ".tmp-step-00000003-0123456789abcdef"
    left.mkdir(parents=True)
    (left / "state.json").write_text("{")
    fit(settings(checkpoint_steps=4), data, checkpoints=tmp_path)
    assert not left.exists()
    assert any(tmp_path.glob("step-*"))


def test_how_often_it_saves_may_change_between_two_runs(data: Any, tmp_path: Path) -> None:
    straight, _ = fit(settings(), data)
    stop_after(settings(checkpoint_steps=3), data, 8, tmp_path)
    resumed, _ = fit(settings(keep_checkpoints=5), data, checkpoints=tmp_path)
    assert same_state(straight, resumed)


def test_what_the_caller_attached_comes_back(data: Any, tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        fit(settings(), data, checkpoints=tmp_path, meta={"run": "abc"}, on_epoch=interrupt)
    mine: dict[str, Any] = {}
    seen: list[dict[str, Any]] = []
    fit(settings(), data, checkpoints=tmp_path, meta=mine, on_epoch=lambda line: seen.append(dict(mine)))
    assert mine == {"run": "abc"}
    assert seen[0] == {"run": "abc"}


class Killed(Exception):
    pass


def interrupt(line: dict[str, Any]) -> None:
    raise KeyboardInterrupt


# --- one writer -----------------------------------------------------------------------------------------------


def test_a_second_run_is_refused(data: Any, tmp_path: Path) -> None:
    with only_writer(tmp_path / "a"):
        with pytest.raises(CheckpointError, match="another run is writing here"):
            fit(settings(), data, checkpoints=tmp_path / "a")
        fit(settings(epochs=1), data, checkpoints=tmp_path / "b")
    fit(settings(epochs=1), data, checkpoints=tmp_path / "a")
    assert all(path.name.startswith("step-") for path in (tmp_path / "a").iterdir())


@pytest.mark.skipif(sys.platform == "win32", reason="has no locks")
def test_the_lock_dies_with_its_process(tmp_path: Path) -> None:
    script = (
        "import sys, time; from recsys_embed.files import only_writer\n"
        "with only_writer(sys.argv[1]): print('held', flush=True); time.sleep(600)"
    )
    holder = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(CheckpointError, match="another run is writing here"), only_writer(tmp_path):
            pass
        holder.kill()
        holder.wait()
        with only_writer(tmp_path):
            pass
    finally:
        holder.kill()
        holder.communicate()


# --- signals --------------------------------------------------------------------------------------------------


def send(number: int) -> None:
    os.kill(os.getpid(), number)
    for _ in range(1000):  # lets the handler run
        pass


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_the_first_signal_asks_and_the_second_stops(number: int, code: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="how") as caught, interruptible(lambda: "how") as stop:
        assert not stop
        send(number)
        assert stop
    assert caught.value.exit_code == code
    reached = False
    with pytest.raises(Interrupted) as caught, interruptible(lambda: "how"):
        send(number)
        send(number)
        reached = True
    assert not reached
    assert caught.value.exit_code == code
    assert signal.getsignal(number) == before


def test_handlers_of_others_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: calls.append(number))
    try:
        with interruptible(lambda: "how") as stop:
            send(signal.SIGTERM)
            assert not stop
        assert calls == [signal.SIGTERM]
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with interruptible(lambda: "how") as stop:
            send(signal.SIGTERM)
            assert not stop
    finally:
        signal.signal(signal.SIGTERM, before)


def test_no_handlers_in_another_thread() -> None:
    seen: list[bool] = []

    def work() -> None:
        with interruptible(lambda: "how") as stop:
            seen.append(bool(stop))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


def test_stopped_while_it_validates(data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The state before the validation is saved, without waiting for its end."""
    config = settings()
    straight, expected = fit(config, data)
    model, seen = build(config, data), []

    def hook(*args: Any) -> None:
        if not model.training and not seen:
            seen.append(True)
            send(signal.SIGTERM)

    model.interaction.register_forward_hook(hook)
    with pytest.raises(Interrupted, match=f"step {PER_EPOCH} is saved, with 0 of at most 3"):
        trainer.train(model, data, config.training, progress=False, checkpoints=tmp_path)
    resumed, result = fit(config, data, checkpoints=tmp_path)
    assert same_state(straight, resumed)
    assert without_times(result) == without_times(expected)


# --- devices --------------------------------------------------------------------------------------------------


def test_a_device_that_is_not_there_is_refused(data: Any) -> None:
    if torch.cuda.is_available():
        with pytest.raises(ConfigError, match=r"there are \d+ CUDA devices"):
            fit(settings(device="cuda:99"), data)
    else:
        with pytest.raises(ConfigError, match=r"training.device = 'cuda', but .* use 'cpu'") as caught:
            fit(settings(device="cuda"), data)
        assert caught.value.path == "training.device"
    with pytest.raises(ConfigError, match=r"training\.device"):
        settings(device="gpu")


def test_a_checkpoint_is_of_no_device(data: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Taken up under the name of another device; here both names mean the CPU, so that nothing else differs."""
    straight, _ = fit(settings(), data)
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "device_of", lambda name: torch.device("cpu"))
        stop_after(settings(device="cuda"), data, 8, tmp_path)
    resumed, _ = fit(settings(), data, checkpoints=tmp_path)
    assert same_state(straight, resumed)


@pytest.mark.gpu
@pytest.mark.parametrize("places", [("cuda", "cuda"), ("cpu", "cuda"), ("cuda", "cpu")], ids="-to-".join)
@pytest.mark.parametrize("tables", ["adam", "rowwise_adagrad"])
def test_on_a_gpu_it_learns_what_it_learns_on_a_cpu(
    data: Any, tables: str, places: tuple[str, str], tmp_path: Path
) -> None:
    _, expected = fit(settings(tables), data)
    stop_after(settings(tables, device=places[0]), data, 8, tmp_path)
    model, result = fit(settings(tables, device=places[1]), data, checkpoints=tmp_path)
    assert model.embedding.device.type == places[1]
    for one, other in zip(result.history, expected.history, strict=True):
        assert one["train_loss"] == pytest.approx(other["train_loss"], rel=0.05)
