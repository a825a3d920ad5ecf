"""Sealed files: a change is found, a crash between the two writes is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from recsys_embed import seals
from recsys_embed.seals import SUFFIX, intact, write_sealed


def test_what_was_written_is_read(tmp_path: Path) -> None:
    for text in ("a,b\n1,2\n", "naïve\n"):
        write_sealed(tmp_path / "x.csv", text)
        assert (tmp_path / "x.csv").read_bytes() == text.encode()
        assert intact(tmp_path / "x.csv")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.csv", "x.csv" + SUFFIX]


@pytest.mark.parametrize("bad", ["a,b\n1,3\n", "a,b\n", ""])
def test_a_change_is_found(tmp_path: Path, bad: str) -> None:
    write_sealed(tmp_path / "x.csv", "a,b\n1,2\n")
    (tmp_path / "x.csv").write_text(bad)
    assert not intact(tmp_path / "x.csv")
    (tmp_path / ("x.csv" + SUFFIX)).unlink()
    assert intact(tmp_path / "x.csv")


@pytest.mark.parametrize("writes", [1, 2])
def test_a_crash_between_the_writes_leaves_a_file_that_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    write_sealed(tmp_path / "x.csv", "old")
    done = []
    write = seals.atomic_write

    def crash(path: Path, data: bytes) -> None:
        if len(done) == writes:
            raise KeyboardInterrupt
        done.append(path)
        write(path, data)

    monkeypatch.setattr(seals, "atomic_write", crash)
    with pytest.raises(KeyboardInterrupt):
        write_sealed(tmp_path / "x.csv", "new")
    assert (tmp_path / "x.csv").read_bytes() == (b"old" if writes == 1 else b"new")
    assert intact(tmp_path / "x.csv")
