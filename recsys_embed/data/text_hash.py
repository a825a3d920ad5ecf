"""64-bit hashes of text, column by column.

Of a value of n bytes in UTF-8, padded with zeros to words w_1, w_2, … of 8 bytes, little-endian:

    h = mix(seed + n * GOLDEN);  h = mix(h ^ w_1);  h = mix(h ^ w_2);  …

in unsigned 64-bit arithmetic, ``mix`` being that of :mod:`recsys_embed.hashing`. Each step is a bijection of ``h ^ w``.
Seeded, the same in every process and on every machine, and frozen by a table of known answers in the tests: ids of
hashed features depend on it.
"""

from __future__ import annotations

import struct

import numpy as np
import pyarrow as pa

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
FEW = 8
"""So many values are sooner hashed one by one, by Python's integers, than by numpy."""
_ALL = 2**64 - 1
_BLOCK = 1 << 16  # values at once, so that what is being mixed stays in the cache


def mix64(z: np.ndarray) -> np.ndarray:
    """64 well-mixed bits of each ``uint64``; a bijection."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))


def hash_text(values: pa.Array, seed: int = 0) -> np.ndarray:
    """Hashes of strings, ``[n]`` uint64; of a null, that of the empty string."""
    if len(values) <= FEW:
        return np.array([hash_one(value or "", seed) for value in values.to_pylist()], np.uint64)
    wide = pa.types.is_large_string(values.type)
    _, places, bytes_ = values.buffers()
    whole = np.frombuffer(places, np.int64 if wide else np.int32)
    offsets = whole[values.offset : values.offset + len(values) + 1].astype(np.int64)
    lengths = np.diff(offsets)
    if values.null_count:
        lengths = np.where(values.is_valid().to_numpy(zero_copy_only=False), lengths, 0)
    out = np.empty(len(values), np.uint64)
    for begin in range(0, len(values), _BLOCK):
        part = slice(begin, min(begin + _BLOCK, len(values)))
        out[part] = _block(bytes_, offsets[begin], offsets[part.stop], offsets[part], lengths[part], seed)
    return out


def hash_one(value: str, seed: int = 0) -> int:
    """The hash of one string."""
    text = value.encode()
    return _finished(_mixed((seed + len(text) * int(GOLDEN)) & _ALL), text)


def _block(
    bytes_: pa.Buffer | None, first: int, last: int, starts: np.ndarray, lengths: np.ndarray, seed: int
) -> np.ndarray:
    padded = np.zeros(last - first + 8, np.uint8)
    if bytes_ is not None and last > first:
        padded[: last - first] = np.frombuffer(bytes_, np.uint8, last - first, first)
    words = np.ndarray(last - first + 1, np.dtype("<u8"), padded.data, strides=(1,))  # the word at every byte
    starts = starts - first
    hashed = mix64(np.uint64(seed % 2**64) + lengths.astype(np.uint64) * GOLDEN)
    rows = np.flatnonzero(lengths)
    done = 0
    while len(rows) > FEW:
        left = np.minimum(lengths[rows] - done, 8).astype(np.uint64)
        kept = np.uint64(2**64 - 1) >> (np.uint64(64) - np.uint64(8) * left)
        hashed[rows] = mix64(hashed[rows] ^ (words[starts[rows] + done] & kept))
        done += 8
        rows = rows[lengths[rows] > done]
    for row in rows.tolist():  # a few values much longer than the others
        hashed[row] = _finished(int(hashed[row]), padded[starts[row] + done : starts[row] + lengths[row]].tobytes())
    return hashed


def _finished(hashed: int, rest: bytes) -> int:
    for (word,) in struct.iter_unpack("<Q", rest + bytes(-len(rest) % 8)):
        hashed = _mixed(hashed ^ word)
    return hashed


def _mixed(z: int) -> int:
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _ALL
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _ALL
    return z ^ (z >> 31)
