from __future__ import annotations

import pytest

from recsys_embed.report.sizes import format_bytes


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (20_480, "20.5 kB"),
        (999_999, "1 MB"),
        (64e9, "64 GB"),
        (5e15, "5e+03 TB"),
    ],
)
def test_bytes_are_readable(size: float, text: str) -> None:
    assert format_bytes(size) == text
