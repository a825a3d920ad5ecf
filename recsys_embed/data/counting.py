"""The passes over the rows that come before encoding: each counts a part, on its own, and leaves a file for it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_embed.data import blocks
from recsys_embed.data.bags import split_cells
from recsys_embed.data.blocks import BlockWriter
from recsys_embed.data.chunks import Chunk
from recsys_embed.data.numeric import Moments, numbers_of
from recsys_embed.data.rows import Job
from recsys_embed.data.screening import Skipped
from recsys_embed.data.sketch import FrequencySketch
from recsys_embed.data.split import Cuts, cuts_of, times_of, uniform
from recsys_embed.data.tally import Tally, merge, open_runs
from recsys_embed.data.values import CellError
from recsys_embed.data.vocabulary import LARGEST, Vocabulary
from recsys_embed.data.weights import Weighted
from recsys_embed.errors import DataError
from recsys_embed.files import atomic_write, checksum

SAMPLE = 1 << 17
"""Training rows of which the quantiles of a column are taken: all of them, where there are no more."""

_TIMES, COUNTS, VOCABULARIES, ENCODED = "times", "counts", "vocabularies", "encoded"


def result(job: Job, stage: str, index: int) -> Path:
    """The file that says that a part is done, and what came out."""
    return Path(job.work) / f"{stage}-{index:05d}.json"


def results(job: Job, stage: str) -> list[dict[str, Any]]:
    """What came out of all parts, in their order."""
    return [json.loads(result(job, stage, i).read_text(encoding="utf-8")) for i in range(len(job.parts))]


def finish(job: Job, stage: str, index: int, tree: dict[str, Any]) -> None:
    """Say that a part is done."""
    atomic_write(result(job, stage, index), json.dumps(tree))


# --- times: where a split by time is cut -----------------------------------------------------------------------


def count_times(job: Job, index: int) -> int:
    """Count the times of a part's rows; returns the rows."""
    assert job.config.split.time is not None
    column, rows, nbytes = job.config.split.time.column, 0, 0
    tally, held = Tally(runs_path(job, _TIMES, index)), list[pa.Array]()
    for chunk, bad in job.chunks(index, [column]):
        cells = times_of(chunk, column)
        if bad is not None:
            cells = cells.filter(pa.array(~bad))
        held.append(cells)
        nbytes += cells.nbytes
        if nbytes > blocks.BLOCK_BYTES:
            tally.add(held)
            held, nbytes = [], 0
        rows += len(chunk)
    tally.add(held)
    tally.close()
    finish(job, _TIMES, index, {"runs": tally.runs})
    return rows


def cuts(job: Job) -> Cuts:
    """Where the counted times are cut."""
    assert job.config.split.time is not None
    assert job.config.split.time.fractions is not None
    runs = [
        (runs_path(job, _TIMES, index), run)
        for index, one in enumerate(results(job, _TIMES))
        for run in range(one["runs"])
    ]
    try:
        return cuts_of(merge(runs), job.config.split.time.fractions)
    except CellError as error:
        column, odd = job.config.split.time.column, error.value

        def met(chunk: Chunk) -> np.ndarray:
            return np.asarray(pc.equal(chunk.text(column), odd).to_numpy(zero_copy_only=False))

        raise job.first(range(len(job.parts)), column, str(error), met, odd) from error


# --- edges: quantiles of numeric columns -------------------------------------------------------------------------


def sample_edges(job: Job, index: int) -> int:
    """Draw training rows of a part's bucketed columns: those of the smallest chance by seed and place."""
    names = [name for name, kind in job.config.buckets.items() if kind != "log_square"]
    chances, drawn, rows = np.empty(0), np.empty((0, len(names))), 0
    for chunk, splits, _ in job.rows(index, columns=names):
        train = splits == 0
        chance = uniform(1 + (chunk.file_number << 40), chunk.first_row - 1, len(chunk))[train]
        numbers = np.stack([chunk.numbers(name)[train] for name in names], 1)
        chances, drawn = np.concatenate([chances, chance]), np.concatenate([drawn, numbers])
        if len(chances) > 2 * SAMPLE:
            chances, drawn = _smallest(chances, drawn)
        rows += len(chunk)
    chances, drawn = _smallest(chances, drawn)
    np.save(Path(job.work) / f"edges-{index:05d}.npy", np.column_stack([chances, drawn]))
    finish(job, "edges", index, {})
    return rows


def edges(job: Job) -> tuple[tuple[str, tuple[float, ...]], ...]:
    """The quantiles of each bucketed column; equal ones are one edge."""
    names = [name for name, kind in job.config.buckets.items() if kind != "log_square"]
    drawn = np.concatenate([np.load(Path(job.work) / f"edges-{i:05d}.npy") for i in range(len(job.parts))])
    _, drawn = _smallest(drawn[:, 0], drawn[:, 1:])
    found = []
    for place, name in enumerate(names):
        x = drawn[:, place]
        x = x[~np.isnan(x)]
        count = int(job.config.buckets[name])
        at = np.quantile(x, np.arange(1, count) / count, method="inverted_cdf") if len(x) else np.empty(0)
        found.append((name, tuple(np.unique(at).tolist())))
    return tuple(found)


