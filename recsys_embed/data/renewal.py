"""What a night does to a vocabulary: who gets an id, who loses one, who waits."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Renewal:
    """The account of one vocabulary's night.

    Cardinalities, id 0 included: ``born`` when the model was first trained, ``before`` and ``after`` this night.
    Values: ``known`` had an id before; ``admitted`` got one; ``expired`` lost theirs, ``evicted`` of these to make
    room; ``forgotten`` were removed by request; ``pending`` wait, and ``dropped`` did until there were too many.

    ``reset [n]`` int64: the ids below ``before``, in rising order, whose row stands for another value now, or for none,
    and has to be as if it had never been seen.
    """

    vocabulary: str
    born: int
    before: int
    after: int
    admitted: int
    expired: int
    forgotten: int
    pending: int
    reset: np.ndarray = field(compare=False)
    known: int = 0
    evicted: int = 0
    dropped: int = 0
