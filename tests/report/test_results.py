from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys_embed.errors import DataError
from recsys_embed.report.results import (
    COLUMNS,
    RESULTS,
    format_results,
    name_methods,
    options_of,
    predictions_path,
    read_predictions,
    read_results,
    write_predictions,
    write_results,
)


def test_the_file_has_its_columns_in_order(folder: Path) -> None:
    header = (folder / RESULTS).read_text(encoding="utf-8").splitlines()[0].split(",")
    assert header == list(COLUMNS)
    assert header[:4] == ["dataset", "fingerprint", "model", "strategy"]
    assert header[-1] == "versions"


def test_reading_and_writing_are_symmetrical(folder: Path) -> None:
    frame = read_results(folder / RESULTS)
    assert format_results(frame) == (folder / RESULTS).read_text(encoding="utf-8")
    assert frame["budget_bytes"].dtype == "Int64"
    assert frame["coarse"].dtype == bool


def test_text_stays_text_and_numbers_keep_every_bit(tmp_path: Path) -> None:
    path = tmp_path / RESULTS
    base = {"dataset": "NA", "fingerprint": "00123", "model": "null", "strategy": "hash", "seed": 0, "status": "failed"}
    error = 'line one\nline, "two"\r\nNone'
    write_results(path, [base | {"run": "1", "error": error, "val_auc": 1 / 3, "train_bytes": 2**62 + 1}])
    row = read_results(path).iloc[0]
    assert (row["dataset"], row["fingerprint"], row["model"], row["run"]) == ("NA", "00123", "null", "1")
    assert row["error"] == error
    assert row["val_auc"] == 1 / 3
    assert row["train_bytes"] == 2**62 + 1
    assert np.isnan(row["test_auc"])
    assert row["serve_bytes"] is pd.NA


@pytest.mark.parametrize(
    ("column", "value", "told"),
    [
        ("status", "fine", "is none of ok, failed, diverged, infeasible"),
        ("test_auc", "high", "is not a number"),
        ("test_auc", "inf", "is not a number"),
        ("serve_bytes", "1.5", "is not a whole number"),
        ("serve_bytes", "", "is empty in a run that is ok"),
        ("coarse", "maybe", "is neither true nor false"),
        ("parts", "[1", "is not a JSON object"),
        ("seed", "", "is empty"),
        ("run", "full-0-full-0", "is there twice"),
    ],
)
def test_a_wrong_value_is_named(folder: Path, tmp_path: Path, column: str, value: str, told: str) -> None:
    raw = pd.read_csv(folder / RESULTS, dtype=str, keep_default_na=False)
    raw.loc[4, column] = value
    raw.to_csv(tmp_path / RESULTS, index=False)
    with pytest.raises(DataError, match=told) as caught:
        read_results(tmp_path / RESULTS)
    assert (caught.value.column, caught.value.row, caught.value.value) == (column, 5, value)


def test_a_missing_column_file_or_run_is_named(folder: Path, tmp_path: Path) -> None:
    raw = pd.read_csv(folder / RESULTS, dtype=str, keep_default_na=False)
    raw.drop(columns="serve_bytes").to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(DataError, match="the column is missing") as caught:
        read_results(tmp_path / "a.csv")
    assert caught.value.column == "serve_bytes"
    raw.head(0).to_csv(tmp_path / "b.csv", index=False)
    with pytest.raises(DataError, match="holds no run"):
        read_results(tmp_path / "b.csv")
    with pytest.raises(DataError, match="cannot be read"):
        read_results(tmp_path / "none.csv")
    (tmp_path / "c.csv").write_bytes(b"")
    with pytest.raises(DataError, match="cannot be read"):
        read_results(tmp_path / "c.csv")
    with pytest.raises(DataError, match="unknown column") as unknown:
        write_results(tmp_path / "d.csv", [{"auc": 1.0}])
    assert unknown.value.column == "auc"


def _write(folder: Path, **columns: list[float]) -> None:
    arrays = {"row": [0, 1], "label": [0, 1], "score": [0.2, 0.7], "bucket": [0, 3]} | columns
    write_predictions(folder, "r", **{name: np.array(values) for name, values in arrays.items()})


