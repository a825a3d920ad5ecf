"""The compiled kernels: where they are, whether they fit, and which instruction set they run.

They are loaded by ctypes, which releases the GIL for the time of a call.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import POINTER, c_float, c_int64, c_void_p
from functools import cache
from pathlib import Path

OVERRIDE = "RECSYS_EMBED_KERNELS"
"""An environment variable: the path of the kernels to load instead of those that were built with the package."""

ABI = 7
"""Of the signatures below; interface.h has the same number."""

LEVELS = ("baseline", "AVX2", "AVX-512")

ALONE = (1, 1, 0)
"""The slots of vectors that are rows; see :class:`Slots`."""


class Request(ctypes.Structure):
    """What is asked for, as interface.h has it."""

    _fields_ = (
        *((name, c_void_p) for name in ("weights", "starts", "sizes", "scales", "midpoints")),
        *((name, c_int64) for name in ("lanes", "batch", "width")),
        ("rows", c_void_p),
        *((name, c_int64) for name in ("wide", "count")),
        *((name, c_void_p) for name in ("offsets", "factors")),
    )


class Slots(ctypes.Structure):
    """Which lanes become one vector, as interface.h has it."""

    _fields_ = tuple((name, c_int64) for name in ("number", "apart", "products"))


class Source(ctypes.Structure):
    """Ids of which a read makes row numbers, as interface.h has it."""

    _fields_ = (
        ("ids", c_void_p),
        *((name, c_int64) for name in ("wide", "count", "step", "numbering")),
        ("constants", c_void_p),
        *((name, c_int64) for name in ("features", "slots")),
    )


class Address(ctypes.Structure):
    """Ids, and the constants that make row numbers of them, as interface.h has it."""

    _fields_ = (
        ("ids", c_void_p),
        ("wide", c_int64),
        ("digits", c_int64),
        ("constants", c_void_p * 2),
        ("rows", c_void_p),
        ("sizes", c_int64 * 3),
        ("strides", c_int64 * 3),
        ("constant_strides", c_int64 * 6),
    )


class Combination(ctypes.Structure):
    """Rows of several slots that become vectors, as interface.h has it."""

    _fields_ = (
        *((name, c_void_p) for name in ("slots", "gradient", "out")),
        *((name, c_int64) for name in ("products", "count", "width", "number")),
    )


class Pairs(ctypes.Structure):
    """Vectors of which all pairs are multiplied, as interface.h has it."""

    _fields_ = (
        *((name, c_void_p) for name in ("first", "others", "out")),
        *((name, c_int64) for name in ("batch", "count", "width", "step")),
    )


class PairsGradient(ctypes.Structure):
    """What their gradients are made of, and where they go, as interface.h has it."""

    _fields_ = tuple((name, c_void_p) for name in ("gradient", "of_first", "of_others"))


class Library:
    """The functions of one compiled file.

    Raises:
        OSError: it cannot be loaded.
        ImportError: it was built from other sources than these.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        functions = ctypes.CDLL(str(path))
        if functions.recsys_embed_abi() != ABI:
            raise ImportError(f"{path} was built from other sources: build it again")
        self.read = functions.recsys_embed_read
        self.update = functions.recsys_embed_update
        for function in (functions.recsys_embed_level, self.read, self.update):
            function.restype = c_int64
        asked = (c_int64, c_int64, c_int64, POINTER(Request), POINTER(Slots))
        self.read.argtypes = [*asked, POINTER(Source), c_int64, c_void_p, c_int64, c_int64, c_void_p, c_int64]
        self.update.argtypes = [
            *(*asked, c_void_p, c_void_p, c_void_p, c_void_p),
            *(c_int64, c_float, c_float, c_float, c_float, c_int64, c_void_p, c_void_p, c_void_p, c_int64),
        ]
        self.address = functions.recsys_embed_address
        self.address.restype = None
        self.address.argtypes = [c_int64, c_int64, POINTER(Address)]
        self.first_outside = functions.recsys_embed_first_outside
        self.first_outside.restype = c_int64
        self.first_outside.argtypes = [c_int64, c_int64, c_void_p, *(c_int64,) * 4, c_void_p, c_void_p]
        self.combine = functions.recsys_embed_combine
        self.combine.restype = None
        self.combine.argtypes = [c_int64, c_int64, POINTER(Combination)]
        self.pairs = functions.recsys_embed_pairs
        self.pairs.restype = c_int64
        self.pairs.argtypes = [c_int64, c_int64, POINTER(Pairs), POINTER(PairsGradient)]
        self.best_level: int = functions.recsys_embed_level()
        self.level = self.best_level

    @property
    def instructions(self) -> str:
        """The instruction set that runs."""
        return LEVELS[self.level]


@cache
def load() -> Library | str:
    """The library, or why there is none."""
    path = find()
    if path is None:
        return "its kernels were not built: there was no C++ compiler"
    try:
        return Library(path)
    except (OSError, ImportError, AttributeError) as error:
        return f"its kernels cannot be loaded: {error}"


def find() -> Path | None:
    """The compiled file, if there is one."""
    if OVERRIDE in os.environ:
        return Path(os.environ[OVERRIDE])
    built = Path(__file__).parent.glob("_kernels.*")  # of several Pythons, which all can load it
    return max(built, key=lambda path: path.stat().st_mtime, default=None)
