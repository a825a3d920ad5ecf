"""How the weights of a table are stored: single or half floats, or integers on a grid.

Low-precision training (LPT; Li et al., 2212.05735, section 3; compared in 2311.15578) keeps no float copy of the
weights. Rows are dequantised as they are read, and an update is rounded stochastically, so that updates smaller than
the distance of two stored values take effect on average. :mod:`recsys_embed.tables.rounding` has the arithmetic.

DIFF: a table's grid is centred on the middle of its initial weights, which is 1 for the factors of a product: around
0, 8 bits at a scale of 0.01 end at 1.27.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from recsys_embed.errors import ConfigError

StorageType = Literal["fp32", "fp16", "bf16", "int8", "int16"]
STORAGE_TYPES: tuple[StorageType, ...] = get_args(StorageType)

INT8_SCALE = 0.01
"""Of 2311.15578. With initial weights in ±0.05 a weight starts on one of 11 values, and can grow to ±1.27."""

_BYTES: dict[StorageType, int] = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1, "int16": 2}
_SCALES: dict[StorageType, float] = {"int8": INT8_SCALE, "int16": INT8_SCALE / 256}  # of one range


@dataclass(frozen=True)
class Storage:
    """The stored form of a table. An integer q stands for the weight ``q * scale + midpoint``; floats have neither.

    Raises:
        ConfigError: an unknown type, a scale that is not positive, or a scale or midpoint of floats.

    >>> Storage.of("int8"), Storage.of("int16", scale=0.001).centred(1.0)
    (Storage(dtype='int8', scale=0.01, midpoint=0.0), Storage(dtype='int16', scale=0.001, midpoint=1.0))
    """

    dtype: StorageType = "fp32"
    scale: float = 1.0
    midpoint: float = 0.0

    def __post_init__(self) -> None:
        if self.dtype not in STORAGE_TYPES:
            raise ConfigError(f"storage is one of {', '.join(STORAGE_TYPES)}; got {self.dtype!r}")
        if not (0 < self.scale < math.inf and math.isfinite(self.midpoint)):
            raise ConfigError(f"a scale is positive and a midpoint finite, got {self.scale} and {self.midpoint}")
        if not self.integer and (self.scale, self.midpoint) != (1.0, 0.0):
            raise ConfigError(f"a scale and a midpoint are for integers, and not for {self.dtype}")

    @classmethod
    def of(cls, dtype: StorageType, scale: float | None = None) -> Storage:
        """A storage around 0, with the type's own scale where none is given."""
        return cls(dtype, _SCALES.get(dtype, 1.0) if scale is None else scale)

    @property
    def integer(self) -> bool:
        """Whether integers are stored."""
        return self.dtype in _SCALES

    @property
    def bytes(self) -> int:
        """Bytes of a weight."""
        return _BYTES[self.dtype]

    @property
    def limits(self) -> tuple[int, int]:
        """The smallest and the largest stored integer; weights beyond them saturate."""
        half = 2 ** (8 * self.bytes - 1)
        return -half, half - 1

    def centred(self, midpoint: float) -> Storage:
        """The same around ``midpoint``; floats have no middle and stay."""
        return Storage(self.dtype, self.scale, midpoint) if self.integer else self


FP32 = Storage()
