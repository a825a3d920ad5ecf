"""F15: bad data is named, or skipped and counted; what only looks bad is found again as it stands."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from bench.injections.artifacts import fresh
from bench.injections.data_cases import CASES, Bad, Case, schema
from bench.injections.tally import Scale, Tally
from recsys_embed.config import DataConfig
from recsys_embed.data import EncodedDataset, prepare
from recsys_embed.data.bags import Bag
from recsys_embed.data.split import SPLITS
from recsys_embed.errors import DataError


def inject(scale: Scale, folder: Path) -> Tally:
    """Play the cases, or every fourth of them."""
    tally = Tally()
    logger = logging.getLogger("recsys_embed")
    logger.addFilter(_not_skipped)
    try:
        for case in CASES[:: scale.of(4, 1)]:
            tally.injected += 1
            wrong = play(case, fresh(folder / "case"))
            tally.silent += "silent" in wrong
            tally.detected += case.kind == "whole"
            tally.recovered += case.kind != "whole"
            for what in wrong:
                tally.breach(f"{case.name}: {what}")
    finally:
        logger.removeFilter(_not_skipped)
    kinds = [case.kind for case in CASES]
    tally.note(
        f"{len(CASES)} cases: {kinds.count('row')} of rows, each as an error and skipped; {kinds.count('whole')} of "
        f"whole inputs; {kinds.count('exact')} in which every value is found again"
    )
    return tally


def _not_skipped(record: logging.LogRecord) -> bool:
    return "skipped" not in record.getMessage()


def play(case: Case, folder: Path) -> list[str]:
    """What was not as it has to be; nothing is what should come. ``silent``: there was no error where one is due."""
    source = case.write(fresh(folder / "input"))
    if case.cells is not None:
        return _read_exactly(_prepare(source, case.schema, folder / "out"), *case.cells)
    wrong = []
    for skip in (False, True):
        expected = case.bad[0] if case.bad and not skip else case.whole
        if expected is not None:
            wrong += _refused(source, {**case.schema, "on_bad_rows": "skip" if skip else "error"}, expected, folder)
    return wrong + (_skipped(case, source, folder) if case.good is not None else [])


def _refused(source: Path | pd.DataFrame, changes: Mapping[str, Any], bad: Bad, folder: Path) -> list[str]:
    try:
        _prepare(source, changes, folder / "refused")
    except DataError as error:
        found = (Path(error.file).name if error.file else None, error.column, error.row, error.value)
        wrong = [] if found == (bad.file, bad.column, bad.row, bad.value) else [f"names {found}"]
        wrong += [] if error.reason.startswith(bad.reason) else [f"says {error.reason}"]
        return wrong + (["leaves something behind"] if (folder / "refused").exists() else [])
    return ["silent"]


def _skipped(case: Case, source: Path | pd.DataFrame, folder: Path) -> list[str]:
    """Encoded as if the bad rows had never been there, and all of them counted, with the first of each reason."""
    assert case.good is not None
    found = _prepare(source, {**case.schema, "on_bad_rows": "skip"}, folder / "skipped")
    good = _prepare(case.good(fresh(folder / "good")), case.schema, folder / "without")
    wrong = [] if found.fingerprint == good.fingerprint else ["other rows are encoded than the good ones"]
    expected: dict[tuple[str | None, str], list[Any]] = {}
    for bad in case.bad:
        shown = bad.shown if bad.shown is not None or bad.value is None else str(bad.value)
        count = expected.setdefault((bad.column, bad.reason), [0, bad.file, bad.row, shown])
        count[0] += 1
    told = found.schema["skipped"]
    counted = {}
    for one in told["reasons"]:
        reason = next((bad.reason for bad in case.bad if one["reason"].startswith(bad.reason)), one["reason"])
        file = Path(one["file"]).name if one["file"] else None
        counted[one["column"], reason] = [one["rows"], file, one["row"], one["value"]]
    if counted != expected or told["rows"] != len(case.bad):
        wrong += ["silent", f"counts {told}"]
    return wrong


def _read_exactly(dataset: EncodedDataset, column: str, cells: list[object]) -> list[str]:
    rows = sum(dataset.rows(split) for split in SPLITS)
    expected = [cells[i % len(cells)] for i in range(rows)]
    found = decoded(dataset, column)
    wrong = [] if dataset.schema["skipped"]["rows"] == dataset.schema["dropped"]["rows"] == 0 else ["rows are missing"]
    return wrong if sorted(map(repr, found)) == sorted(map(repr, expected)) and rows >= 12 else [*wrong, "silent"]


def decoded(dataset: EncodedDataset, column: str) -> list[object]:
    """The values of a single-valued feature by its ids, split by split; None where missing or unseen."""
    place = next(i for i, feature in enumerate(dataset.features) if feature.name == column)
    words = [None, *dataset.encoder.vocabularies[dataset.features[place].vocab].values.to_pylist()]
    found: list[object] = []
    for split in SPLITS:
        ids = dataset.columns(split).ids[place]
        assert not isinstance(ids, Bag)
        found += [words[i] for i in ids]
    return found


def _prepare(source: Path | pd.DataFrame, changes: Mapping[str, Any], out: Path) -> EncodedDataset:
    if isinstance(source, pd.DataFrame):
        return prepare(source, schema(**changes), out, workers=1)
    return prepare(DataConfig.model_validate({"path": str(source), **schema(**changes)}), out, workers=1)
