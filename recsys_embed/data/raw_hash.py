"""From a feature's values to ids without a vocabulary: 63 bits of a seeded hash of the text."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from recsys_embed.data.text_hash import hash_text
from recsys_embed.features import HASHED_IDS
from recsys_embed.seeds import seed_of


@dataclass(frozen=True)
class RawHash:
    """Ids in ``[1, HASHED_IDS)``, the upper 63 bits of :func:`hash_text`; 0 stands for what is missing, and for nothing
    else. Of n values two share an id with a chance of about n² / 2⁶⁴.

    The two hashes that 0 and the end of the range take from others go to their neighbours.
    """

    seed: int

    @classmethod
    def of(cls, vocabulary: str, hash_seed: int) -> RawHash:
        """That of a vocabulary: names that differ hash independently."""
        return cls(seed_of(f"raw\x1f{vocabulary}", 0, hash_seed))

    def encode(self, values: pa.Array) -> np.ndarray:
        """Ids ``[rows]`` int64 of strings; 0 for null."""
        cells = values.dictionary_encode()  # most columns repeat themselves, and hashing is dearer than this
        ids = np.append(self.ids(cells.dictionary), 0)
        return np.asarray(ids[cells.indices.fill_null(len(ids) - 1).to_numpy(zero_copy_only=False)])

    def ids(self, words: pa.Array) -> np.ndarray:
        """Ids ``[n]`` int64 of strings, of which none is null."""
        return np.clip((hash_text(words, self.seed) >> np.uint64(1)).view(np.int64), 1, HASHED_IDS - 1)
