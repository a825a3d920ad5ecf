"""Seeds by name."""

from __future__ import annotations

import hashlib


def seed_of(vocabulary: str, slot: int, hash_seed: int = 0) -> int:
    """The 64-bit seed of a vocabulary's slot (probe or chunk), as a wrapped signed integer.

    It depends on names and numbers only: not on the order of features, nor on the process.
    """
    text = f"{hash_seed}\x1f{slot}\x1f{vocabulary}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little", signed=True)
