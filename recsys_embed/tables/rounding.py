"""The arithmetic of stored weights: dequantise, round to nearest, and add an update with stochastic rounding.

Scales and midpoints are float32, broadcastable to the weights: every row has those of its table. All of it is
elementwise, and gives the same bits for a row whichever batch, rank or back end it comes from.
"""

from __future__ import annotations

import torch
from torch import Tensor

from recsys_embed.hashing import mix
from recsys_embed.seeds import seed_of
from recsys_embed.storage import Storage

TORCH_TYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
    "int8": torch.int8,
    "int16": torch.int16,
}

_NOISE_BITS = 23
_NOISE_SLOT = -2  # initial weights and hashes have seeds of other slots
_FRACTION = {torch.float16: (10, -14), torch.bfloat16: (7, -126)}  # stored bits, and the least exponent


def is_integer(dtype: torch.dtype) -> bool:
    """Whether weights of this type are integers on a grid."""
    return not dtype.is_floating_point


def dequantise(stored: Tensor, scale: Tensor | float, midpoint: Tensor | float) -> Tensor:
    """The float32 weights that are stored. Halves are exact; what is float32 already is returned as it is."""
    weights = stored.to(torch.float32)
    return weights.mul_(scale).add_(midpoint) if is_integer(stored.dtype) else weights


def nearest(weights: Tensor, dtype: torch.dtype, scale: Tensor | float, midpoint: Tensor | float) -> Tensor:
    """The stored form of float32 weights: rounded to nearest (ties to even), integers and halves saturated.

    What :func:`dequantise` gave comes back as it was.
    """
    if is_integer(dtype):
        return _saturated(((weights - midpoint) / scale).round_(), dtype)
    return _saturated(weights, dtype) if dtype in _FRACTION else weights.to(dtype)


def add(stored: Tensor, change: Tensor, noise: Tensor, scale: Tensor | float) -> Tensor:
    """``stored`` plus the float32 ``change``, with stochastic rounding: right on average, wherever nothing saturates.

    ``noise`` is uniform in (0, 1), see :func:`noise_of`. Integers are moved by ``change / scale``, rounded: this
    is ``weight + change`` on the grid, as the weight lies on it, and no small change is lost in the sum.
    A change of zero moves nothing, whatever the noise.
    """
    if is_integer(stored.dtype):
        return _saturated(_rounded(change / scale, noise).add_(stored), stored.dtype)
    largest = torch.finfo(stored.dtype).max
    weights = stored.to(torch.float32).add_(change).clamp_(-largest, largest)
    unit = spacing(weights, stored.dtype)
    return _saturated(_rounded(weights / unit, noise).mul_(unit), stored.dtype)


def spacing(weights: Tensor, dtype: torch.dtype) -> Tensor:
    """The distance of neighbouring half floats around float32 weights: a power of two."""
    bits, least = _FRACTION[dtype]
    exponent = (torch.frexp(weights).exponent - 1).masked_fill_(weights == 0, least).clamp_(min=least)
    return ((exponent + 127) << 23).view(torch.float32) * 2.0**-bits  # exact, which a power need not be


def quantum(weights: Tensor, storage: Storage) -> Tensor:
    """The distance of neighbouring stored values around float32 weights; 0 for fp32, whose rounding is torch's own."""
    if storage.integer:
        return torch.full_like(weights, storage.scale)
    dtype = TORCH_TYPES[storage.dtype]
    return spacing(weights, dtype) if dtype in _FRACTION else torch.zeros_like(weights)


def noise_seed(table: str, seed: int) -> int:
    """The seed of a table's rounding noise."""
    return seed_of(table, _NOISE_SLOT, seed)


def noise_of(seeds: Tensor, rows: Tensor, width: int, step: int) -> Tensor:
    """Noise ``[n, width]``, uniform in (0, 1): a function of table, logical row, column and step, and nothing else.

    ``seeds`` are those of the rows' tables, ``rows`` their logical numbers; both ``[n]`` int64.
    """
    keys = mix(mix(seeds + step) + rows).unsqueeze(1)
    pairs = mix(keys + torch.arange((width + 1) // 2, device=rows.device))  # 64 bits are enough for two columns
    bits = pairs.view(torch.int32)[:, :width].bitwise_and(2**_NOISE_BITS - 1)
    # Odd multiples of 2^-24: never 0 and never 1, so that what is a stored value stays.
    return bits.to(torch.float32).add_(0.5).mul_(2.0**-_NOISE_BITS)


def _rounded(values: Tensor, noise: Tensor) -> Tensor:
    """Stochastically to whole numbers. Comparing fractions is exact; ``values + noise`` would itself be rounded."""
    whole = values.floor()
    return whole + (values - whole > noise)


def _saturated(values: Tensor, dtype: torch.dtype) -> Tensor:
    limits = torch.iinfo(dtype) if is_integer(dtype) else torch.finfo(dtype)
    return values.clamp(limits.min, limits.max).to(dtype)
