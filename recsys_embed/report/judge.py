"""A run that is judged on validation alone: a trial of a search, whose winner is then trained as a run of its own.

Its document lies in the folder of the run with the same config as ``judged.json``, beside a ``result.json`` if that run
was measured too.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from recsys_embed import ranks
from recsys_embed.data import EncodedDataset
from recsys_embed.report.run import Cell, Fitted, attempt, document_of, fit, opened, saved_document

JUDGED = "judged.json"
Measure = Callable[[Fitted, Cell, EncodedDataset], dict[str, Any]]
"""What else is measured of a trained model, in plain values."""


def judge_cell(
    cell: Cell,
    dataset: EncodedDataset,
    out: Path,
    *,
    progress: bool = True,
    checkpoints: bool = True,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    measure: Measure | None = None,
) -> dict[str, Any]:
    """Train a cell without reading a label of the test split; return its document, or the one that is there.

    The document has a ``row``, with ``val_auc``, ``samples_seen``, ``wall_seconds``, the bytes and a status as in
    ``results.csv`` and no test metrics, the ``history``, and what ``measure`` gave as ``measured``. See
    :func:`~recsys_embed.report.run.attempt`.

    Raises:
        Abandoned: by ``on_epoch``.
    """

    def work(folder: Path, scratch: Path) -> dict[str, Any]:
        saved = scratch if checkpoints else None
        fitted = fit(cell, dataset, checkpoints=saved, progress=progress, on_epoch=on_epoch)
        document = document_of(fitted.row, fitted.result)
        return document if measure is None else document | {"measured": measure(fitted, cell, dataset)}

    there = judged(cell, dataset, out)
    if there is not None and measure is not None and there["row"]["status"] == "ok" and "measured" not in there:
        there = None  # by a study that did not ask for it
    if ranks.count() > 1:  # files may reach the ranks' machines at different times
        there = json.loads(ranks.told(json.dumps(there)))
    return there or attempt(cell, dataset, out, JUDGED, work)


def judged(cell: Cell, dataset: EncodedDataset, out: Path) -> dict[str, Any] | None:
    """The document of a cell that need not be judged again; None where there is none or the run failed.

    A run that diverged would diverge again; one that failed may have lacked memory, or a disk.
    """
    document = saved_document(cell, dataset, out, JUDGED)
    return None if document is None or document["row"]["status"] == "failed" else document


def judge_cell_by_path(cell: Cell, dataset: Path, out: Path, checkpoints: bool) -> dict[str, Any]:
    """:func:`judge_cell` in a worker process, which opens the data set once."""
    return judge_cell(cell, opened(dataset), out, progress=False, checkpoints=checkpoints)