def test_predictions_come_back_in_row_order(tmp_path: Path) -> None:
    assert read_predictions(tmp_path, "r") is None
    _write(tmp_path, row=[5, 2])
    out = read_predictions(tmp_path, "r")
    assert out is not None
    assert out["row"].tolist() == [2, 5]
    assert out["score"].tolist() == [np.float32(0.7), np.float32(0.2)]
    assert {name: str(values.dtype) for name, values in out.items()} == {
        "row": "int64", "label": "int8", "score": "float32", "bucket": "int8",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("column", "values", "told"),
    [
        ("row", [1, 1], "twice"),
        ("label", [0, 2], "neither 0 nor 1"),
        ("score", [0.1, float("nan")], "not finite"),
        ("bucket", [0, 4], "none of 0 to 3"),
    ],
)
def test_wrong_predictions_are_named(tmp_path: Path, column: str, values: list[float], told: str) -> None:
    _write(tmp_path, **{column: values})
    with pytest.raises(DataError, match=told) as caught:
        read_predictions(tmp_path, "r")
    assert caught.value.column == column
    assert caught.value.file is not None
    assert caught.value.file.endswith("r.parquet")


def test_damaged_predictions_and_paths_out_of_the_folder_are_refused(tmp_path: Path) -> None:
    _write(tmp_path)
    path = predictions_path(tmp_path, "r")
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="cannot be read as predictions"):
        read_predictions(tmp_path, "r")
    for name in ("../r", "a/b", "", ".r"):
        with pytest.raises(DataError, match="plain name"):
            predictions_path(tmp_path, name)


def test_methods_are_named_by_what_the_user_chose(study: SimpleNamespace) -> None:
    rows = [
        ("unified", '{"chunks": 1, "unified": 300}', "0.5", 0, False, "unified (chunks 1)"),
        ("unified", '{"chunks": 1, "unified": 60}', "0.1", 0, False, "unified (chunks 1)"),
        ("unified", '{"chunks": 2, "tables": 1, "unified": 50}', "0.1", 0, False, "unified"),
        ("unified", '{"unified": 50}', "0.1", 0, True, "unified (tuned)"),
        ("hash", '{"hash_user": 3, "hash_item": 4}', "0.5", 0, False, "hash"),
        ("hash", '{"hash_user": 2, "hash_item": 1}', "0.1", 0, False, "hash"),
        ("mixed", '{"u*": {"name": "hash"}, "*": {"name": "unified", "chunks": 3, "tables": 1}, "rows": {"a": 1}}',
         "0.1", 0, False, "mixed"),
        ("unheard", '{"k": 1}', "0.1", 0, False, "unheard (k 1)"),
        ("unheard", '{"k": 2}', "0.1", 0, False, "unheard (k 2)"),
    ]  # fmt: skip
    names = ["strategy", "settings", "budget_requested", "seed", "tuned", "expected"]
    frame = pd.DataFrame(rows, columns=names)
    assert name_methods(frame).tolist() == frame["expected"].tolist()
    assert options_of("mixed", rows[6][1]) == "* unified chunks 3, u* hash"


def test_a_changed_number_is_said(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """CSV has no checksum of its own: a digit that flips is as good a number as any. A row may be gone on purpose."""
    write_results(folder / RESULTS, read_results(folder / RESULTS))
    text = (folder / RESULTS).read_text(encoding="utf-8")
    last = text.rstrip("\n").rindex("\n")
    for bad in (text.replace("0.7", "0.8", 1), text[: last + 1]):
        assert bad != text
        read_results(folder / RESULTS)
        assert not caplog.records
        (folder / RESULTS).write_text(bad, encoding="utf-8")
        read_results(folder / RESULTS)
        assert "has changed since it was written" in caplog.text
        (folder / RESULTS).write_text(text, encoding="utf-8")
        caplog.clear()


def test_changed_predictions_are_found(tmp_path: Path) -> None:
    """Written again by another hand, with the checksum of the file as it was."""
    path = write_predictions(
        tmp_path, "r", **{name: np.zeros(5) for name in ("row", "label", "score", "bucket")} | {"row": np.arange(5)}
    )
    table = pq.read_table(path)
    changed = table.set_column(2, "score", pa.array(np.full(5, 0.5, np.float32)))
    pq.write_table(changed.replace_schema_metadata(table.schema.metadata), path)
    with pytest.raises(DataError, match="have changed"):
        read_predictions(tmp_path, "r")
