"""Parquet files, streamed, and cut between row groups."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from recsys_embed.data import parts
from recsys_embed.data.chunks import require
from recsys_embed.data.parts import Part
from recsys_embed.data.streams import on_disk, open_file, open_stream
from recsys_embed.data.values import unchecked
from recsys_embed.errors import DataError

_ROWS = 65_536


def is_parquet(file: Path) -> bool:
    """Whether a file begins as Parquet files do.

    Raises:
        DataError: it cannot be opened, or is one that is packed once more.
    """
    with open_file(on_disk(file)) as opened:
        if opened.read(4) == b"PAR1":
            return True
    with open_stream(file) as stream:
        if stream.read(4) == b"PAR1":
            raise DataError("is a Parquet file that is packed once more: unpack it", file=str(file))
    return False


def parquet_names(file: Path) -> list[str]:
    """The columns of a file, in its order."""
    with _open(file) as parquet:
        return list(parquet.schema_arrow.names)


def read_parquet(file: Path, columns: Sequence[str], part: tuple[int, int] | None) -> Iterator[pa.RecordBatch]:
    """Stream some columns, typed as they are in the file; of the row groups from one to another, where given.

    Raises:
        DataError: a missing column, one that stands twice, a file that is damaged.
    """
    with _open(file) as parquet:
        names = parquet.schema_arrow.names
        require(columns, names, str(file))
        for name in columns:
            if names.count(name) > 1:
                raise DataError("stands twice in the file", file=str(file), column=name)
        try:
            # Group by group, and not mapped: else Arrow, or the map, holds what was read until all groups are.
            for group in range(parquet.num_row_groups) if part is None else range(*part):
                for batch in parquet.iter_batches(batch_size=_ROWS, row_groups=[group], columns=list(columns)):
                    yield pa.record_batch({name: unchecked(batch.column(name)) for name in columns})
        except (pa.ArrowInvalid, OSError) as error:
            raise DataError(f"cannot be read: {error}", file=str(file)) from error


def cut_row_groups(number: int, path: Path) -> list[Part]:
    """Ranges of row groups; ``number`` is the file's."""
    found: list[Part] = []
    first, row, held, size = 0, 1, 0, 0
    with _open(path) as parquet:
        meta = parquet.metadata
        for group in range(meta.num_row_groups):
            held += meta.row_group(group).num_rows
            size += meta.row_group(group).total_byte_size
            if size >= parts.PART_BYTES or group == meta.num_row_groups - 1:
                found.append(Part(number, row, held, first, group + 1, size))
                first, row, held, size = group + 1, row + held, 0, 0
    return found or [Part(number)]


def _open(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file, page_checksum_verification=True)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"is not a whole Parquet file: {error}", file=str(file)) from error
