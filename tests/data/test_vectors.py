"""Files of vectors: what is in them, bit for bit, or an error with its place."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys_embed.data.readers import read_chunks
from recsys_embed.data.vectors import contents, read_vectors, width_of
from recsys_embed.errors import DataError

VALUES = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
IDS = ["a", "NA", "None", "007", 'é|,"\n']


def written(folder: Path, kind: str) -> Path:
    path = folder / f"vectors.{kind.split('-')[0]}"
    numbers = {f"v{i}": VALUES[:, i] for i in range(3)}
    if kind == "csv":
        pd.DataFrame({"id": IDS, "other": "x", **numbers}).to_csv(path, index=False)
    elif kind == "parquet-columns":
        pd.DataFrame({"other": 1, **numbers, "id": IDS}).to_parquet(path)
    else:
        kinds = {
            "list": pa.list_(pa.float32()),
            "large": pa.large_list(pa.float64()),
            "fixed": pa.list_(pa.float32(), 3),
        }
        vectors = pa.array(VALUES.tolist(), kinds[kind.removeprefix("parquet-")])
        pq.write_table(pa.table({"id": IDS, "vector": vectors}), path)
    return path


@pytest.mark.parametrize("kind", ["csv", "parquet-columns", "parquet-list", "parquet-large", "parquet-fixed"])
def test_vectors_come_back_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    path = written(tmp_path, kind)
    (whole,) = read_vectors(path)
    assert whole.ids.to_pylist() == IDS
    assert whole.values.dtype == np.float32
    np.testing.assert_array_equal(whole.values, VALUES)
    assert width_of(path) == 3
    monkeypatch.setattr("recsys_embed.data.vectors.read_chunks", partial(read_chunks, chunk_rows=2))
    blocks = list(read_vectors(path))
    assert [len(block.ids) for block in blocks] == [2, 2, 1]
    np.testing.assert_array_equal(np.concatenate([block.values for block in blocks]), VALUES)


def test_ids_are_read_as_those_of_the_data_are(tmp_path: Path) -> None:
    pd.DataFrame({"id": [2**62 + 1, 7], "v0": [1, 2]}).to_parquet(tmp_path / "v.parquet")
    (block,) = read_vectors(tmp_path / "v.parquet")
    assert block.ids.to_pylist() == [str(2**62 + 1), "7"]


BAD: list[tuple[dict[str, Any], int | None, object, str]] = [
    ({"id": ["a", None], "v0": [1.0, 2.0]}, 2, None, "an id is missing"),
    ({"id": ["a", "b"], "vector": [[1.0], [1.0, 2.0]]}, 2, 2, "another width than the first, 1"),
    ({"id": ["a", "b"], "vector": [[1.0, 2.0], None]}, 2, None, "a vector is missing"),
    ({"id": ["a", "b"], "vector": [[1.0], [float("nan")]]}, 2, math.nan, "no finite float32"),
    ({"id": ["a", "b"], "vector": [[1.0], [None]]}, 2, math.nan, "no finite float32"),
    ({"id": ["a", "b"], "vector": [[1.0], [1e39]]}, 2, math.inf, "no finite float32"),
    ({"id": ["a"], "vector": pa.array([[]], pa.list_(pa.float32()))}, 1, [], "a vector is empty"),
    ({"id": ["a"], "vector": [["1"]]}, None, None, "lists of numbers are expected"),
    ({"id": ["a"], "vector": [1.0]}, None, None, "lists of numbers are expected"),
    ({"id": ["a", "b"], "v0": [1.0, float("inf")]}, 2, float("inf"), "infinite number"),
    ({"id": ["a", "b"], "v0": ["1", "one"]}, 2, "one", "text in a numeric column"),
    ({"id": ["a", "b"], "v0": [1.0, 2.0], "v1": [1.0, None]}, 2, math.nan, "no finite float32"),
    ({"id": ["a"], "v0": [1.0], "v2": [1.0]}, None, None, "no such column"),
    ({"id": ["a"], "v0": [1.0], "vector": [[1.0]]}, None, None, "has 'vector' and 'v0'"),
    ({"id": ["a"], "w0": [1.0]}, None, None, "has neither, but id, w0"),
    ({"key": ["a"], "v0": [1.0]}, None, None, "no such column"),
]


@pytest.mark.parametrize(("columns", "row", "value", "told"), BAD, ids=lambda one: one if isinstance(one, str) else "")
def test_what_is_no_vector_is_named(
    tmp_path: Path, columns: dict[str, Any], row: int | None, value: object, told: str
) -> None:
    path = tmp_path / "v.parquet"
    pq.write_table(pa.table(columns), path)
    with pytest.raises(DataError, match=told) as caught:
        list(read_vectors(path))
    found = caught.value.value
    assert (caught.value.file, caught.value.row, repr(found)) == (str(path), row, repr(value))  # nan is not nan


def test_a_file_that_is_not_there_or_empty(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        list(read_vectors(tmp_path / "none.parquet"))
    with pytest.raises(DataError, match="cannot be read"):
        contents({"item": str(tmp_path / "none.parquet")})
    (tmp_path / "v.csv").write_text("id,v0\n")
    with pytest.raises(DataError, match="holds no vector"):
        width_of(tmp_path / "v.csv")


def test_contents_are_told_by_bytes_alone(tmp_path: Path) -> None:
    for name, text in (("a", "id,v0\nx,1\n"), ("b", "id,v0\nx,1\n"), ("c", "id,v0\nx,2\n")):
        (tmp_path / name).write_text(text)
    one, same, other = (contents({"item": str(tmp_path / name)})["item"] for name in "abc")
    assert one == same != other
    (tmp_path / "a").write_text("id,v0\nx,3.5\n")
    assert contents({"item": str(tmp_path / "a")})["item"] not in (one, other)
