"""What a search prefers: the front of its trials, and the winner of its finds; for the search and for its page."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, TypeVar

from recsys_embed.search.contenders import METHODS

T = TypeVar("T")


def find_name(method: str, trial: int, *, several: bool) -> str:
    """What a find is called: its method, with its trial where a method may have several finds.

    >>> find_name("optuna", 3, several=True)
    'optuna, trial 3'
    """
    return f"{method}, trial {trial}" if several else method


def method_of(find: str) -> str:
    """The method in the name of a find."""
    return re.sub(r", trial \d+$", "", find)


def place_of(find: str) -> tuple[int, int, str]:
    """Where a find stands in a list: in the order of the methods, then of their trials."""
    method = method_of(find)
    return METHODS.index(method) if method in METHODS else len(METHODS), len(find), find


def front(best_first: Iterable[T], size: Callable[[T], float]) -> list[T]:
    """Those of which none other has both fewer bytes and a higher AUC, from the highest AUC down.

    Args:
        best_first: in the order of their AUC; of equals the smaller first.
        size: bytes of one.
    """
    kept: list[T] = []
    for one in best_first:
        if not kept or size(one) < size(kept[-1]):
            kept.append(one)
    return kept


def winner(runs: Sequence[Mapping[str, Any]], budget_bytes: float) -> str | None:
    """Of the finds that are within the budget and ended well with all seeds, the one with the best mean validation AUC;
    of equals the smaller one, then the one of the simpler method.

    Args:
        runs: rows of ``results.csv``, in any order.
    """
    found: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        found.setdefault(str(run["found_by"]), []).append(run)
    fit = {
        name: (fmean(run["val_auc"] for run in mine), fmean(run["serve_bytes"] for run in mine))
        for name, mine in found.items()
        if name and all(run["status"] == "ok" and run["serve_bytes"] <= budget_bytes for run in mine)
    }
    known = [name for name, (auc, _) in fit.items() if not math.isnan(auc)]
    return min(known, key=lambda name: (-fit[name][0], fit[name][1], place_of(name))) if known else None
