"""What the name of a column says."""

from __future__ import annotations

import re


def words(name: str) -> list[str]:
    """The words of a name, in lower case: ``hoursPerWeek`` and ``hours-per-week`` have the same."""
    return [one for one in re.split(r"[^a-z0-9]+", re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()) if one]
