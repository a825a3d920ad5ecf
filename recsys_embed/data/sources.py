"""Where raw rows come from: files, a data frame, or the planted generator."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd
import pyarrow as pa
import xxhash

from recsys_embed.config import DataConfig, PlantedConfig
from recsys_embed.data.chunks import Chunk, frame_chunks, rebatch
from recsys_embed.data.formats import format_of
from recsys_embed.data.parts import Part
from recsys_embed.data.planted import VERSION, Planted
from recsys_embed.data.readers import find_files, read_chunks
from recsys_embed.data.streams import on_disk, split_member
from recsys_embed.errors import DataError
from recsys_embed.files import checksum

_HASHED_ROWS = 1 << 16  # of a data frame at once


class Source(Protocol):
    """Raw rows, which can be read more than once. ``shared``: by other processes, too."""

    name: str
    shared: bool

    def parts(self) -> list[Part]:
        """The parts of the rows, in their order."""

    def chunks(self, part: Part, columns: Sequence[str], rows: int) -> Iterator[Chunk]:
        """Stream some columns of a part in chunks of at most ``rows`` rows."""

    def describe(self) -> list[dict[str, Any]]:
        """What identifies the rows, as JSON."""

    def matches(self, described: list[dict[str, Any]]) -> bool:
        """Whether these are the rows that were described."""


def open_source(config: DataConfig, frame: pd.DataFrame | None = None) -> Source:
    """The rows of a config; a frame takes the place of its path."""
    if frame is not None:
        return FrameSource(frame, skip=config.on_bad_rows == "skip")
    if config.planted is not None:
        return PlantedSource(config.planted)
    return FileSource(config)


class FileSource:
    """Files; those of ``split.files`` are a split each."""

    shared = True

    def __init__(self, config: DataConfig) -> None:
        places: dict[Any, str | None] = {**(config.split.files or {None: config.path})}
        self.format, self.separator, self.skip = config.format, config.separator, config.on_bad_rows == "skip"
        self.files = [(split, file) for split, place in places.items() for file in find_files(str(place), self.format)]
        self.name = name_of(str(next(iter(places.values()))))
        seen: dict[Path, Any] = {}
        for split, file in self.files:
            if seen.setdefault(file.resolve(), split) != split:
                raise DataError(f"its rows would be in {seen[file.resolve()]!r} and in {split!r}", file=str(file))

    def parts(self) -> list[Part]:
        """See :class:`Source`."""
        form = format_of(self.format, self.separator)
        return [part for number, (_, file) in enumerate(self.files) for part in form.cut(number, file)]

    def chunks(self, part: Part, columns: Sequence[str], rows: int) -> Iterator[Chunk]:
        """See :class:`Source`."""
        split, file = self.files[part.file]
        span = None if part.first is None or part.last is None else (part.first, part.last)
        read = 0
        for chunk in read_chunks(
            file,
            columns,
            format=self.format,
            separator=self.separator,
            chunk_rows=rows,
            part=span,
            first_row=part.first_row,
            skip=self.skip,
        ):
            read += len(chunk)
            yield replace(chunk, split=split, file_number=part.file)
        if part.rows is not None and read != part.rows:
            raise DataError(
                f"has {read} rows where there are {part.rows} lines: the file has changed while it was being read",
                file=str(file),
                row=part.first_row,
            )

    def describe(self) -> list[dict[str, Any]]:
        """Every file by its content; path, size and time of change spare reading it again."""
        hash_of = functools.cache(checksum)  # members of one archive
        return [{**self._stamp(split, file), "xxh3_128": hash_of(on_disk(file))} for split, file in self._inputs()]

    def matches(self, described: list[dict[str, Any]]) -> bool:
        """Equal content; only files that were moved or touched are read for that."""
        inputs, hash_of = self._inputs(), functools.cache(checksum)
        if len(described) != len(inputs):
            return False
        for (split, file), known in zip(inputs, described, strict=True):
            stamp = self._stamp(split, file)
            if any(stamp[key] != known.get(key) for key in ("split", "member", "bytes")):
                return False
            if any(stamp[key] != known.get(key) for key in stamp) and hash_of(on_disk(file)) != known.get("xxh3_128"):
                return False
        return True

    def _inputs(self) -> list[tuple[str | None, Path]]:
        """Every file that the rows depend on."""
        beside = format_of(self.format).beside
        return [(split, one) for split, file in self.files for one in (file, *beside(file))]

    def _stamp(self, split: str | None, file: Path) -> dict[str, Any]:
        place, member = split_member(file) or (file, None)
        status, path = place.stat(), str(place.resolve())
        return {
            "split": split,
            "path": path,
            "member": member,
            "bytes": status.st_size,
            "mtime_ns": status.st_mtime_ns,
        }


class FrameSource:
    """A data frame."""

    name, shared = "frame", False

    def __init__(self, frame: pd.DataFrame, *, skip: bool = False) -> None:
        self.frame, self.skip = frame, skip

    def parts(self) -> list[Part]:
        """See :class:`Source`."""
        return [Part(0, rows=len(self.frame), size=len(self.frame))]

    def chunks(self, part: Part, columns: Sequence[str], rows: int) -> Iterator[Chunk]:
        """See :class:`Source`."""
        return frame_chunks(self.frame, columns, rows, skip=self.skip)

    def describe(self) -> list[dict[str, Any]]:
        """The cells and their types, column by column."""
        return [{"column": str(name), "xxh3_128": self._hash(i)} for i, name in enumerate(self.frame.columns)]

    def matches(self, described: list[dict[str, Any]]) -> bool:
        """Equal columns in equal order."""
        return self.describe() == described

    def _hash(self, index: int) -> str:
        column = self.frame.iloc[:, index]
        digest = xxhash.xxh3_128(str(column.dtype).encode())
        for first in range(0, len(column), _HASHED_ROWS):
            part = column.iloc[first : first + _HASHED_ROWS]
            try:
                cells = pd.util.hash_pandas_object(part, index=False)
            except (
                TypeError,
                UnicodeError,
            ):  # cells that are no scalars or text, in a column that may not even be used
                cells = pd.util.hash_pandas_object(part.map(repr), index=False)
            digest.update(np.ascontiguousarray(cells.to_numpy()).data)
        return digest.hexdigest()


class PlantedSource:
    """Generated rows, whose true probabilities are known."""

    name, shared = "planted", True

    def __init__(self, config: PlantedConfig) -> None:
        self.planted = Planted(config)

    def parts(self) -> list[Part]:
        """See :class:`Source`."""
        rows = self.planted.config.rows
        return [Part(0, rows=rows, size=rows)]

    def chunks(self, part: Part, columns: Sequence[str], rows: int) -> Iterator[Chunk]:
        """See :class:`Source`."""
        tables = (block.table.append_column(_TRUTH, pa.array(block.probability)) for block in self.planted.blocks())
        first = 1
        for table in rebatch(tables, rows):
            for name in columns:
                if name not in table.column_names:
                    raise DataError("planted data have no such column", column=name)
            yield Chunk(table.select(list(columns)), None, first, probability=table[_TRUTH].to_numpy())
            first += table.num_rows

    def describe(self) -> list[dict[str, Any]]:
        """The config says it all, for one version of the generator."""
        return [{"generator": VERSION}]

    def matches(self, described: list[dict[str, Any]]) -> bool:
        """The same version."""
        return described == self.describe()


_TRUTH = "planted probability"


def name_of(place: str) -> str:
    """A short name for the data at a path: that of the file or folder, without suffixes."""
    path = Path(place)
    if set("*?[") & set(path.name):
        path = path.parent
    return (path.name.split(".")[0] if path.is_file() else path.name) or "data"
