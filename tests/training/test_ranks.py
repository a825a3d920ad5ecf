"""One training on 1, 2 and 3 ranks: the same model, the same scores, and checkpoints that any number can take up."""

from __future__ import annotations

import datetime
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from recsys_embed import ConfigError, DivergedError, EmbeddingLayer
from recsys_embed.config import DCNv2Config, OptimizerConfig, ShardingConfig, TrainingConfig
from recsys_embed.data.columns import Columns
from recsys_embed.data.loader import batches
from recsys_embed.data.vocabulary import Vocabulary
from recsys_embed.models import build_model
from recsys_embed.recommender import Recommender
from recsys_embed.share import Share
from recsys_embed.training.checkpoints import newest, tensors_file
from recsys_embed.training.initial import begin_with
from recsys_embed.training.trainer import predict, train
from tests.processes import on_processes
from tests.training.conftest import Toy

SGD = OptimizerConfig(tables="sgd", tables_lr=1.0, dense="sgd", dense_lr=0.1)
# In fp32: rounded factors would let sums that differ in their last bits grow apart.
CLIPPED = TrainingConfig(batch_size=50, epochs=2, patience=5, optimizer=SGD, clip_norm=0.5, precision="fp32")
ADAM = TrainingConfig(batch_size=64, epochs=2, patience=5, precision="fp32")


WIDTHS = {name: {"name": "mixed_dimension", "width": width} for name, width in (("user", 4), ("*", (4, 0)))}
"""Projections, which every rank trains, and ids without a row."""


def model_of(decay: float = 0.0, dropout: float = 0.0, **options: Any) -> Recommender:
    sharding = ShardingConfig(placement={"user": "row_wise", "*": "data_parallel"}, replicate_below=0)
    layer = EmbeddingLayer(Toy.features, 8, decay=decay, sharding=sharding, **options)
    torch.manual_seed(0)
    config = DCNv2Config(dim=8, hidden=(8,), dropout=dropout)
    return Recommender(layer, build_model(config, num_features=2, num_dense=1))


def fit(
    config: TrainingConfig, rows: int, folder: Path | None = None, *, weighted: bool = False, **options: Any
) -> dict[str, Tensor]:
    """The trained weights, the scores of the test rows, and the metrics."""
    toy, model = Toy(rows=rows, weighted=weighted), model_of(decay=0.01, **options)
    result = train(model, toy, config, checkpoints=folder, progress=False)
    told = [result.val["auc"], result.val["logloss"], *(line["train_loss"] for line in result.history)]
    scores = predict(model, toy, "test", 16)
    found = {**model.state_dict(), "told": torch.tensor(told), "scores": torch.tensor(scores)}
    return {name: tensor.clone() for name, tensor in found.items()}


VECTORS = torch.randn(20, 8, generator=torch.Generator().manual_seed(3))


