"""Initial vectors of a feature, from a file into the rows of its table, once."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from recsys_embed import EmbeddingLayer, Feature, jobs
from recsys_embed.config import Config, parse_config
from recsys_embed.data import prepare
from recsys_embed.data.readers import read_chunks
from recsys_embed.data.vocabulary import Vocabulary
from recsys_embed.errors import CheckpointError, ConfigError, DataError
from recsys_embed.export import load
from recsys_embed.recommender import build_recommender
from recsys_embed.report.run import Cell, fit
from recsys_embed.report.study import run_study
from recsys_embed.search.run import check_search
from recsys_embed.training.initial import Found, begin_with, check
from tests.backends import EVERY
from tests.clicks import data_of

FEATURES = (Feature("user", 50), Feature("item", 30), Feature("basket", vocabulary="item", multi_valued=True))
VOCABULARIES = {
    name: Vocabulary(pa.array([f"{name}{n}" for n in range(1, size)]), np.ones(size, np.int64))
    for name, size in (("user", 50), ("item", 30))
}
VALUES = np.random.default_rng(0).normal(size=(12, 6)).astype(np.float32)
KNOWN = [3, 7, 29, 1, 15, 8, 22, 4, 5, 6]


def vectors(folder: Path, values: np.ndarray = VALUES, ids: list[str] | None = None, name: str = "v.parquet") -> str:
    """Vectors of ten items of the vocabulary and two others, in this order."""
    names = ids or [*(f"item{n}" for n in KNOWN), "item30", "elsewhere"]
    pd.DataFrame({"id": names, "vector": list(values)}).to_parquet(folder / name)
    return str(folder / name)


def layer_of(**options: Any) -> EmbeddingLayer:
    return EmbeddingLayer(FEATURES, 6, **{"strategy": "full", "seed": 5, **options})


@pytest.mark.parametrize("rule", [None, "sgd", "adagrad", "rowwise_adagrad"])
@pytest.mark.parametrize("backend", EVERY)
def test_rows_are_the_vectors_of_the_file_bit_for_bit(
    tmp_path: Path, backend: str, rule: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """As parameters and under every rule; the others as they were drawn, and the optimizer begins as ever."""
    if backend == "fused":
        pytest.importorskip("fbgemm_gpu")
    caplog.set_level(logging.INFO, "recsys_embed")
    drawn, layer = layer_of(backend=backend), layer_of(backend=backend)
    if rule is not None:
        drawn.optimizer(rule, lr=0.1)
        layer.optimizer(rule, lr=0.1)
    file = vectors(tmp_path)
    assert begin_with(layer, {"item": file}, VOCABULARIES) == {"item": Found(begun=10, drawn=20, unknown=2)}
    assert f"item: 10 ids begin with vectors of {file}, 20 do not; 2 of its ids are not in the data" in caplog.text
    expected = drawn.tables.get("item").detach().clone()
    expected[KNOWN] = torch.from_numpy(VALUES[:10])
    assert torch.equal(layer.tables.get("item"), expected)
    assert torch.equal(layer.vectors("basket", torch.tensor(KNOWN)), torch.from_numpy(VALUES[:10]))
    assert torch.equal(layer.tables.get("user"), drawn.tables.get("user"))
    if rule is not None:
        assert torch.equal(layer.tables.get_state("item"), drawn.tables.get_state("item"))


def test_a_feature_that_shares_a_vocabulary_stands_for_it(tmp_path: Path) -> None:
    layer = layer_of()
    begin_with(layer, {"basket": vectors(tmp_path)}, VOCABULARIES)
    assert torch.equal(layer.vectors("item", torch.tensor(KNOWN)), torch.from_numpy(VALUES[:10]))


@pytest.mark.parametrize("storage", ["int8", "int16", "fp16", "bf16"])
def test_stored_rows_are_the_nearest_to_the_vectors(tmp_path: Path, storage: str) -> None:
    values = (VALUES / 4).astype(np.float32)
    layer = layer_of(strategy={"name": "full", "storage": storage})
    layer.optimizer("sgd", lr=0.1)
    begin_with(layer, {"item": vectors(tmp_path, values)}, VOCABULARIES)
    found, wanted = layer.tables.get("item")[KNOWN], torch.from_numpy(values[:10])
    kinds = {"fp16": torch.float16, "bf16": torch.bfloat16}
    if storage in kinds:
        assert torch.equal(found, wanted.to(kinds[storage]).float())
    else:
        assert (found - wanted).abs().max() <= layer.tables.specs["item"].storage.scale / 2 * (1 + 1e-5)
    beyond = {"int8": 1.5, "int16": 1.5, "fp16": 7e4}
    if storage in beyond:
        values[3, 2] = -beyond[storage]
        with pytest.raises(DataError, match=f"beyond what {storage} stores") as caught:
            begin_with(layer, {"item": vectors(tmp_path, values)}, VOCABULARIES)
        assert (caught.value.row, caught.value.value) == (4, pytest.approx(-beyond[storage]))


def test_strategies_whose_rows_are_no_vectors_are_refused_by_name(tmp_path: Path) -> None:
    file = vectors(tmp_path)
    refused: list[Any] = [
        "hash", "unified", "compositional", "robe", "cafe", "dnis", "magnitude", "pep",
        {"name": "mixed_dimension", "width": 4}, {"name": "mixed_dimension", "width": [6, 4]},
    ]  # fmt: skip
    for strategy in refused:
        layer = layer_of(strategy=strategy, budget=0.9 if isinstance(strategy, str) else 1.0, exact=[])
        name = strategy if isinstance(strategy, str) else strategy["name"]
        for action in (
            lambda layer=layer: check(layer.plan.strategies, {"item": file}),
            lambda layer=layer: begin_with(layer, {"item": file}, VOCABULARIES),
        ):
            with pytest.raises(ConfigError, match=f"rows of strategy '{name}' are no vectors of 'item'") as caught:
                action()
            assert caught.value.path == "embedding.initial.item"
    for strategy in ({"name": "mixed_dimension", "width": 6}, {"item": "full", "user": "hash", "*": "full"}):
        layer = layer_of(strategy=strategy, budget=1.0, exact=[])
        begin_with(layer, {"item": file}, VOCABULARIES)
        assert torch.equal(layer.vectors("item", torch.tensor(KNOWN)), torch.from_numpy(VALUES[:10]))
    exact = layer_of(strategy="hash", budget=0.9, exact=["item", "basket"])
    check(exact.plan.strategies, {"item": file})
    with pytest.raises(ConfigError, match="no such feature; there are"):
        check(exact.plan.strategies, {"itme": file})
    with pytest.raises(ConfigError, match="'basket' shares its rows with 'item'"):
        check(exact.plan.strategies, {"item": file, "basket": file})


def test_wrong_files_are_refused_by_row_and_value(tmp_path: Path) -> None:
    layer = layer_of()
    narrow = vectors(tmp_path, VALUES[:, :5])
    with pytest.raises(DataError, match="have width 6, and these another") as caught:
        check(layer.plan.strategies, {"item": narrow})
    assert (caught.value.file, caught.value.value) == (narrow, 5)
    for ids, row in ((["item1", "item2", "item1"], 3), (["x", "item2", "x", "item2"], 4)):
        file = vectors(tmp_path, VALUES[: len(ids)], ids)
        with pytest.raises(DataError, match="has a vector already") as twice:
            begin_with(layer, {"item": file}, VOCABULARIES)
        assert (twice.value.file, twice.value.row, twice.value.value) == (file, row, ids[row - 1])
    with pytest.raises(DataError, match="none of its ids is a value of 'item'"):
        begin_with(layer, {"item": vectors(tmp_path, VALUES[:2], ["x", "y"])}, VOCABULARIES)


def test_an_id_that_stands_twice_is_found_in_any_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recsys_embed.data.vectors.read_chunks", partial(read_chunks, chunk_rows=2))
    file = vectors(tmp_path, VALUES[:5], ["item1", "item2", "item3", "item4", "item2"])
    with pytest.raises(DataError, match="has a vector already") as caught:
        begin_with(layer_of(), {"item": file}, VOCABULARIES)
    assert caught.value.row == 5


# --- in a run -------------------------------------------------------------------------------------------------


def config_of(clicks: Path, *overrides: str, **initial: str) -> Config:
    tree = {
        "data": data_of(clicks),
        "model": {"name": "dcn_v2", "dim": 6, "hidden": [8]},
        "embedding": {"backend": "reference", "initial": initial},
        "training": {"batch_size": 256, "epochs": 2, "threads": 1},
        "tracking": {"enabled": False},
    }
    return parse_config(tree, overrides)


def items(folder: Path, shift: float = 0.0, name: str = "v.parquet") -> str:
    """Vectors of all items of the clicks."""
    values = np.random.default_rng(1).normal(size=(100, 6)).astype(np.float32) + np.float32(shift)
    return vectors(folder, values, [f"i{n}" for n in range(100)], name)


def weights_of(folder: Path) -> dict[str, Tensor]:
    return load(folder).model.state_dict()


def test_a_run_begins_with_them_and_ships_without_the_file(clicks: Path, tmp_path: Path) -> None:
    """At a learning rate of almost nothing the exported rows are the vectors; the file may then go."""
    file = items(tmp_path)
    still = ("training.optimizer={ tables = 'sgd', tables_lr = 1e-30, dense_lr = 1e-30 }",)
    model, _ = jobs.train(config_of(clicks, *still, item=file), tmp_path / "out", progress=False)
    Path(file).unlink()
    predictor = load(model)
    words = predictor.encoder.vocabularies["item"].values.to_pylist()
    given = np.random.default_rng(1).normal(size=(100, 6)).astype(np.float32)
    found = predictor.model.embedding.vectors("item", torch.arange(1, len(words) + 1))
    assert torch.equal(found, torch.from_numpy(given[[int(word[1:]) for word in words]]))


@pytest.mark.parametrize("tables", ["rowwise_adagrad", "adam"])
def test_a_run_that_goes_on_does_not_begin_again(clicks: Path, tmp_path: Path, tables: str) -> None:
    """Stopped after an epoch: the weights of a run that never stopped, and the file was read by the first alone."""
    data = prepare(config_of(clicks).data, tmp_path / "data")
    cell = Cell(config_of(clicks, f"training.optimizer.tables={tables}", item=items(tmp_path)))
    begun: list[str] = []

    def run(folder: Path, stop_at: int = 0) -> dict[str, Tensor]:
        def on_epoch(line: dict[str, Any]) -> None:
            if line["epoch"] == stop_at:
                raise KeyboardInterrupt

        fitted = fit(cell, data, checkpoints=folder, progress=False, on_epoch=on_epoch)
        return {name: tensor.clone() for name, tensor in fitted.model.state_dict().items()}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("recsys_embed.report.run.begin_with", lambda *given: begun.append("begun") or begin_with(*given))
        straight = run(tmp_path / "straight")
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "stopped", stop_at=1)
        assert begun == ["begun"] * 2
        resumed = run(tmp_path / "stopped")
    assert begun == ["begun"] * 2
    assert all(torch.equal(straight[name], tensor) for name, tensor in resumed.items())
    plain = fit(Cell(config_of(clicks, f"training.optimizer.tables={tables}")), data, progress=False)
    assert not torch.equal(plain.model.state_dict()["embedding.tables.item"], straight["embedding.tables.item"])


def test_what_is_in_the_file_is_part_of_a_runs_identity(clicks: Path, tmp_path: Path) -> None:
    one, same, other = items(tmp_path), items(tmp_path, name="copy.parquet"), items(tmp_path, 0.5, "other.parquet")
    digests = [Cell(config_of(clicks, item=file)).digest("data") for file in (one, same, other)]
    assert digests[0] == digests[1] != digests[2]
    assert Cell(config_of(clicks)).digest("data") not in digests
    features = (Feature("user", 400), Feature("item", 101), Feature("tags", 12, multi_valued=True))
    settings = [build_recommender(config_of(clicks, item=file), features, 1).settings for file in (one, same, other)]
    assert settings[0] == settings[1] != settings[2]
    with pytest.raises(DataError, match="cannot be read"):
        Cell(config_of(clicks, item=str(tmp_path / "none.parquet"))).digest("data")


def test_other_contents_under_one_name_are_another_run(clicks: Path, tmp_path: Path) -> None:
    data = prepare(config_of(clicks).data, tmp_path / "data")
    config = config_of(clicks, "training.epochs=1", item=items(tmp_path))
    fit(Cell(config), data, checkpoints=tmp_path / "checkpoints", progress=False)
    items(tmp_path, 0.5)
    with pytest.raises(CheckpointError, match=r"embedding\.initial\.item is"):
        fit(Cell(config), data, checkpoints=tmp_path / "checkpoints", progress=False)


def test_a_study_refuses_before_it_trains(clicks: Path, tmp_path: Path) -> None:
    file, strategies = items(tmp_path), "study.strategies=['full', 'hash']"
    with pytest.raises(ConfigError, match="rows of strategy 'hash' are no vectors"):
        run_study(config_of(clicks, strategies, "embedding.exact=[]", item=file), tmp_path / "out", progress=False)
    with pytest.raises(ConfigError, match="names 'price', which is no categorical column"):
        run_study(config_of(clicks, strategies, price=file), tmp_path / "out", progress=False)
    assert not (tmp_path / "out" / "runs").exists()
    with pytest.raises(ConfigError, match=r"embedding\.initial is for train and report"):
        check_search(config_of(clicks, "embedding.budget=0.5", item=file))
