"""What a model folder serves, as tensors, tables and files that can be compared: all but its training state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from recsys_embed.data import Encoder
from recsys_embed.data.checked import read_checked
from recsys_embed.errors import CheckpointError
from recsys_embed.export import ENCODER, WEIGHTS
from recsys_embed.files import atomic_folder, verify_manifest, write_manifest
from recsys_embed.training.kept import TRAINING


@dataclass(frozen=True)
class Served:
    """The tensors of the weights by name; tables of the encoder (vocabularies and their histories), and the bytes of
    all other files, by path within the folder."""

    tensors: Mapping[str, Tensor]
    tables: Mapping[str, pa.Table]
    files: Mapping[str, bytes]

    @classmethod
    def read(cls, folder: Path) -> Served:
        """What a model folder serves, every byte of it checked.

        Raises:
            CheckpointError: a file is missing or damaged; it is named.
        """
        names = verify_manifest(folder)
        try:
            tables = {name: read_checked(folder / name) for name in names if name.endswith(".parquet")}
            files = {name: (folder / name).read_bytes() for name in names if name not in tables and name != WEIGHTS}
            return cls(load_file(folder / WEIGHTS), tables, files)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{folder}: is not a model folder: {error}", file=str(folder)) from error

    def write(self, folder: Path) -> None:
        """Make it a model folder: all of it or, after a crash, none of it."""
        with atomic_folder(folder) as temporary:
            for name, data in self.files.items():
                path = temporary / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
            for name, table in self.tables.items():
                (temporary / name).parent.mkdir(parents=True, exist_ok=True)
                pq.write_table(table, temporary / name)
            Encoder.load(temporary / ENCODER).save(temporary / ENCODER)  # as an export writes it
            save_file(dict(self.tensors), temporary / WEIGHTS)
            write_manifest(temporary, without=TRAINING)

    @property
    def digest(self) -> str:
        """A checksum of the contents, whatever wrote the files."""
        digest = xxhash.xxh3_128()
        for name, tensor in sorted(self.tensors.items()):
            digest.update(f"tensor {name} {tensor.dtype} {list(tensor.shape)};".encode())
            digest.update(as_bytes(tensor).data)
        for name, table in sorted(self.tables.items()):
            digest.update(f"table {name} {table.column_names};".encode())
            for column in table.columns:
                _update(digest, column)
        for name, data in sorted(self.files.items()):
            digest.update(f"file {name} {len(data)};".encode())
            digest.update(data)
        return digest.hexdigest()


def as_bytes(tensor: Tensor) -> np.ndarray:
    """The bytes of a tensor ``[n]`` uint8, a row after another."""
    return np.asarray(tensor.contiguous().view(-1).view(torch.uint8).numpy())


def _update(digest: xxhash.xxh3_128, column: pa.ChunkedArray) -> None:
    missing = column.is_null().to_numpy()
    digest.update(np.packbits(missing).data)
    if not (pa.types.is_string(column.type) or pa.types.is_large_string(column.type)):
        digest.update(f"{column.type};".encode())
        digest.update(np.ascontiguousarray(column.fill_null(0).to_numpy()).data)
        return
    text = pa.concat_arrays([*column.cast(pa.large_string()).fill_null("").chunks, pa.array([], pa.large_string())])
    _, offsets, data = text.buffers()
    begins = np.frombuffer(offsets, np.int64, len(text) + 1, 8 * text.offset)
    digest.update((begins - begins[0]).data)
    digest.update(b"" if data is None else memoryview(data)[begins[0] : begins[-1]])


def same_rows(one: pa.Table, other: pa.Table, count: int) -> np.ndarray:
    """Whether rows ``[count]`` of two tables of the same columns are equal; a null equals a null."""
    same = np.ones(count, bool)
    for name in one.column_names:
        a, b = one[name].slice(0, count), other[name].slice(0, count)
        if pa.types.is_string(a.type):
            a, b = a.cast(pa.large_string()), b.cast(pa.large_string())
        equal = pc.fill_null(pc.equal(a, b.cast(a.type)), False)
        both = pc.and_(a.is_null(), b.is_null())
        same &= pc.or_(equal, both).to_numpy(zero_copy_only=False)
    return same
