"""Whether the cells of a column hold several values, and what parts them.

A guess that is easily talked out of it: prose, names, numbers with thousands separators and pairs such as "city, state"
have separators too.
"""

from __future__ import annotations

import re

import numpy as np
import pyarrow as pa

_MOST = 20_000  # different cells that are looked at
_OFTEN = 0.1  # of the cells have the separator
_STRONG, _WEAK = ("|", ";"), (", ", ",", " ")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})*(\.\d+)?")
_OPENING = "[{(<\"'"


def separator_in(cells: pa.Array) -> str | None:
    """The separator of a column's cells ``[rows]``, by the values that its parts have in common; None if single."""
    different = cells.drop_null().unique().slice(0, _MOST).to_pylist()
    if not different or any(cell[0] in _OPENING for cell in different):
        return None
    return next((one for one in (*_STRONG, *_WEAK) if _parts(different, one)), None)


def _parts(cells: list[str], separator: str) -> bool:
    """Whether cutting gives values that come back in other combinations.

    ``|`` and ``;`` are rare inside values. With others, cells have to be of several lengths, the parts have to recur
    often, and blanks have to part what has digits.
    """
    if sum(separator in cell for cell in cells) < _OFTEN * len(cells):
        return False
    cut = [cell.split(separator) for cell in cells]
    lengths = np.array([len(parts) for parts in cut])
    parts = [part for one in cut for part in one if part]
    different = set(parts)
    if any(part != part.strip() for part in different):
        return False
    if separator in _STRONG:
        return len(different) < len(cells)
    if separator == "," and all(_THOUSANDS.fullmatch(cell) for cell in cells):
        return False
    if separator == " " and not all(any(letter.isdigit() for letter in part) for part in different):
        return False
    inner = separator == ", " or not any(" " in part for part in different)
    varied = len(set(lengths.tolist())) >= 3 and lengths.max() >= 3
    return inner and varied and 2 * len(different) <= len(cells) and 3 * len(different) <= len(parts)
