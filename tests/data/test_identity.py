"""Encode and decode: every value is found again, and two values are never one."""

from __future__ import annotations

import csv
import io
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recsys_embed.config import DataConfig
from recsys_embed.data import Encoder, prepare
from recsys_embed.data.values import column_of, to_text
from recsys_embed.data.vocabulary import Vocabulary

TEXT = st.text(st.characters(codec="utf-8"), max_size=12) | st.sampled_from(
    [
        "NA",
        "nan",
        "None",
        "null",
        "\0",
        "a\0",
        "a",
        '"',
        ",",
        "\n",
        "\r\n",
        "\x1e",
        "\x1f",
        "e\u0301",
        "é",
        "\ufdd0",
        "\ufeff",
    ]
)


def known(values: pa.Array) -> Vocabulary:
    """The vocabulary of these values."""
    counted = pc.value_counts(values.drop_null())
    table = pa.table({"value": counted.field("values").cast(pa.large_string()), "count": counted.field("counts")})
    return Vocabulary.of([table], values.null_count)


def decode(vocabulary: Vocabulary, ids: np.ndarray) -> list[str | None]:
    words = [None, *vocabulary.values.to_pylist()]
    return [words[i] for i in ids]


def same_again(cells: list[Any]) -> list[str | None]:
    """A column of a data frame, encoded and decoded; checks that equal ids are equal texts."""
    text = to_text(column_of(pd.Series(cells, dtype=object)))
    vocabulary = known(text)
    found = decode(vocabulary, vocabulary.encode(text))
    assert found == text.to_pylist()
    assert vocabulary.cardinality == len({*found} - {None}) + 1
    return found


@given(st.lists(TEXT, max_size=30))
def test_text(cells: list[str]) -> None:
    assert same_again(cells) == [cell or None for cell in cells]


@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(-(2**70), 2**70) | st.integers(2**53, 2**53 + 9), max_size=30))
def test_integers(cells: list[int]) -> None:
    assert same_again(list(cells)) == [str(cell) for cell in cells]


@pytest.mark.parametrize(
    ("kind", "least", "most"), [("int8", -(2**7), 2**7 - 1), ("int64", -(2**63), 2**63 - 1), ("uint64", 0, 2**64 - 1)]
)
@given(data=st.data())
def test_typed_integers_beside_nulls(kind: str, least: int, most: int, data: st.DataObject) -> None:
    cells = data.draw(st.lists(st.none() | st.integers(least, most), max_size=20))
    text = to_text(pa.array(cells, kind))
    vocabulary = known(text)
    assert decode(vocabulary, vocabulary.encode(text)) == [None if cell is None else str(cell) for cell in cells]


@given(st.lists(st.floats(-(2.0**53) + 1, 2.0**53 - 1, allow_nan=False), max_size=30), st.sampled_from([32, 64]))
def test_floats(cells: list[float], bits: int) -> None:
    """The text reads back as the same float, and is the same for the same float."""
    kind = np.float32 if bits == 32 else np.float64
    numbers = np.array([x for x in np.array(cells, kind) if bits == 64 or abs(x) < 2**24], kind)
    text = to_text(pa.array(numbers))
    vocabulary = known(text)
    found = decode(vocabulary, vocabulary.encode(text))
    assert [kind(x) for x in found if x is not None] == numbers.tolist()
    assert vocabulary.cardinality == len({*numbers.tolist()}) + 1


MIXED = st.none() | st.booleans() | TEXT | st.integers(0, 2**64 - 1) | st.floats(-1e9, 1e9)


@given(st.lists(MIXED, max_size=30))
def test_mixed_types(cells: list[object]) -> None:
    def text(cell: object) -> str | None:
        if isinstance(cell, bool):
            return str(cell).lower()
        if isinstance(cell, float):
            return to_text(pa.array([cell]))[0].as_py()  # test_floats
        return None if cell in (None, "") else str(cell)

    assert same_again(cells) == [text(cell) for cell in cells]


def test_text_of_a_million_characters() -> None:
    cells = ["😀" * 10**6, "x" * 10**6, "x" * 10**6 + "y"]
    assert same_again(list(cells)) == cells


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=12)
@given(st.lists(TEXT.filter(bool), min_size=1, max_size=10), st.sampled_from(["csv", "quoted", "parquet", "frame"]))
def test_through_a_data_set_and_a_saved_encoder(
    tmp_path_factory: pytest.TempPathFactory, cells: list[str], kind: str
) -> None:
    folder = tmp_path_factory.mktemp("identity")
    frame = pd.DataFrame({"x": cells * 6, "y": ["1"] * 3 * len(cells) + ["0"] * 3 * len(cells)}, dtype=object)
    frame["part"] = [split for split in ("train", "val", "test") for _ in cells] * 2
    source: Any = folder / f"rows.{'parquet' if kind == 'parquet' else 'csv'}"
    if kind == "frame":
        source = None
    elif kind == "parquet":
        frame.to_parquet(source)
    else:
        out = io.StringIO()
        writer = csv.writer(out, quoting=csv.QUOTE_ALL if kind == "quoted" else csv.QUOTE_MINIMAL)
        writer.writerows([list(frame.columns), *frame.to_numpy().tolist()])
        source.write_bytes(out.getvalue().encode())
    schema = {"label": "y", "categorical": ["x"], "split": {"column": "part"}}
    if source is None:
        dataset = prepare(frame, schema, folder / "out")
    else:
        dataset = prepare(DataConfig.model_validate({"path": str(source), **schema}), folder / "out")
    dataset.encoder.save(folder / "encoder")
    for encoder in (dataset.encoder, Encoder.load(folder / "encoder")):
        for split in ("train", "val", "test"):
            ids = dataset.columns(split).ids[0]
            assert isinstance(ids, np.ndarray)
            assert decode(encoder.vocabularies["x"], ids) == cells * 2
        assert decode(encoder.vocabularies["x"], encoder.encode(frame).ids.values[0].numpy()) == cells * 6
