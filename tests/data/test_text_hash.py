"""Hashes of text: frozen answers, and a slow computation by Python's integers."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recsys_embed.data.text_hash import hash_text

ALL = 2**64 - 1


def mix(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & ALL
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & ALL
    return z ^ (z >> 31)


def slow(value: str, seed: int) -> int:
    data = value.encode()
    hashed = mix((seed + len(data) * 0x9E3779B97F4A7C15) & ALL)
    for begin in range(0, len(data), 8):
        hashed = mix(hashed ^ int.from_bytes(data[begin : begin + 8], "little"))
    return hashed


@pytest.mark.parametrize(
    ("value", "seed", "answer"),
    [
        ("", 0, 0),
        ("", 1, 6238072747940578789),
        ("a", 0, 3764562023654139118),
        ("abcdefgh", 0, 18394646846467347610),
        ("abcdefghi", 1, 17195235453470750517),
        ("Zürich", 0, 726522780020754891),
    ],
)
def test_known_answers(value: str, seed: int, answer: int) -> None:
    """Frozen: ids of hashed features, and splits by group, depend on them."""
    assert hash_text(pa.array([value]), seed).tolist() == [answer]


@given(
    st.lists(st.none() | st.text(max_size=30), max_size=40),
    st.integers(0, 2**64 - 1),
    st.integers(0, 40),
    st.sampled_from([pa.string(), pa.large_string()]),
)
def test_equals_the_slow_computation(values: list[str | None], seed: int, first: int, kind: pa.DataType) -> None:
    part = pa.array(values, kind).slice(min(first, len(values)))
    assert hash_text(part, seed).tolist() == [slow(value or "", seed) for value in part.to_pylist()]


def test_a_long_value_among_short_ones() -> None:
    values = ["x" * 100_003, "y", *(str(i) for i in range(70_000))]  # more than are hashed at once
    hashed = hash_text(pa.array(values), 3)
    assert hashed[[0, 1, -1]].tolist() == [slow(values[i], 3) for i in (0, 1, -1)]
    assert len(set(hashed.tolist())) == len(values)
