"""A model folder scores raw rows elsewhere exactly as the trainer scored them."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from recsys_embed import export as export_module
from recsys_embed import jobs
from recsys_embed.config import Config, parse_config
from recsys_embed.errors import BudgetError, CheckpointError, DataError
from recsys_embed.export import load, predict_file
from recsys_embed.files import write_manifest
from recsys_embed.report.run import Trained
from recsys_embed.storage import FP32
from recsys_embed.tables.rounding import TORCH_TYPES
from tests.clicks import data_of


def config_of(clicks: Path, *overrides: str) -> Config:
    tree = {
        "data": data_of(clicks),
        "model": {"name": "dcn_v2", "dim": 4, "hidden": [8]},
        "embedding": {"strategy": "unified", "budget": 0.3},
        "training": {"batch_size": 256, "epochs": 2, "threads": 1},
        "tracking": {"enabled": False},
    }
    return parse_config(tree, overrides)


@pytest.fixture(scope="module")
def trained(clicks: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Trained]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield jobs.train(config_of(clicks), tmp_path_factory.mktemp("train"), progress=False)
    torch.set_num_threads(threads)


@pytest.fixture
def rows(clicks: Path) -> pd.DataFrame:
    frame = pd.read_csv(clicks)
    return frame[frame["part"] == "test"]


def test_predictions_equal_the_trainers(trained: tuple[Path, Trained], rows: pd.DataFrame) -> None:
    predictor = load(trained[0])
    scores = predictor.predict(rows)
    assert scores.index.equals(rows.index)
    np.testing.assert_allclose(scores, trained[1].scores, atol=1e-6)
    # Other orders of rows and columns, extra columns, no label.
    shuffled = rows.sample(frac=1, random_state=0)[["tags", "price", "user", "item"]].assign(noise="x")
    np.testing.assert_allclose(predictor.predict(shuffled).loc[rows.index], scores, atol=1e-6)
    assert predictor.predict(rows.head(0)).empty


def test_the_ledger_has_the_strings_of_the_vocabulary_beside_the_budget(trained: tuple[Path, Trained]) -> None:
    folder, ledger, row = trained[0] / "encoder", trained[1].ledger, trained[1].row
    files = json.loads((folder / "encoder.json").read_text(encoding="utf-8"))["vocabularies"]
    strings = ledger[ledger["part"] == "vocabulary"]
    assert strings["table"].tolist() == strings["feature"].tolist() == ["user", "item", "tags"]
    assert strings["host_bytes"].tolist() == [(folder / files[name]).stat().st_size for name in strings["table"]]
    assert strings["rows"].tolist() == [pq.read_metadata(folder / files[name]).num_rows for name in strings["table"]]
    assert not strings[["width", "train_bytes", "checkpoint_bytes", "serve_bytes"]].any(axis=None)
    assert not ledger.loc[ledger["part"] != "vocabulary", "host_bytes"].any()
    # The budget counts the tensors and nothing else.
    tensors = load_file(trained[0] / "model.safetensors")
    stored = sum(tensor.nbytes for name, tensor in tensors.items() if name.startswith("embedding."))
    assert row["serve_bytes"] == ledger["serve_bytes"].sum() == stored <= row["budget_bytes"]
    assert row["host_bytes"] == strings["host_bytes"].sum()
    assert sum(row["parts"].values()) == row["serve_bytes"]


def test_what_only_training_needs_is_not_shipped(clicks: Path, rows: pd.DataFrame, tmp_path: Path) -> None:
    cafe = "embedding.strategy={name = 'cafe', threshold = 3.0, every = 3}"
    folder, trained = jobs.train(config_of(clicks, cafe), tmp_path, progress=False)
    tensors = load_file(folder / "model.safetensors")
    stored = sum(tensor.nbytes for name, tensor in tensors.items() if name.startswith("embedding."))
    assert trained.row["serve_bytes"] == trained.ledger["serve_bytes"].sum() == stored <= trained.row["budget_bytes"]
    assert any(bool((tensor >= 0).any()) for name, tensor in tensors.items() if name.endswith("pointers"))
    assert any(name.endswith("_extra_state") for name in trained.model.state_dict())
    np.testing.assert_allclose(load(folder).predict(rows), trained.scores, atol=1e-6)


WIDTHS = '{ "user" = { name = "mixed_dimension", width = [2, 0] }, "*" = { name = "mixed_dimension", bytes = 800 } }'


@pytest.mark.parametrize("strategy", ['"dnis"', '"pep"', '{ "user" = "dnis", "*" = "hash" }', WIDTHS])
def test_a_strategy_ships_the_form_that_the_budget_is_about(
    clicks: Path, rows: pd.DataFrame, tmp_path: Path, strategy: str
) -> None:
    options = ("training.epochs=1", "embedding.budget=0.3", "embedding.exact=[]")
    folder, trained = jobs.train(
        config_of(clicks, f"embedding.strategy={strategy}", *options), tmp_path, progress=False
    )
    tensors = load_file(folder / export_module.WEIGHTS)
    stored = sum(tensor.nbytes for name, tensor in tensors.items() if name.startswith("embedding."))
    assert stored == trained.ledger["serve_bytes"].sum()
    predictor = load(folder)
    layer = predictor.model.embedding
    held = sum(tensor.nbytes for _, tensor in [*layer.named_buffers(), *layer.named_parameters()])
    assert held < 1.1 * stored + 1000  # a few constants beside what is stored
    np.testing.assert_allclose(predictor.predict(rows), trained.scores, atol=1e-6)
    twin = copy.deepcopy(predictor.model)
    batch = predictor.encoder.encode(rows)
    with torch.no_grad():
        assert torch.equal(twin(batch), predictor.model(batch))


@pytest.mark.parametrize("storage", ["int8", "int16", "bf16", "fp16", "fp32"])
def test_tables_are_as_small_on_disk_and_in_memory_as_the_ledger_says(
    clicks: Path, rows: pd.DataFrame, tmp_path: Path, storage: str
) -> None:
    options = ("training.epochs=1", "embedding.backend=reference", "embedding.budget=0.2", "training.batch_size=1024")
    strategy = f'embedding.strategy={{ name = "compositional", storage = "{storage}" }}'
    folder, trained = jobs.train(config_of(clicks, strategy, *options), tmp_path, progress=False)
    tensors = load_file(folder / export_module.WEIGHTS)
    stored = sum(tensor.nbytes for name, tensor in tensors.items() if name.startswith("embedding."))
    assert stored == trained.ledger["serve_bytes"].sum()
    predictor = load(folder)
    tables = predictor.model.embedding.tables
    assert not list(tables.parameters())
    held = sum(b.untyped_storage().nbytes() for n, b in tables.named_buffers() if n.endswith(".weights"))
    assert held == stored
    assert {one.dtype for name, one in tensors.items() if name.startswith("embedding.")} == {TORCH_TYPES[storage]} | (
        {torch.float32} if any(part.strategy.storage == FP32 for part in predictor.model.embedding._parts) else set()
    )
    # Bit for bit, since it reads the same integers in the same batches.
    with torch.no_grad():
        for start in range(0, len(rows), 1024):
            batch = predictor.encoder.encode(rows.iloc[start : start + 1024])
            assert torch.equal(predictor.model(batch), trained.model.eval()(batch))
    np.testing.assert_array_equal(predictor.predict(rows), trained.scores)


class Allocations(TorchDispatchMode):
    """Bytes of all memory that tensors take, by type, however soon they give it back."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: dict[int, torch.UntypedStorage] = {}  # kept, so that no address is there twice
        self.bytes: dict[torch.dtype, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and not tensor.is_meta:
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self.storages:
                    self.storages[storage.data_ptr()] = storage
                    self.bytes[tensor.dtype] = self.bytes.get(tensor.dtype, 0) + storage.nbytes()
        return out


@pytest.mark.parametrize("strategy", ["full", "dnis"])
def test_loading_takes_no_memory_for_what_is_not_shipped(clicks: Path, tmp_path: Path, strategy: str) -> None:
    """Neither float copies of integers, nor tables that are shipped in another form, nor initial weights."""
    small = 'model={ name = "dlrm", dim = 64, bottom = [8], top = [8] }'
    node = {"full": '{ name = "full", storage = "int8" }', "dnis": '"dnis"'}[strategy]
    options = (f"embedding.strategy={node}", "embedding.budget=0.25", "embedding.exact=[]", "training.epochs=1")
    folder, trained = jobs.train(config_of(clicks, small, *options), tmp_path, progress=False)
    tensors = load_file(folder / export_module.WEIGHTS)
    tables = trained.ledger["serve_bytes"].sum()
    others = sum(tensor.nbytes for name, tensor in tensors.items() if not name.startswith("embedding."))
    with Allocations() as taken:
        load(folder)
    # Twice: as read from the file, and as held.
    assert sum(taken.bytes.values()) < 2 * tables + 5 * others + 5000
    if strategy == "full":
        assert {tensor.dtype for name, tensor in tensors.items() if name.startswith("embedding.")} == {torch.int8}
        assert taken.bytes[torch.float32] < 5 * others + 1000 < tables


def test_unseen_values_are_one_unseen_id(trained: tuple[Path, Trained], rows: pd.DataFrame) -> None:
    predictor = load(trained[0])
    one = rows.head(3)
    new = predictor.predict(one.assign(user="never seen"))
    assert np.isfinite(new).all()
    np.testing.assert_allclose(predictor.predict(one.assign(user="another")), new)
    np.testing.assert_allclose(predictor.predict(one.assign(user=None)), new)
    with pytest.raises(DataError, match="item"):
        predictor.predict(rows.drop(columns="item"))


def test_the_folder_works_elsewhere_without_the_optional_libraries(
    trained: tuple[Path, Trained], rows: pd.DataFrame, tmp_path: Path
) -> None:
    moved = tmp_path / "elsewhere" / "model"
    shutil.copytree(trained[0], moved)
    rows.to_parquet(tmp_path / "rows.parquet")
    code = (
        "import sys\n"
        "for name in ('mlflow', 'fbgemm_gpu', 'torchrec', 'optuna'): sys.modules[name] = None\n"
        "import pandas as pd\n"
        "from recsys_embed.export import load\n"
        "rows = pd.read_parquet('rows.parquet')\n"
        "load('elsewhere/model').predict(rows).to_frame().to_parquet('scores.parquet')\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    scores = pd.read_parquet(tmp_path / "scores.parquet")["score"]
    np.testing.assert_allclose(scores, trained[1].scores, atol=1e-6)


@pytest.mark.parametrize("backend", ["fused", "sharded"])
def test_a_model_is_loaded_without_the_back_end_that_trained_it(
    trained: tuple[Path, Trained],
    rows: pd.DataFrame,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    backend: str,
) -> None:
    for name in ("fbgemm_gpu", "torchrec"):  # importing them fails
        monkeypatch.setitem(sys.modules, name, None)
    folder = tmp_path / "model"
    shutil.copytree(trained[0], folder)
    config = folder / "config.toml"
    config.write_text(config.read_text().replace('backend = "auto"', f'backend = "{backend}"'))
    write_manifest(folder)
    predictor = load(folder)
    assert predictor.model.embedding.backend == "native"
    np.testing.assert_allclose(predictor.predict(rows), trained[1].scores, atol=1e-6)


@pytest.mark.parametrize("name", ["model.safetensors", "config.toml", "encoder/encoder.json"])
def test_a_damaged_folder_is_refused_by_file(trained: tuple[Path, Trained], tmp_path: Path, name: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(trained[0], folder)
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        load(folder)
    assert caught.value.file == str(folder / name)
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match="missing"):
        load(folder)


def test_nothing_in_the_folder_is_a_pickle(trained: tuple[Path, Trained]) -> None:
    suffixes = {file.suffix for file in trained[0].rglob("*") if file.is_file()}
    assert suffixes == {".json", ".toml", ".safetensors", ".parquet"}


@pytest.mark.parametrize("name", ["scores.csv", "scores.parquet"])
def test_files_are_scored_in_order_as_a_stream(
    trained: tuple[Path, Trained], rows: pd.DataFrame, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_module, "CHUNK_ROWS", 300)
    rows.drop(columns=["clicked", "part"]).to_csv(tmp_path / "rows.csv", index=False)
    out = tmp_path / "new" / name
    assert predict_file(load(trained[0]), tmp_path / "rows.csv", out) == 1000
    scores = pd.read_csv(out) if name.endswith("csv") else pd.read_parquet(out)
    assert scores["row"].tolist() == list(range(1000))
    np.testing.assert_allclose(scores["score"], trained[1].scores, atol=1e-6)
    # A failure leaves what was there, and no half of a file.
    rows.assign(price="dear").to_csv(tmp_path / "bad.csv", index=False)
    before = out.read_bytes()
    with pytest.raises(DataError, match="price"):
        predict_file(load(trained[0]), tmp_path / "bad.csv", out)
    assert out.read_bytes() == before
    assert [file.name for file in out.parent.iterdir()] == [name]


def test_training_again_takes_up_the_checkpoints(clicks: Path, tmp_path: Path) -> None:
    whole = jobs.train(config_of(clicks), tmp_path / "whole", progress=False)[1]
    again = jobs.train(config_of(clicks), tmp_path / "whole", progress=False)[1]
    assert again.result.history == whole.result.history
    np.testing.assert_array_equal(again.scores, whole.scores)
    # Another config in the same folder is another run.
    other = jobs.train(config_of(clicks, "training.seed=1", "training.epochs=1"), tmp_path / "whole", progress=False)[1]
    assert other.result.epochs == 1


def test_an_infeasible_budget_names_the_nearest_and_trains_nothing(clicks: Path, tmp_path: Path) -> None:
    with pytest.raises(BudgetError) as caught:
        jobs.train(config_of(clicks, "embedding.budget=7"), tmp_path, progress=False)
    nearest = caught.value.nearest_bytes
    jobs.train(config_of(clicks, f"embedding.budget={nearest}", "training.epochs=1"), tmp_path, progress=False)
