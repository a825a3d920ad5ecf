"""The encoder alone, as prediction uses it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from recsys_embed.data import EncodedDataset, Encoder, prepare, read_frames
from recsys_embed.data.batches import Batch
from recsys_embed.errors import CheckpointError, DataError
from recsys_embed.files import write_manifest


def same(one: Batch, other: Batch) -> bool:
    offsets = (one.ids.offsets, other.ids.offsets)
    return (
        torch.equal(one.ids.values, other.ids.values)
        and all(x is None for x in offsets) | (offsets[0] is not None and torch.equal(*offsets))  # type: ignore[arg-type]
        and torch.equal(one.dense, other.dense)
    )


@pytest.mark.parametrize("multi_valued", [{}, {"tags": "|"}])
def test_a_saved_encoder_says_what_the_data_set_holds(
    kit: SimpleNamespace, tmp_path: Path, multi_valued: dict[str, str]
) -> None:
    table = kit.table()
    path = kit.write(table, tmp_path / "rows.csv")
    dataset = prepare(kit.config(path, multi_valued=multi_valued), tmp_path / "out")
    dataset.encoder.save(tmp_path / "model")
    expected = next(dataset.batches("test", 10_000))
    shutil.rmtree(tmp_path / "out")
    encoder = Encoder.load(tmp_path / "model")
    assert encoder.features == dataset.features
    assert encoder.dense == dataset.dense
    rows = table[table.part == "test"]
    found = encoder.encode(rows)
    assert same(found, expected)
    assert torch.equal(found.label, expected.label)
    shuffled = rows[rows.columns[::-1]].drop(columns=["clicked", "part"]).assign(extra=1)
    again = encoder.encode(shuffled)
    assert same(again, expected)
    assert not again.label.any()
    frames = list(read_frames(path, list(encoder.columns), chunk_rows=50))
    wanted = torch.tensor((table.part == "test").tolist())
    from_file = torch.cat([encoder.encode(frame).dense for frame in frames])[wanted]
    assert torch.equal(from_file, expected.dense)


def test_unseen_missing_and_odd_rows(kit: SimpleNamespace, tmp_path: Path) -> None:
    dataset = prepare(kit.config(kit.write(kit.table(), tmp_path / "rows.csv")), tmp_path / "out")
    rows = (
        kit.table()
        .head(2)
        .assign(user=["stranger", None], city=[np.nan, "01"], tags=["t1|stranger", ""], price=[None, "5"])
    )
    rows["clicked"] = ["3", "1"]
    batch = dataset.encoder.encode(rows)
    words = dataset.encoder.vocabularies
    assert batch.ids.offsets is not None
    assert batch.ids.offsets.tolist() == [0, 1, 2, 3, 4, 6, 6]
    city, tag = words["city"].values.index("01").as_py() + 1, words["tags"].values.index("t1").as_py() + 1
    assert batch.ids.values.tolist() == [0, 0, 0, city, tag, 0]
    assert batch.dense[0].tolist() == [0, 1]
    assert batch.label.isnan().tolist() == [True, False]
    empty = dataset.encoder.encode(rows.head(0))
    assert (empty.ids.batch, empty.dense.shape, len(empty.label)) == (0, (0, 2), 0) or empty.ids.values.numel() == 0


def test_bad_rows_are_named(kit: SimpleNamespace, tmp_path: Path) -> None:
    encoder = prepare(kit.config(kit.write(kit.table(), tmp_path / "rows.csv")), tmp_path / "out").encoder
    with pytest.raises(DataError, match="no such column") as caught:
        encoder.encode(kit.table().drop(columns="city"))
    assert caught.value.column == "city"
    with pytest.raises(DataError, match="text in a numeric column") as caught:
        encoder.encode(kit.table(10).assign(price=["1"] * 6 + ["x"] * 4))
    assert (caught.value.column, caught.value.row, caught.value.value) == ("price", 7, "x")


def test_a_damaged_encoder_is_refused(kit: SimpleNamespace, tmp_path: Path) -> None:
    prepare(kit.config(kit.write(kit.table(), tmp_path / "rows.csv")), tmp_path / "out").encoder.save(tmp_path / "e")
    for name in ("vocabulary-0.parquet", "encoder.json"):
        whole = (tmp_path / "e" / name).read_bytes()
        (tmp_path / "e" / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(CheckpointError) as caught:
            Encoder.load(tmp_path / "e")
        assert caught.value.file == str(tmp_path / "e" / name)
        (tmp_path / "e" / name).write_bytes(whole)
    (tmp_path / "e" / "encoder.json").unlink()
    with pytest.raises(CheckpointError):
        Encoder.load(tmp_path / "e")


@pytest.mark.parametrize(
    "change",
    [
        {"vocabularies": {"user": ["a list"]}},
        {"label": [1]},
        {"label": "clicked"},
        {"features": [{"name": [], "separator": None}]},
        {"features": [{"name": "unknown", "separator": None}]},
    ],
)
def test_an_encoder_of_no_sense_is_refused(kit: SimpleNamespace, tmp_path: Path, change: dict[str, object]) -> None:
    prepare(kit.table(), kit.config("frame").model_dump(exclude={"planted", "path"}), tmp_path / "out").encoder.save(
        tmp_path / "model"
    )
    path = tmp_path / "model" / "encoder.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(CheckpointError, match=r"encoder\.json"):
        Encoder.load(tmp_path / "model")


@pytest.mark.parametrize("change", [{"rows": None}, {"rows": {"train": "many"}}, {"name": 5}, {"inputs": []}])
def test_a_schema_of_no_sense_is_refused(kit: SimpleNamespace, tmp_path: Path, change: dict[str, object]) -> None:
    prepare(kit.table(), kit.config("frame").model_dump(exclude={"planted", "path"}), tmp_path / "out")
    path = tmp_path / "out" / "schema.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    write_manifest(tmp_path / "out")
    with pytest.raises(CheckpointError, match=r"schema\.json"):
        EncodedDataset.open(tmp_path / "out")
