"""Sample weights on their way from a column to batches: kept as they are, or refused by place and value."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow.feather as feather
import pytest
import torch

import recsys_embed.data.rows as rows_module
from recsys_embed.config import parse_config
from recsys_embed.data import EncodedDataset, blocks, parts, prepare
from recsys_embed.data.sources import open_source
from recsys_embed.errors import ConfigError, DataError

SPLITS = ("train", "val", "test")


def weighted(kit: SimpleNamespace, rows: int = 240) -> pd.DataFrame:
    table = kit.table(rows)
    table["w"] = [f"{x:.4f}" if i % 5 else "0" for i, x in enumerate(np.random.default_rng(1).gamma(1, 2, rows))]
    return table


def test_weights_come_back_with_their_rows(kit: SimpleNamespace, tmp_path: Path) -> None:
    table = weighted(kit)
    schema = kit.config(kit.write(table, tmp_path / "rows.csv"), weight="w")
    dataset = prepare(schema, tmp_path / "out")
    for split in SPLITS:
        expected = table.w[table.part == split].astype(float).to_numpy(np.float32)
        found = dataset.weights(split)
        assert found is not None
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, expected)
        assert list(feather.read_table(dataset.path / f"{split}.arrow").column_names)[-2:] == [
            "label:clicked", "weight:w",
        ]  # fmt: skip
        place = {id(batch): batch for batch in dataset.batches(split, 7, shuffle_seed=3)}
        pairs = torch.cat([torch.stack([batch.label, batch.weight]) for batch in place.values()], 1)
        assert sorted(map(tuple, pairs.t().tolist())) == sorted(
            zip(dataset.labels(split).tolist(), expected.tolist(), strict=True)
        )
    assert EncodedDataset.open(dataset.path).weights("val") is not None


def test_weights_change_nothing_but_the_weights(kit: SimpleNamespace, tmp_path: Path) -> None:
    """Vocabularies, frequencies and scalers count rows; without a column of weights the data set is what it was."""
    table = weighted(kit)
    plain = prepare(kit.config(), tmp_path / "plain", frame=table)
    with_weights = prepare(kit.config(weight="w"), tmp_path / "weighted", frame=table)
    others = prepare(kit.config(weight="w"), tmp_path / "others", frame=table.assign(w="1"))
    assert len({plain.fingerprint, with_weights.fingerprint, others.fingerprint}) == 3
    assert plain.weights("train") is None
    assert plain.encoder.scalers == with_weights.encoder.scalers
    for one, other in zip(plain.features, with_weights.features, strict=True):
        assert one == other
        assert one.counts is not None
        np.testing.assert_array_equal(one.counts, other.counts)
    np.testing.assert_array_equal(plain.buckets("test"), with_weights.buckets("test"))


def test_the_rate_of_negatives_is_no_part_of_the_encoded_rows(kit: SimpleNamespace, tmp_path: Path) -> None:
    path = kit.write(kit.table(), tmp_path / "rows.csv")
    one = prepare(kit.config(path), tmp_path / "out")
    made = (tmp_path / "out" / "manifest.json").stat().st_mtime_ns
    other = prepare(kit.config(path, negative_rate=0.1), tmp_path / "out")
    assert one.fingerprint == other.fingerprint
    assert (tmp_path / "out" / "manifest.json").stat().st_mtime_ns == made


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of 4,000 bytes, read 50 rows at a time and kept in blocks of about a hundred."""
    monkeypatch.setattr(parts, "PART_BYTES", 4_000)
    monkeypatch.setattr(rows_module, "CHUNK_ROWS", 50)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 5_000)
    monkeypatch.setattr(parts, "_BLOCK", 64)


