"""No server can slow a job down or lose what it logged: absent, hanging, failing, dying, coming back."""

from __future__ import annotations

import itertools
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recsys_embed.tracking import Tracker, deliver, fetch_config, new_handle
from recsys_embed.tracking.outbox import FOLDER

pytest.importorskip("mlflow")

CONFIG_FILES = {"config.toml", "ledger.csv", "features.csv"}


def train(job: Any, uri: str, *, epochs: int = 3, until: Callable[[], bool] = lambda: True) -> Tracker:
    """What a training logs; its last epoch lasts until something is so."""
    tracker = Tracker(job.config(uri=uri), "train", job="train")
    for epoch in range(1, epochs + 1):
        tracker.epoch({"epoch": epoch, "val_auc": epoch / 10})
    wait_for(until)
    tracker.training(job.config(), {**job.row, "val_auc": 0.9}, ledger=job.ledger, nested=False)
    artifact = Path("note.txt")
    artifact.write_text("a note")
    tracker.artifacts([artifact], tags={"note": "one"})
    tracker.close()
    return tracker


def logged(epochs: int = 3) -> list[tuple[str, int, float]]:
    """The metrics of a training, as the server is to have them: each once."""
    finals = [("best_val_auc", 0, 0.9), ("serve_bytes", 0, 320.0), ("test_auc", 0, 0.71)]
    return sorted([("val_auc", epoch, epoch / 10) for epoch in range(1, epochs + 1)] + finals)


def tracking_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "recsys_embed.tracking"]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.name == "recsys_embed.tracking" and r.levelname == "WARNING"]


def complete(server: Any, epochs: int = 3) -> dict[str, Any]:
    """Check that the server has one run with everything in it; return it."""
    assert server.metrics() == logged(epochs)
    (run,) = server.runs.values()
    assert run["status"] == "FINISHED"
    assert run["params"]["embedding.budget"] == "0.5"
    assert run["tags"]["note"] == "one"
    assert run["tags"]["not_finite.test_ne"] == "inf at step 0"
    assert run["inputs"][0]["dataset"]["digest"] == "f" * 32
    (name,) = server.runs
    assert {path.split("/")[1] for path in server.files} == {*CONFIG_FILES, "note.txt"}
    assert server.files[f"{name}/note.txt"] == b"a note"
    return run


def test_a_sound_server_gets_everything_and_nothing_is_left(server: Any, job: Any) -> None:
    before = dict(os.environ)
    tracker = train(job, server.uri)
    complete(server)
    assert [tracker.run_id] == list(server.runs)
    assert not Path(FOLDER).exists()
    assert tracking_threads() == []
    assert dict(os.environ) == before
    assert server.files[f"{tracker.run_id}/config.toml"].decode() == job.config(uri=server.uri).to_toml()


def test_a_report_knows_the_ids_that_a_sound_server_gives(server: Any, job: Any) -> None:
    tracker = Tracker(job.config(uri=server.uri), "report", job="report")
    nested = [tracker.training(job.config(), job.row, history=job.history) for _ in range(3)]
    tracker.close()
    assert set(server.runs) == {tracker.run_id, *nested}
    assert {server.runs[one]["tags"]["mlflow.parentRunId"] for one in nested if one} == {tracker.run_id}
    assert {run["status"] for run in server.runs.values()} == {"FINISHED"}