def begun(folder: Path) -> dict[str, Tensor]:
    """Tables row-wise and data-parallel after both began with vectors of every other id."""
    files, vocabularies = {}, {}
    for feature in Toy.features:
        frame = pd.DataFrame({"id": [f"{2 * n + 1}" for n in range(feature.size // 2)]})
        frame["vector"] = list(VECTORS[: len(frame)].numpy())
        files[feature.name] = str(folder / f"{feature.name}-{dist.get_rank()}.parquet")
        frame.to_parquet(files[feature.name])
        values = pa.array([str(n) for n in range(1, feature.size)])
        vocabularies[feature.name] = Vocabulary(values, np.ones(feature.size, np.int64))
    layer = model_of().embedding
    layer.optimizer("rowwise_adagrad", lr=0.1)
    begin_with(layer, files, vocabularies)
    states = {f"{name}.state": layer.tables.get_state(name) for name in layer.tables.specs}
    return {**{name: tensor.clone() for name, tensor in layer.state_dict().items()}, **states}


def refusals(rank: int) -> dict[str, Tensor]:
    """A NaN that one rank reads stops all of them; batch statistics of one rank are refused."""
    toy, model = Toy(rows=400), model_of()
    toy.split["train"].dense[0][7] = np.nan
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(DivergedError, match="the loss is nan"):
        train(model, toy, CLIPPED.model_copy(update={"batch_size": 400}), progress=False)
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    normal = model_of()
    normal.interaction = torch.nn.Sequential(torch.nn.BatchNorm1d(3))
    with pytest.raises(ConfigError, match=r"'interaction.0' normalises over the samples of one rank"):
        train(normal, Toy(rows=400), ADAM, progress=False)
    return {}


def stopped_and_resumed(folder: Path) -> dict[str, Tensor]:
    """With dropout, and with a strategy that keeps statistics of each rank: the same bits as a run never stopped."""
    toy, cafe = Toy(rows=404), {"strategy": "cafe", "budget": 0.5, "exact": []}

    def run(folder: Path | None, stop_at: int = 0) -> dict[str, Tensor]:
        def stop(line: dict[str, Any]) -> None:
            if line["epoch"] == stop_at:
                raise KeyboardInterrupt

        model = model_of(dropout=0.3, **cafe)
        config = ADAM.model_copy(update={"epochs": 3})
        result = train(model, toy, config, checkpoints=folder, progress=False, on_epoch=stop)
        told = torch.tensor([line["train_loss"] for line in result.history], dtype=torch.float64)
        return {name: tensor.clone() for name, tensor in model.state_dict().items()} | {"told": told}

    straight = run(None)
    with pytest.raises(KeyboardInterrupt):
        run(folder, stop_at=1)
    found = newest(folder)
    assert found is not None
    pairs = "model.embedding.strategies.0.tally._extra_state"
    own = [found.share(Share(rank, dist.get_world_size()))[pairs] for rank in range(dist.get_world_size())]
    assert all(len(one) for one in own)  # stopped between two merges, with something to lose on every rank
    resumed = run(folder)
    assert straight.keys() == resumed.keys()
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in straight.items())
    return {}


def work(rank: int, world: int, folder: str) -> None:
    """All cases on one rank."""
    torch.set_num_threads(1)
    where = Path(folder)
    wait = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{where}/init", rank=rank, world_size=world, timeout=wait)
    cases: dict[str, Callable[[], dict[str, Tensor]]] = {
        "clipped": lambda: fit(CLIPPED, 404),
        "adam": lambda: fit(ADAM, 404),
        "few": lambda: fit(CLIPPED.model_copy(update={"batch_size": 201}), 404),
        "widths": lambda: fit(CLIPPED, 404, strategy=WIDTHS),
        "weighted": lambda: fit(CLIPPED, 404, weighted=True),
        "resumed": lambda: fit(CLIPPED, 404, where / "checkpoints"),
        "refusals": lambda: refusals(rank),
        "begun": lambda: begun(where),
    }
    if world == 2:
        cases["stopped"] = lambda: stopped_and_resumed(where / "stopped")
    try:
        for name, case in cases.items():
            save_file(case(), where / f"{name}-{rank}.safetensors")
    except Exception:
        (where / f"{rank}.error").write_text(traceback.format_exc())
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """The folder of a world; it finds checkpoints that one process stopped at after an epoch."""
    pytest.importorskip("torchrec", reason="tables on several ranks need TorchRec")
    folders: dict[int, Path] = {}

    def of(world: int) -> Path:
        if world not in folders:
            folder = tmp_path_factory.mktemp(f"world{world}")

            def stop(line: dict[str, Any]) -> None:
                raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                train(
                    model_of(decay=0.01), Toy(rows=404), CLIPPED, checkpoints=folder / "checkpoints", progress=False,
                    on_epoch=stop,
                )  # fmt: skip
            on_processes(work, (world, str(folder)), world)
            folders[world] = folder
        for error in folders[world].glob("*.error"):
            pytest.fail(error.read_text())
        return folders[world]

    return of


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize("name", ["clipped", "adam", "few", "widths", "weighted", "resumed"])
def test_ranks_train_the_model_of_one_process(results: Callable[[int], Path], name: str, world: int):
    # 404 training and 101 test rows: last batches are uneven, and 4 rows over 3 ranks leave nobody out, 1 row does.
    # What a rank's samples weigh together differs even where they are as many.
    config = {"adam": ADAM, "few": CLIPPED.model_copy(update={"batch_size": 201})}.get(name, CLIPPED)
    expected = fit(config, 404, strategy=WIDTHS if name == "widths" else "full", weighted=name == "weighted")
    for rank in range(world):
        found = load_file(results(world) / f"{name}-{rank}.safetensors")
        assert found["scores"].shape == (101,)
        for key, tensor in expected.items():
            torch.testing.assert_close(found[key], tensor, rtol=1e-4, atol=1e-5)


def test_ranks_begin_with_the_same_vectors(results: Callable[[int], Path]):
    drawn = model_of().embedding.state_dict()
    for rank in range(2):
        found = load_file(results(2) / f"begun-{rank}.safetensors")
        for name in ("user", "item"):
            expected = drawn[f"tables.{name}"].clone()
            expected[1::2] = VECTORS[: len(expected) // 2]
            assert torch.equal(found[f"tables.{name}"], expected)
            assert not found[f"{name}.state"].any()


def test_a_checkpoint_of_ranks_resumes_in_the_same_bits(results: Callable[[int], Path]):
    assert (results(2) / "stopped-1.safetensors").exists()


def test_a_checkpoint_of_ranks_is_that_of_one_process(results: Callable[[int], Path]):
    files = sorted(path.name for path in next((results(3) / "checkpoints").glob("step-*18")).iterdir())
    assert files == ["manifest.json", *(tensors_file(rank, 3) for rank in range(3)), "state.json"]
    found, whole = newest(results(3) / "checkpoints"), load_file(results(3) / "resumed-0.safetensors")
    assert found is not None
    users = [found.share(Share(rank, 3))["model.embedding.tables.user"] for rank in range(3)]
    assert [len(rows) for rows in users] == [last - first for first, last in (Share(r, 3).of(30) for r in range(3))]
    for name in ("embedding.tables.user", "embedding.tables.item"):
        assert torch.equal(found.tensors["model." + name], whole[name])


def test_one_ranks_trouble_is_everybodys(results: Callable[[int], Path]):
    assert (results(2) / "refusals-1.safetensors").exists()


@pytest.mark.parametrize(("size", "count"), [(101, 3), (2, 3), (0, 2), (64, 4)])
def test_shares_are_a_division(size: int, count: int):
    pieces = [Share(place, count).of(size) for place in range(count)]
    assert [n for first, last in pieces for n in range(first, last)] == list(range(size))
    assert max(last - first for first, last in pieces) - min(last - first for first, last in pieces) <= 1


@pytest.mark.parametrize("batch_size", [1, 7, 64, 500])
@pytest.mark.parametrize("count", [1, 3, 4])
def test_each_rank_reads_its_piece_of_every_batch(batch_size: int, count: int):
    rows = np.arange(101)
    columns = Columns((rows.astype(np.int32),), (), rows.astype(np.float32))
    whole = [batch.label for batch in batches(columns, batch_size, 5)]
    shares = [list(batches(columns, batch_size, 5, share=Share(place, count))) for place in range(count)]
    assert all(len(share) == len(whole) for share in shares)
    for number, batch in enumerate(whole):
        assert torch.equal(torch.cat([share[number].label for share in shares]), batch)
        assert torch.equal(torch.cat([share[number].ids.values[0] for share in shares]), batch.int())
