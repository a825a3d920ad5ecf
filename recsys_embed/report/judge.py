"""A run that is judged on validation alone: a trial of a search, whose winner is then trained as a run of its own.

Its document lies in the folder of the run with the same config as ``judged.json``, beside a ``result.json`` if that run
was measured too.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from recsys_embed.data import EncodedDataset
from recsys_embed.report.run import Cell, attempt, document_of, fit, opened, saved_document

JUDGED = "judged.json"


def judge_cell(
    cell: Cell,
    dataset: EncodedDataset,
    out: Path,
    *,
    progress: bool = True,
    checkpoints: bool = True,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Train a cell without reading the test split; return its document, or the one that is there.

    The document has a ``row``, with ``val_auc``, ``samples_seen``, ``wall_seconds``, the bytes and a status as in
    ``results.csv`` and no test metrics, and the ``history``. See :func:`~recsys_embed.report.run.attempt`.
    """

    def work(folder: Path, scratch: Path) -> dict[str, Any]:
        saved = scratch if checkpoints else None
        fitted = fit(cell, dataset, checkpoints=saved, progress=progress, on_epoch=on_epoch)
        return document_of(fitted.row, fitted.result)

    return judged(cell, dataset, out) or attempt(cell, dataset, out, JUDGED, work)


def judged(cell: Cell, dataset: EncodedDataset, out: Path) -> dict[str, Any] | None:
    """The document of a cell that need not be judged again; None where there is none or the run failed.

    A run that diverged would diverge again; one that failed may have lacked memory, or a disk.
    """
    document = saved_document(cell, dataset, out, JUDGED)
    return None if document is None or document["row"]["status"] == "failed" else document


def judge_cell_by_path(cell: Cell, dataset: Path, out: Path, checkpoints: bool) -> dict[str, Any]:
    """:func:`judge_cell` in a worker process, which opens the data set once."""
    return judge_cell(cell, opened(dataset), out, progress=False, checkpoints=checkpoints)