@pytest.mark.parametrize("fault", ["absent", "hang", "500"])
def test_a_dead_server_costs_seconds_and_loses_nothing(
    fault: str, server: Any, job: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket() as placeholder:
        placeholder.bind(("127.0.0.1", 0))
        port = placeholder.getsockname()[1] if fault == "absent" else server.server_port
        uri = f"http://user:secret@127.0.0.1:{port}"
        server.fault = lambda path, number: fault
        with caplog.at_level(logging.INFO):
            begin = time.monotonic()
            tracker = Tracker(job.config(uri=uri), "report", job="report")
            for epoch in range(1, 6):
                tracker.epoch({"epoch": epoch, "val_auc": 0.5})
                nested = tracker.training(job.config(), job.row, history=job.history)
                assert nested is not None
                assert nested.startswith("pending-")
            tracker.close()
            assert time.monotonic() - begin < 5
    warned = warnings_in(caplog)
    assert len(warned) == 1
    assert FOLDER in warned[0]
    assert "python -m recsys_embed.tracking" in warned[0]
    assert "secret" not in caplog.text
    (file,) = Path(FOLDER).iterdir()
    assert "secret" not in file.read_text()
    assert tracking_threads() == []
    assert not server.metrics()


@pytest.mark.parametrize("again", ["training", "function", pytest.param("command", marks=pytest.mark.slow)])
def test_what_a_dead_server_missed_is_delivered_once(again: str, server: Any, job: Any) -> None:
    server.fault = lambda path, number: "500"
    first = train(job, server.uri)
    assert len(list(Path(FOLDER).iterdir())) == 1
    server.fault = lambda path, number: None
    if again == "training":
        second = Tracker(job.config(uri=server.uri), "train", job="train")
        second.epoch({"epoch": 7, "val_loss": 0.5})
        second.close()
        (own,) = [run for run in server.runs if run == second.run_id]
        assert [m["step"] for m in server.runs.pop(own)["metrics"]] == [7]
        server.files = {path: content for path, content in server.files.items() if not path.startswith(own)}
    elif again == "function":
        assert deliver() == 0
    else:
        done = subprocess.run([sys.executable, "-m", "recsys_embed.tracking"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "entries were delivered" in done.stderr
    run = complete(server)
    # The run's name until it had an id finds it, as --from-run does.
    assert first.run_id is not None
    assert first.run_id == run["tags"]["recsys_embed.handle"]
    assert not Path(FOLDER).exists()
    assert deliver() == 0
    complete(server)


@pytest.mark.parametrize("met", ["500", None])
def test_a_job_that_goes_on_goes_on_with_its_run(met: str | None, server: Any, job: Any) -> None:
    """Also where the server has not heard of the run before the job goes on with it."""
    handle = new_handle()
    server.fault = lambda path, number: met
    for epoch in (1, 2):
        tracker = Tracker(job.config(uri=server.uri), "train", job="train", handle=handle)
        tracker.epoch({"epoch": epoch, "val_auc": epoch / 10})
        tracker.close("KILLED" if epoch == 1 else "FINISHED")
        if met and epoch == 1:
            assert tracker.run_id == handle
        server.fault = lambda path, number: None
    assert deliver() == 0
    (run,) = server.runs.values()
    assert run["status"] == "FINISHED"
    assert server.metrics() == [("val_auc", 1, 0.1), ("val_auc", 2, 0.2)]
    assert list(server.runs) == [tracker.run_id]


def test_a_server_that_comes_back_gets_everything_in_the_same_job(server: Any, job: Any) -> None:
    server.fault = lambda path, number: "500" if number <= 2 else None
    train(job, server.uri, until=lambda: bool(server.metrics()))
    wait_for(lambda: not tracking_threads())
    assert not Path(FOLDER).exists()
    assert deliver() == 0
    complete(server)


@pytest.mark.parametrize("dies_at", [2, 4, 5, 7, 10])
@pytest.mark.parametrize("fault", ["500", "lost"])
def test_a_server_that_dies_gets_each_entry_once(fault: str, dies_at: int, server: Any, job: Any) -> None:
    """Also where it had carried out what it answered an error to."""
    server.fault = lambda path, number: fault if number >= dies_at else None
    train(job, server.uri)
    assert Path(FOLDER).exists()
    server.fault = lambda path, number: None
    assert deliver() == 0
    complete(server)
    assert not Path(FOLDER).exists()


def test_answers_that_are_lost_now_and_then_make_no_duplicates(server: Any, job: Any) -> None:
    writes = itertools.count()

    def fault(path: str, number: int) -> str | None:
        return "lost" if path.endswith(("create", "log-batch", "update")) and next(writes) % 2 == 0 else None

    server.fault = fault
    train(job, server.uri)
    for _ in range(30):
        if deliver() == 0:
            break
    complete(server)


def test_a_call_that_hangs_goes_on_alone(server: Any, job: Any, caplog: pytest.LogCaptureFixture) -> None:
    tracker = Tracker(job.config(uri=server.uri), "train", job="train")
    tracker.epoch({"epoch": 1, "val_auc": 0.1})
    wait_for(lambda: len(server.metrics()) == 1)
    server.fault = lambda path, number: "hang"
    begin = time.monotonic()
    for epoch in (2, 3):
        tracker.epoch({"epoch": epoch, "val_auc": epoch / 10})
    tracker.training(job.config(), {**job.row, "val_auc": 0.9}, ledger=job.ledger, nested=False)
    Path("note.txt").write_text("a note")
    tracker.artifacts([Path("note.txt")], tags={"note": "one"})
    tracker.close()
    assert time.monotonic() - begin < 5
    assert len(warnings_in(caplog)) == 1
    server.released.set()
    wait_for(lambda: not tracking_threads())
    server.fault = lambda path, number: None
    assert deliver() == 0
    complete(server)


def test_a_killed_job_leaves_what_it_logged_and_its_run_is_ended(server: Any, job: Any) -> None:
    server.fault = lambda path, number: "500"
    code = f"""
import os
from recsys_embed.config import parse_config
from recsys_embed.tracking import Tracker
tree = {{"data": {{"planted": {{}}}}, "tracking": {{"uri": {server.uri!r}}}}}
tracker = Tracker(parse_config(tree), "train", job="train")
for epoch in range(1, 6):
    tracker.epoch({{"epoch": epoch, "val_auc": epoch / 10}})
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    (file,) = Path(FOLDER).iterdir()
    with file.open("a") as torn:
        torn.write('{"n": 99, "operation": {"do": "lo')
    server.fault = lambda path, number: None
    assert deliver("http://elsewhere:5000") == 0
    assert deliver(server.uri) == 0
    assert server.metrics() == [("val_auc", epoch, epoch / 10) for epoch in range(1, 6)]
    assert [run["status"] for run in server.runs.values()] == ["KILLED"]
    assert not Path(FOLDER).exists()


def test_the_spool_of_a_living_job_is_its_own(server: Any, job: Any) -> None:
    server.fault = lambda path, number: "500"
    tracker = Tracker(job.config(uri=server.uri), "train", job="train")
    tracker.epoch({"epoch": 1, "val_auc": 0.1})
    assert deliver() == 0  # finds nothing that is free
    (file,) = Path(FOLDER).iterdir()
    tracker.close()
    assert file.exists()
    assert deliver() > 0  # still broken
    server.fault = lambda path, number: None
    assert deliver() == 0
    assert server.metrics() == [("val_auc", 1, 0.1)]


def test_uploads_that_fail_hold_up_nothing_else(server: Any, job: Any, caplog: pytest.LogCaptureFixture) -> None:
    server.fault = lambda path, number: "500" if "artifacts" in path else None
    train(job, server.uri)
    assert server.metrics() == logged()
    assert [run["status"] for run in server.runs.values()] == ["FINISHED"]
    assert "4 entries" in warnings_in(caplog)[0]
    server.fault = lambda path, number: None
    Path("note.txt").unlink()
    assert deliver() == 0
    assert {path.split("/")[1] for path in server.files} == CONFIG_FILES
    assert "note.txt is gone" in warnings_in(caplog)[-1]
    assert server.metrics() == logged()
    assert not Path(FOLDER).exists()


def test_what_a_server_refuses_for_good_is_left_out_and_said(
    server: Any, job: Any, caplog: pytest.LogCaptureFixture
) -> None:
    server.fault = lambda path, number: "refuse" if path.endswith("log-inputs") else None
    train(job, server.uri)
    assert server.metrics() == logged()
    assert "no such thing" in warnings_in(caplog)[0]
    assert not Path(FOLDER).exists()


def test_a_run_of_the_callers_is_used_by_a_server_too(server: Any, job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    client = MlflowClient(server.uri)
    theirs = client.create_run(client.create_experiment("theirs")).info.run_id
    server.runs[theirs]["params"]["model.dim"] = "theirs"
    monkeypatch.setenv("MLFLOW_RUN_ID", theirs)
    server.fault = lambda path, number: "500"
    tracker = Tracker(job.config(uri=server.uri), "report", job="report")
    assert (tracker.training(job.config(), job.row) or "").startswith("pending-")
    tracker.close()
    assert tracker.run_id == theirs
    server.fault = lambda path, number: None
    assert deliver() == 0
    assert server.runs[theirs]["status"] == "RUNNING"
    assert server.runs[theirs]["params"]["model.dim"] == "theirs"
    assert server.runs[theirs]["params"]["embedding.budget"] == "0.5"
    (nested,) = set(server.runs) - {theirs}
    assert server.runs[nested]["tags"]["mlflow.parentRunId"] == theirs
    assert server.runs[nested]["experiment"] == server.experiments["theirs"]


def test_a_folder_that_cannot_be_written_is_no_obstacle(
    server: Any, job: Any, caplog: pytest.LogCaptureFixture
) -> None:
    Path(FOLDER).write_text("a file where the folder is to be")
    train(job, server.uri)
    complete(server)
    assert len(warnings_in(caplog)) == 1


def test_a_spool_holds_lines_of_json_and_no_pickle(server: Any, job: Any) -> None:
    server.fault = lambda path, number: "500"
    train(job, server.uri)
    (file,) = Path(FOLDER).iterdir()
    header, *lines = map(json.loads, file.read_text().splitlines())
    assert header["uri"] == server.uri
    assert {one["operation"]["do"] for one in lines} == {"create", "log", "text", "data", "file", "end"}


def test_a_pending_run_is_found_by_its_handle(server: Any, job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server.fault = lambda path, number: "500"
    tracker = train(job, server.uri)
    server.fault = lambda path, number: None
    assert deliver() == 0
    monkeypatch.setattr(
        "mlflow.MlflowClient.download_artifacts",
        lambda self, run, path, folder: _written(Path(folder, path), server.files[f"{run}/{path}"]),
    )
    assert tracker.run_id is not None
    tree = fetch_config(tracker.run_id, job.config(uri=server.uri).tracking)
    assert tree["data"]["categorical"] == ["user"]


def _written(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)
