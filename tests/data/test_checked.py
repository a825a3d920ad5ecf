"""Parquet files of our own: whole, or an error that names the file."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recsys_embed.data.checked import read_checked
from recsys_embed.errors import CheckpointError

TABLE = pa.table({"id": list(range(1000)), "count": [7] * 1000})


def test_a_whole_file_is_read(tmp_path: Path) -> None:
    pq.write_table(TABLE, tmp_path / "a.parquet", write_page_checksum=True)
    assert read_checked(tmp_path / "a.parquet") == TABLE
    assert read_checked(tmp_path / "a.parquet", ["count"]) == TABLE.select(["count"])


def test_any_flipped_byte_of_a_page_a_lost_column_and_a_lost_file_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(TABLE, path, write_page_checksum=True, compression="none", use_dictionary=False)
    whole = path.read_bytes()
    with pytest.raises(CheckpointError, match=f"{path}: cannot be read: .*value"):
        read_checked(path, ["id", "value"])
    at = whole.index((500).to_bytes(8, "little"))
    path.write_bytes(whole[:at] + b"\xff" + whole[at + 1 :])
    with pytest.raises(CheckpointError, match=f"{path}: cannot be read: .*") as caught:
        read_checked(path)
    assert caught.value.file == str(path)
    path.unlink()
    with pytest.raises(CheckpointError, match=f"{path}: cannot be read: .*"):
        read_checked(path)
