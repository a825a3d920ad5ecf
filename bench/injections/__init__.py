"""Faults to inject, one file a row of the reliability table; each has ``inject(scale, folder) -> Tally``."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import cast

from bench.injections.tally import Scale, Tally

ROWS = {
    "F1": ("kill_in_save", "a save never destroys the last good state"),
    "F2": ("rank_in_save", "nor does a rank that dies in its write"),
    "F3": ("disk_full", "a full disk is survived"),
    "F4": ("truncation", "truncation is detected"),
    "F5": ("bit_flips", "corruption is detected"),
    "F6": ("exact_resume", "a resumed run equals one that never stopped"),
    "F7": ("signals", "SIGTERM and Ctrl-C end a run gracefully"),
    "F8": ("not_finite", "NaN and inf never reach the disk"),
    "F9": ("rank_death", "the death of a rank is noticed"),
    "F10": ("reshard", "a state moves between numbers of ranks"),
    "F11": ("search_kills", "a killed worker loses no trial of a search"),
    "F12": ("search_storage", "damage to what trials are kept in costs none"),
    "F13": ("mlflow_down", "a dead MLflow server costs nothing"),
    "F14": ("bad_ids", "bad ids are named, or read as the unseen id"),
    "F15": ("bad_data", "bad data is named, or skipped and counted"),
    "F16": ("no_leakage", "what is held out teaches nothing"),
    "F17": ("hash_quality", "hashes spread structured and hostile ids"),
    "F18": ("code_execution", "no artifact runs code or escapes its folder"),
    "F19": ("properties", "strategies equal an oracle; parsers raise our errors alone"),
    "F20": ("determinism", "one seed gives the same bits"),
    "F21": ("resources", "training again and again leaks nothing"),
}
"""Each row's module and promise."""


def injection(row: str) -> Callable[[Scale, Path], Tally]:
    """The function of a row.

    Raises:
        KeyError: no such row.
    """
    module = importlib.import_module(f"bench.injections.{ROWS[row][0]}")
    return cast(Callable[[Scale, Path], Tally], module.inject)
