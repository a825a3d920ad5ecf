"""Files that say themselves when they have changed, for formats without a checksum of their own.

Beside ``results.csv`` lies ``results.csv.xxh3``, the checksum of its bytes. A file without a seal is a user's own. One
that has changed since may be damaged, or edited on purpose: whoever reads it says so, and goes on.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import xxhash

from recsys_embed.files import atomic_write

SUFFIX = ".xxh3"


def write_sealed(path: str | Path, text: str) -> None:
    """Write a text file and its seal, so that after a crash the file is the old or the new one, and fits its seal.

    Raises:
        CheckpointError: the disk refused; names the path.
    """
    target, data = Path(path), text.encode("utf-8")
    seals = [_checksum(data)]
    with contextlib.suppress(OSError):
        seals.append(_checksum(target.read_bytes()))  # between the two writes the old file is there
    _write_seal(target, seals)
    atomic_write(target, data)
    _write_seal(target, seals[:1])


def intact(path: str | Path) -> bool:
    """Whether a file is as it was written; also where it has no seal.

    Raises:
        OSError: the file cannot be read.
    """
    target = Path(path)
    data = target.read_bytes()
    try:
        seals = _seal(target).read_bytes().split()
    except FileNotFoundError:
        return True
    return _checksum(data).encode() in seals


def _seal(path: Path) -> Path:
    return path.with_name(path.name + SUFFIX)


def _write_seal(path: Path, seals: list[str]) -> None:
    atomic_write(_seal(path), "\n".join(seals) + "\n")


def _checksum(data: bytes) -> str:
    return xxhash.xxh3_64_hexdigest(data)