def test_any_number_of_parts_and_workers_write_the_same_weights(
    kit: SimpleNamespace, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """With bags before them in the file, and rows of every split in every part."""
    table = weighted(kit, rows=2_000)
    path = kit.write(table, tmp_path / "rows.csv")
    config = kit.config(path, weight="w", split={"column": "part"})
    whole = prepare(config, tmp_path / "whole", workers=1)
    request.getfixturevalue("small_parts")
    assert len(open_source(config).parts()) > 10
    with ThreadPoolExecutor(3) as threads:
        one, several = prepare(config, tmp_path / "one", workers=1), prepare(config, tmp_path / "3", executor=threads)
    for dataset in (one, several):
        assert dataset.fingerprint == whole.fingerprint
        for split in SPLITS:
            assert (dataset.path / f"{split}.arrow").read_bytes() == (whole.path / f"{split}.arrow").read_bytes()
            expected = table.w[table.part == split].astype(float).to_numpy(np.float32)
            np.testing.assert_array_equal(dataset.weights(split), expected)


def test_a_wrong_weight_in_a_late_part_is_named(kit: SimpleNamespace, tmp_path: Path, small_parts: None) -> None:
    table = weighted(kit, rows=2_000)
    table.loc[1_716, "w"] = "-1"
    path = kit.write(table, tmp_path / "rows.csv")
    with ThreadPoolExecutor(3) as threads, pytest.raises(DataError, match="is negative") as caught:
        prepare(kit.config(path, weight="w"), tmp_path / "out", executor=threads)
    assert (caught.value.file, caught.value.column, caught.value.row, caught.value.value) == (str(path), "w", 1_717, -1)


@pytest.mark.parametrize(
    ("cell", "told", "value"),
    [
        ("-0.5", "is negative", -0.5),
        ("", "is missing", None),
        ("heavy", "text in a numeric column", "heavy"),
        ("nan", "text in a numeric column", "nan"),
        ("inf", "infinite number", "inf"),
        ("1e39", "is no float32 number", 1e39),
        ("1e-50", "is no float32 number", 1e-50),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_wrong_weight_is_named(
    kit: SimpleNamespace, tmp_path: Path, cell: str, told: str, value: object, suffix: str
) -> None:
    table = weighted(kit)
    table.loc[17, "w"] = cell
    path = kit.write(table, tmp_path / f"rows{suffix}")
    with pytest.raises(DataError, match=told) as caught:
        prepare(kit.config(path, weight="w"), tmp_path / "out")
    assert (caught.value.file, caught.value.column, caught.value.row) == (str(path), "w", 18)
    assert caught.value.value == value
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("label", "told"), [(None, "all weights of rows"), ("1", "of positive rows"), ("0", "of negative rows")]
)
def test_a_split_without_weight_is_refused(kit: SimpleNamespace, tmp_path: Path, label: str | None, told: str) -> None:
    table = weighted(kit).assign(w="2")
    table.loc[(table.part == "val") & ((table.clicked == label) | (label is None)), "w"] = "0"
    with pytest.raises(DataError, match=f"in split 'val' all weights.*{told.removeprefix('all weights ')}") as caught:
        prepare(kit.config(weight="w"), tmp_path / "out", frame=table)
    assert caught.value.column == "w"


def test_impossible_roles_are_refused(kit: SimpleNamespace, tmp_path: Path) -> None:
    crossed = {"weight": "w", "crosses": {"both": ["user", "w"]}}
    for options in ({"weight": "price"}, {"weight": "user"}, {"weight": "clicked"}, {"weight": "part"}, crossed):
        with pytest.raises(ConfigError, match=options["weight"]):
            prepare(kit.config(**options), tmp_path / "out", frame=kit.table())
    with pytest.raises(DataError, match="no such column") as caught:
        prepare(kit.config(weight="wieght"), tmp_path / "out", frame=kit.table())
    assert caught.value.column == "wieght"
    for rate in (0, 1.5, -1):
        with pytest.raises(ConfigError, match="negative_rate"):
            parse_config({"data": {"path": "x", "negative_rate": rate}})
    with pytest.raises(ConfigError, match="planted data are not sampled"):
        parse_config({"data": {"planted": {}, "negative_rate": 0.5}})
