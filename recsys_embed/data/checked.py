"""Parquet files of our own, read with the checksums of their pages."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from recsys_embed.errors import CheckpointError


def read_checked(path: Path, columns: list[str] | None = None) -> pa.Table:
    """A file whose pages have checksums: these columns, or all of them.

    Raises:
        CheckpointError: it is missing or damaged, or lacks a column.
    """
    try:
        return pq.read_table(path, columns=columns, page_checksum_verification=True)
    except (pa.ArrowException, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read: {error}", file=str(path)) from error
