"""How the numbers came to be."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from recsys_embed.report.sizes import format_bytes
from recsys_embed.report.summary import Section
from recsys_embed.report.tables.words import PERCENT, grouped, percent, plural


def protocol(section: Section) -> list[tuple[str, str]]:
    """How the numbers came to be, as terms with their explanations."""
    told = _first_json(section.runs["protocol"])
    training = _table(told.pop("training", {}))
    optimizer = _table(training.pop("optimizer", {}))
    rows = _table(told.pop("rows", {}))
    hashed = _table(told.pop("hashed", {}))
    facts: list[tuple[str, str]] = []
    if rows:
        facts.append(("Rows", ", ".join(f"{name} {grouped(count)}" for name, count in rows.items())))
    facts += [("Left out", text) for text in told.pop("left_out", [])]
    if unseen := _table(told.pop("unseen", {})):
        facts.append(("Without an id", _unseen(unseen)))
    for name in ("split", "model"):
        if name in told:
            facts.append((name.capitalize(), _flat(told.pop(name))))
    if "weight" in told:
        facts.append(("Sample weights", f"column {told.pop('weight')}{_WEIGHTS}"))
    if "negative_rate" in told:
        facts.append(("Negatives", f"kept with probability {told.pop('negative_rate')}{_SAMPLED}"))
    if optimizer:
        facts.append(("Optimizer", _flat(optimizer)))
    if training:
        facts.append(("Training", _flat(training)))
    facts += [(name.capitalize(), _flat(value)) for name, value in told.items()]
    seeds = ", ".join(str(seed) for seed in sorted(set(section.runs["seed"])))
    facts.append(("Seeds", f"{seeds}; every number is the mean over them, ± the sample standard deviation"))
    facts.append(("Tuning", "equal: the same trials for every strategy and full, above" if section.tuned else _UNTUNED))
    facts += [
        ("Selection", "The best epoch is chosen on validation. The test split is read once, after training."),
        ("Bytes", _BYTES + ("" if hashed else _SHARES) + _COARSE + _beside(section)),
        ("Head to unseen", _HEAD),
    ]
    if hashed:
        facts.append(("Not measured", _not_measured(hashed)))
    if section.draws:
        facts.append(("Intervals", _intervals(section)))
        facts.append(("Many comparisons", _many(section)))
    facts.append(("Speed", "As met while training; a run that was reused keeps what it took when it was trained."))
    return facts


def rows_left_out(section: Section) -> bool:
    """Whether rows of the input are missing from the data set."""
    return "left_out" in _first_json(section.runs["protocol"])


_UNTUNED = "none: every strategy ran under the settings above, which may suit one better than another"
_SHOWN, _LEAST = 8, 0.0005
_WEIGHTS = ", in the training loss and in every metric. Frequencies, and what is head, torso and tail, count rows."
_SAMPLED = (
    " before the data were written. Training takes the rows as they are. Predictions are brought back to the rows "
    "there were, and so are the metrics: a negative row of the test split stands for those that were dropped, too."
)
_BYTES = (
    "A budget counts every tensor that is needed to turn ids into vectors, in its serving form, without the "
    "optimizer’s state. 1 MB is 10⁶ bytes."
)
_SHARES = " A budget of 0.1 keeps a tenth of the full 32-bit tables over the training vocabulary, as does 10x."
_COARSE = " Coarse: the sizes that the strategy can take leave more than 2 % of the budget unused."
_HEAD = (
    "A test row is unseen when one of its single-valued ids did not occur in training. The others are cut in thirds by "
    "the training count of their rarest single-valued id: head, torso, tail. AUC is undefined on a single class."
)


def _unseen(shares: Mapping[str, float]) -> str:
    """Which features' cells have no id, the most first."""
    ranked = sorted(shares.items(), key=lambda one: -one[1])
    shown = [one for one in ranked[:_SHOWN] if one[1] >= _LEAST]
    told = [f"{name} {percent(share)}" for name, share in shown]
    if others := ranked[len(shown) :]:
        told.append(f"{plural(len(others), 'other feature' if shown else 'feature')} at most {percent(others[0][1])}")
    return f"of each feature’s values in the test split, unseen in training, too rare or missing: {', '.join(told)}"


def _not_measured(hashed: Mapping[str, Any]) -> str:
    """What is not known where there is no vocabulary, and how well counting sketches know the rest."""
    name, worst = max(hashed.items(), key=lambda one: (float(one[1]["error"]), one[0]))
    found = min(float(one["unseen_found"]) for one in hashed.values())
    return (
        f"{', '.join(hashed)} have no vocabulary: their ids are hashes of raw values. Nobody knows how many there are, "
        "so there are no full tables to compare with, no kept fraction and no expected collisions. Their training "
        "counts are estimates of count-min sketches, never too low, and of 98 % of values too high by at most "
        f"{grouped(math.ceil(worst['error']))} of {grouped(int(worst['occurrences']))} ({name}, the least sure). "
        "Values that did not occur in training are told with a chance of at least "
        f"{math.floor(100 * found)} %; the others seem to have occurred."
    )


def _beside(section: Section) -> str:
    size = section.host_bytes
    if np.isnan(size) or not size:
        return ""
    return f" Beside every budget: the vocabulary’s strings, which turn raw rows into ids, {format_bytes(size)}."


def _intervals(section: Section) -> str:
    seeds = (
        "the few seeds by normal multipliers with the scale of Student’s t"
        if section.seeds > 1
        else "with one seed they cover rows alone"
    )
    return (
        f"{PERCENT} intervals of paired differences, from {section.resamples:,} bootstrap resamples of the test rows, "
        f"the same for all runs; {seeds}. “≈ best”: the interval of the difference to the best contains 0. A rank "
        "is given as all the ranks that these intervals leave open, and only with two seeds or more."
    )


def _many(section: Section) -> str:
    count = sum(max(0, len(section.candidates(budget)) - 1) for budget in section.budgets)
    return (
        f"Each interval stands alone: of the {plural(count, 'comparison')} with a best here, about {count * 0.05:.1f} "
        "would look real by chance if all were equal, and the best was picked on the rows that it is compared on. A "
        "narrow miss of 0 is weak evidence."
    )


def versions(section: Section) -> list[tuple[str, str]]:
    """What the runs were made with; several values where runs differ."""
    seen: dict[str, dict[str, None]] = {}
    for text in sorted(set(section.runs["versions"])):
        for name, value in (json.loads(text) if text else {}).items():
            seen.setdefault(str(name), {})[_flat(value)] = None
    return [(name, " / ".join(values)) for name, values in seen.items()]


def _first_json(column: pd.Series[str]) -> dict[str, Any]:
    return next((dict(json.loads(text)) for text in sorted(set(column)) if text), {})


def _table(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, dict) else {}


def _flat(value: Any) -> str:
    """A tree of settings on one line, without what is not set."""
    if isinstance(value, dict):
        name = [str(value["name"])] if "name" in value else []
        inner = [f"{str(key).replace('_', ' ')} {_flat(one)}" for key, one in value.items() if _told(key, one)]
        return ", ".join(name + inner)
    if isinstance(value, (list, tuple)):
        return " / ".join(_flat(one) for one in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return grouped(value) if isinstance(value, int) and value >= 10_000 else str(value)


def _told(key: Any, value: Any) -> bool:
    return key != "name" and value is not None and value is not False and value != [] and value != {}
