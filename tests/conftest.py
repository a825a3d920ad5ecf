"""What every test gets: reproducible examples, one thread, and the real data where it is there."""

import contextlib
import os
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pandas as pd
import pytest
import torch

# A background shell starts its commands with Ctrl-C ignored, and their children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Derandomised, so that a failure in one run is a failure in all; no deadline, since a shared machine stalls at times.
hypothesis.settings.register_profile("repo", deadline=None, derandomize=True, max_examples=50)
hypothesis.settings.load_profile("repo")


def pytest_configure() -> None:
    """One thread: the tests' tensors are small, and on a busy machine two threads mostly wait for each other."""
    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with files that have slow tests, so that no process waits for the last of them, and skip what needs a GPU
    where there is none."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets the number of torch's threads, for the time of the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of public data sets, in `$RECSYS_EMBED_DATA` or beside the repository; not part of it."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("RECSYS_EMBED_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no real data: {folder} is not a folder (set RECSYS_EMBED_DATA)")
    return folder


@pytest.fixture(scope="session")
def quick_stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """New MLflow databases are copies of one: MLflow takes each through all versions of its schema, for seconds."""
    utils = pytest.importorskip("mlflow.store.db.utils")
    upgrade, ready, lock = utils._upgrade_db, tmp_path_factory.mktemp("mlflow") / "ready.db", threading.Lock()

    def copied(engine: Any) -> None:
        path = engine.url.database
        if engine.dialect.name != "sqlite" or not path or path == ":memory:":
            upgrade(engine)
            return
        with lock:
            if not ready.exists():
                upgrade(engine)
                copy(path, ready)
                return
        copy(ready, path)

    def copy(source: str | Path, target: str | Path) -> None:
        with contextlib.closing(sqlite3.connect(source)) as one, contextlib.closing(sqlite3.connect(target)) as other:
            one.backup(other)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, "_upgrade_db", copied)
        yield


@pytest.fixture(scope="session")
def clicks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows to learn from: `user`, `item` and `price` decide `clicked`, `part` is the split."""
    rng = np.random.default_rng(5)
    user, item = (400 * rng.random(6000) ** 2).astype(int), (100 * rng.random(6000) ** 2).astype(int)
    price = rng.normal(size=6000).round(3)
    logit = 1.5 * rng.normal(size=400)[user] + rng.normal(size=100)[item] + 0.5 * price
    frame = pd.DataFrame(
        {
            "user": [f"u{u}" for u in user],
            "item": [f"i{i}" for i in item],
            "tags": [f"t{u % 7}|t{i % 5}" for u, i in zip(user, item, strict=True)],
            "price": price,
            "clicked": (rng.random(6000) < 1 / (1 + np.exp(-logit))).astype(int),
            "part": np.resize(["test", "val", "train", "train", "train", "train"], 6000),
        }
    )
    path = tmp_path_factory.mktemp("clicks") / "clicks.csv"
    frame.to_csv(path, index=False)
    return path
