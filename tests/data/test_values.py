"""Cells to text and numbers: nothing is guessed, nothing is lost."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_embed.data.values import CellError, canonical, column_of, to_numbers, to_text


@pytest.mark.parametrize(
    ("cells", "text"),
    [
        (
            ["NA", "None", "null", "nan", "N/A", "1", "01", "1.0", " ", ""],
            ["NA", "None", "null", "nan", "N/A", "1", "01", "1.0", " ", None],
        ),
        (
            [123456789012345678, 9007199254740993, -1, 2**63 - 1],
            ["123456789012345678", "9007199254740993", "-1", "9223372036854775807"],
        ),
        ([1.0, None, 3.0, -0.0, 123456789012345.0], ["1", None, "3", "0", "123456789012345"]),
        ([0.1, 2.5, 1e-7, float("inf")], ["0.1", "2.5", "1e-7", "inf"]),
        ([True, False, None], ["true", "false", None]),
    ],
)
def test_text_of_typed_columns(cells: list[object], text: list[str | None]) -> None:
    assert to_text(pa.array(cells)).to_pylist() == text
    assert to_text(column_of(pd.Series(cells, dtype=object))).to_pylist() == text


def test_pandas_missing_values_and_mixed_columns() -> None:
    mixed = pd.Series(["a", 1, 2.0, 2.5, True, None, float("nan"), pd.NA, pd.NaT, 10**30, ""], dtype=object)
    expected = ["a", "1", "2", "2.5", "true", None, None, None, None, str(10**30), None]
    assert to_text(column_of(mixed)).to_pylist() == expected
    assert to_text(column_of(pd.Series(["x", None, "x"], dtype="category"))).to_pylist() == ["x", None, "x"]
    assert to_text(column_of(pd.Series([2**53 + 1, None], dtype="Int64"))).to_pylist() == [str(2**53 + 1), None]


def test_floats_that_may_have_lost_digits_are_refused() -> None:
    with pytest.raises(CellError, match=r"2\*\*53") as caught:
        to_text(pa.array([1.0, float(2**53)]))
    assert caught.value.index == 1


def test_nested_cells_are_refused() -> None:
    with pytest.raises(CellError, match="one value a cell"):
        to_text(pa.array([["a"], ["b"]]))
    with pytest.raises(CellError, match="one value a cell"):
        column_of(pd.Series(["a", ["b"], 1], dtype=object))


@given(st.lists(st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False)), min_size=1))
def test_numbers_as_text_read_back_exactly(numbers: list[float | None]) -> None:
    typed = to_numbers(pa.array(numbers, pa.float64()))
    text = to_numbers(pa.array([None if x is None else repr(x) for x in numbers], pa.string()))
    np.testing.assert_array_equal(typed, text)
    np.testing.assert_array_equal(typed, np.array([math.nan if x is None else x for x in numbers]))


@pytest.mark.parametrize("bad", ["abc", "NA", "1,5", "0x10", "1_0", "inf", "-infinity"])
@pytest.mark.parametrize("index", [0, 7, 99])
def test_the_first_bad_number_is_found(bad: str, index: int) -> None:
    cells = [" 1.5 "] * 100
    cells[index] = bad
    with pytest.raises(CellError) as caught:
        to_numbers(pa.array(cells))
    assert (caught.value.index, caught.value.value) == (index, bad)


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
def test_bytes_that_a_frame_calls_text_are_refused(kind: pa.DataType) -> None:
    wrong = pa.array([b"a", b"\xff", None], pa.binary() if kind == pa.string() else pa.large_binary()).view(kind)
    with pytest.raises(CellError, match="is not UTF-8") as caught:
        to_text(column_of(pd.Series(pd.arrays.ArrowExtensionArray(wrong))))
    assert (caught.value.index, caught.value.value) == (1, b"\xff")


@pytest.mark.parametrize("odd", [None, " 2 ", "\u00a02"])
def test_blanks_around_numbers_mean_nothing(odd: str | None) -> None:
    assert to_numbers(pa.array(["1", odd, "3"])).tolist()[::2] == [1.0, 3.0]
    assert np.array_equal(to_numbers(pa.array([odd])), [math.nan if odd is None else 2.0], equal_nan=True)


def test_labels_compare_as_values() -> None:
    assert {canonical(x) for x in (4, "4", "4.0", 4.0, " 4")} == {"4"}
    assert [canonical(x) for x in (True, "TRUE", "false", "1e0", "nan", "01a", "4.5")] == [
        "1",
        "1",
        "0",
        "1",
        "nan",
        "01a",
        "4.5",
    ]