def _smallest(chances: np.ndarray, drawn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(chances, kind="stable")[:SAMPLE]
    return chances[order], drawn[order]


# --- counts: vocabularies, scalers, rows -------------------------------------------------------------------------


def count(job: Job, index: int) -> int:
    """Count a part's rows, labels, weights and values per split, and the distinct values and moments of training rows;
    what encoding needs of the rows is kept."""
    cells, label_counts, skipped = job.cells(), Counter[str](), Skipped()
    moments = [
        Moments(name, cast(Literal["standard", "log"], scaling)) for name, scaling in job.config.scalings.items()
    ]
    weighted = None if job.config.weight is None else Weighted(job.config.weight)
    numbers_kept = len(moments) + (weighted is not None)
    kept = BlockWriter(runs_path(job, COUNTS, index), rows_path(job, index), list(cells), numbers_kept)
    rows, positives = [0, 0, 0], [0, 0, 0]
    bags = {name: [0, 0, 0] for name in job.config.multi_valued}
    truth: list[tuple[np.ndarray, np.ndarray]] = []
    for chunk, splits, labels in job.rows(index, label_counts, skipped=skipped):
        for split in range(3):
            here = splits == split
            rows[split] += int(here.sum())
            positives[split] += int(labels[here].sum())
        texts = []
        for name, source in cells.items():
            text = source.text(chunk)
            if name in bags:
                values, offsets = split_cells(text, job.config.multi_valued[name])
                lengths = np.diff(offsets)
                for split in range(3):
                    bags[name][split] += int(lengths[splits == split].sum())
                texts.append((values, offsets))
            else:
                texts.append(text)
        numbers = [numbers_of(chunk, one.column, one.scaling) for one in moments]
        for one, column in zip(moments, numbers, strict=True):
            one.add(column[splits == 0])
        if weighted is not None:
            numbers.append(weighted.read(chunk, splits, labels))
        kept.add(texts, numbers, splits, labels)
        if chunk.probability is not None:
            test = splits == 2
            truth.append((labels[test], chunk.probability[test]))
    kept.close()
    if truth:
        np.save(_truth(job, index), np.concatenate([np.stack(pair) for pair in truth], 1))
    tree = {
        "rows": rows,
        "positives": positives,
        "weighted": None if weighted is None else weighted.rows.tolist(),
        "bags": bags,
        "dropped": label_counts,
        "skipped": skipped.tree(),
        "moments": [one.tree() for one in moments],
        "missing": kept.missing,
        "blocks": kept.blocks,
        "truth": bool(truth),
        "files": [checksum(path) for path in (runs_path(job, COUNTS, index), rows_path(job, index))],
    }
    finish(job, COUNTS, index, tree)
    return sum(rows)


def recount_damaged(job: Job) -> None:
    """Forget the parts whose files are not as they were written, and which are still needed: a machine has stopped."""
    for index in range(len(job.parts)):
        if result(job, COUNTS, index).is_file() and not result(job, ENCODED, index).is_file():
            known = json.loads(result(job, COUNTS, index).read_text(encoding="utf-8"))["files"]
            paths = runs_path(job, COUNTS, index), rows_path(job, index)
            if not all(path.is_file() for path in paths) or known != [checksum(path) for path in paths]:
                result(job, COUNTS, index).unlink()


def vocabulary(job: Job, name: str) -> Vocabulary:
    """The vocabulary that the counts of all parts give."""
    runs, missing = counted_runs(job, name)
    limits = job.config.limits_of(name)
    found = Vocabulary.of(merge(runs), missing, min_count=limits.min_count or 1, max_size=limits.max_vocabulary)
    if found.cardinality > LARGEST:
        raise DataError(
            f"has {found.cardinality:,} ids, and 32 bits hold {LARGEST:,}: set max_vocabulary or min_count", column=name
        )
    return found


def sketch(job: Job, name: str) -> FrequencySketch:
    """The frequencies of hashed values that the counts of all parts give."""
    runs, missing = counted_runs(job, name)
    found, raw = FrequencySketch(), job.hashes[name]
    found.add(np.zeros(1, np.int64), np.array([missing]))
    for path, number in runs:
        run = open_runs(path).get_batch(number)
        found.add(raw.ids(run["value"]), run["count"].to_numpy())
    return found


def counted_runs(job: Job, name: str) -> tuple[list[tuple[Path, int]], int]:
    """The runs of a vocabulary in all parts, and how many cells are missing."""
    features, counted = list(job.cells()), results(job, COUNTS)
    mine = [i for i, feature in enumerate(features) if job.vocabulary(feature) == name]
    runs = [
        (runs_path(job, COUNTS, index), block * len(features) + i)
        for index, one in enumerate(counted)
        for block in range(one["blocks"])
        for i in mine
    ]
    return runs, sum(one["missing"][features[i]] for one in counted for i in mine)


def truth(job: Job, counted: Sequence[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray] | None:
    """Labels and true probabilities of the test rows, where they are known."""
    found = [np.load(_truth(job, i)) for i, one in enumerate(counted) if one["truth"]]
    if not found:
        return None
    labels, probability = np.concatenate(found, 1)
    return labels, probability


def _truth(job: Job, index: int) -> Path:
    return Path(job.work) / f"truth-{index:05d}.npy"


def runs_path(job: Job, stage: str, index: int) -> Path:
    """The file of the runs that a pass counted in a part."""
    return Path(job.work) / f"{stage}-{index:05d}.arrow"


def rows_path(job: Job, index: int) -> Path:
    """The file of a part's rows."""
    return Path(job.work) / f"rows-{index:05d}.arrow"
