"""One pass over raw rows: what every column is, and what to be warned of."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_embed.data.chunks import Chunk, require
from recsys_embed.data.delimited import separator_of
from recsys_embed.data.parquet import is_parquet
from recsys_embed.data.readers import CHUNK_ROWS, column_names, find_files, read_chunks
from recsys_embed.errors import DataError
from recsys_embed.inspection.columns import Column, Rows
from recsys_embed.inspection.hashes import hash_rows
from recsys_embed.inspection.kinds import Kind, kind_of
from recsys_embed.inspection.labels import Label, LabelValues, guess_column, rule_of
from recsys_embed.inspection.leaks import leak_auc
from recsys_embed.inspection.separators import separator_in
from recsys_embed.inspection.twins import twins

_LOG = logging.getLogger("recsys_embed")
_SEPARATORS = ("\t", ";", "|")
_TELL_EVERY = 10.0  # seconds


@dataclass(frozen=True)
class Inspection:
    """What was found in the rows at ``path``.

    ``whole``: all of them were read. ``headless``: the first line looks like a row, not like names. ``kinds`` and
    ``aucs`` are by column, an AUC that of the label by this feature alone; ``twins`` are features that are 1:1.
    """

    path: str
    rows: int
    whole: bool
    separator: str | None
    headless: bool
    label: Label | None
    columns: tuple[Column, ...]
    kinds: dict[str, Kind]
    aucs: dict[str, float] = field(default_factory=dict)
    twins: tuple[tuple[str, ...], ...] = ()

    def of_kind(self, *kinds: Kind) -> list[Column]:
        """The columns of some kinds, in the file's order."""
        return [column for column in self.columns if self.kinds[column.name] in kinds]

    def column(self, name: str) -> Column:
        """A column by its name."""
        return next(column for column in self.columns if column.name == name)


def inspect_rows(path: str | Path, *, label: str | None = None, rows: int | None = None) -> Inspection:
    """Read the rows at ``path`` (file, folder, glob) once, at most ``rows`` of them, in bounded memory.

    Without ``label`` a column is taken that is called like one and has two values in the first rows.

    Raises:
        DataError: rows that cannot be read, with file, column and row; there are none; or there is no column ``label``.
    """
    files = find_files(path)
    separator = _other_separator(files[0])
    names = column_names(files[0], separator)
    if label is not None:
        require([label], names, str(files[0]))
    chunks = _limited(_chunks(files, names, separator), rows)
    first = next(chunks, None)
    if first is None:
        raise DataError("holds no row", file=str(files[0]))
    columns, target = _begin(first, label)
    values = LabelValues()
    count, told = 0, time.monotonic()
    for chunk in itertools.chain([first], chunks):
        _take_in(chunk, columns, target, values, count)
        count += len(chunk)
        if time.monotonic() - told > _TELL_EVERY:
            told = time.monotonic()
            _LOG.info("%s rows read", f"{count:,}")
    return _judge(
        Inspection(
            str(path),
            count,
            rows is None or count < rows,
            separator,
            not is_parquet(files[0]) and _is_headless(first),
            None if target is None else rule_of(target, values, guessed=label is None),
            tuple(columns),
            {column.name: Kind.LABEL if column.name == target else kind_of(column) for column in columns},
        ),
        values,
    )


def _begin(first: Chunk, label: str | None) -> tuple[list[Column], str | None]:
    """The columns and which is the label, as the first rows tell."""
    texts = {name: _text(first, name) for name in first.table.column_names}
    readable = {name: cells for name, cells in texts.items() if isinstance(cells, pa.Array)}
    return [_column(first, name, cells) for name, cells in texts.items()], label or guess_column(readable)


def _is_headless(first: Chunk) -> bool:
    """Whether most of the names are values of their own columns, as those in a row would be; 0, 1, … are numbers of
    columns."""
    names = first.table.column_names
    if len(names) < 2 or names == [str(number) for number in range(len(names))]:
        return False
    found = sum(bool(pc.any(pc.equal(first.table[name], name)).as_py()) for name in names)
    return 2 * found > len(names)


def _judge(found: Inspection, values: LabelValues) -> Inspection:
    """Compare the features with the label and with each other."""
    features = [column for column in found.columns if found.kinds[column.name].feature]
    aucs = {}
    if found.label is not None and found.label.problem is None:
        meaning = found.label.meaning(values.values)
        aucs = {column.name: leak_auc(column, meaning) for column in features}
    groups = tuple(tuple(column.name for column in group) for group in twins(features))
    return replace(found, aucs={name: auc for name, auc in aucs.items() if not math.isnan(auc)}, twins=groups)


def _take_in(chunk: Chunk, columns: Sequence[Column], target: str | None, values: LabelValues, first: int) -> None:
    hashes = hash_rows(first, len(chunk))
    label = np.zeros(len(chunk), np.int64) if target is None else values.read(chunk.text(target, exact=False))
    rows = Rows(hashes, label, values.codes)
    for column in columns:
        if column.unreadable is None:
            column.add(chunk.text(column.name, exact=False), rows)


def _column(first: Chunk, name: str, cells: pa.Array | str) -> Column:
    if isinstance(cells, str):
        column = Column(name)
        column.unreadable = cells
        return column
    column = Column(name, separator_in(cells))
    column.floats = pa.types.is_floating(first.table.schema.field(name).type)
    return column


def _text(chunk: Chunk, name: str) -> pa.Array | str:
    """A column's cells, or why there are none."""
    try:
        return chunk.text(name, exact=False)
    except DataError as error:
        return str(error)


def _chunks(files: Sequence[Path], names: Sequence[str], separator: str | None) -> Iterator[Chunk]:
    for file in files:
        yield from read_chunks(file, names, separator=separator, chunk_rows=CHUNK_ROWS)


def _limited(chunks: Iterator[Chunk], rows: int | None) -> Iterator[Chunk]:
    left = rows
    for chunk in chunks:
        if left is None or len(chunk) < left:
            yield chunk
            left = None if left is None else left - len(chunk)
        else:
            yield Chunk(chunk.table.slice(0, left), chunk.file, chunk.first_row)
            return


def _other_separator(file: Path) -> str | None:
    """Another separator than the file's name suggests, where that one leaves a single column."""
    if is_parquet(file):
        return None
    usual = separator_of(file)
    names = column_names(file, usual)
    if len(names) > 1:
        return None
    return next((one for one in (",", *_SEPARATORS) if one != usual and one in names[0]), None)
