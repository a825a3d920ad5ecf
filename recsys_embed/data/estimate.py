"""How long a preparation would take, and what room it needs: from a sample of the rows."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from recsys_embed.config import DataConfig
from recsys_embed.data import counting
from recsys_embed.data.chunks import Chunk
from recsys_embed.data.encoding import DATA, ENCODER, LAYOUT, Layout, encode
from recsys_embed.data.parts import Part, rows_about
from recsys_embed.data.prepare import build_sketch, build_vocabulary, complete, encoder_of, known_first
from recsys_embed.data.progress import Progress
from recsys_embed.data.rows import Job
from recsys_embed.data.sources import FileSource, Source, open_source
from recsys_embed.data.workshop import Crew, processes

SAMPLE_ROWS = 100_000


@dataclass(frozen=True)
class Estimate:
    """``rows`` are exact where the files say so. ``seconds`` are those of the passes on ``workers`` processes, without
    the growth of vocabularies; ``bytes`` those of the encoded rows and of the sample's vocabularies, ``between`` those
    of what stands beside them until they are done, ``free`` those on the disk."""

    rows: int
    exact: bool
    sampled: int
    workers: int
    rows_per_second: float
    seconds: float
    bytes: int
    between: int
    free: int


def estimate(config: DataConfig, out: str | Path, *, workers: int | None = None) -> Estimate:
    """Prepare the first rows into a temporary folder, and extrapolate.

    Raises:
        ConfigError, DataError: as :func:`prepare` does, of the first rows.
    """
    config = complete(config)
    source = open_source(config)
    parts = source.parts()
    head = Head(source, parts, SAMPLE_ROWS)
    with tempfile.TemporaryDirectory(prefix="recsys-embed-") as work:
        (Path(work) / DATA).mkdir()
        start = time.perf_counter()
        job = known_first(Job(config, head, (replace(parts[0], rows=None),), work), Crew(None), Progress(None))
        counting.count(job, 0)
        between = sum(file.stat().st_size for file in Path(work).glob("*.arrow"))
        counted = counting.results(job, counting.COUNTS)
        for index in range(len(job.vocabularies)):
            build_vocabulary(job, index)
        for index in range(len(job.hashes)):
            build_sketch(job, index)
        encoder = encoder_of(job, counted)
        encoder.describe(Path(work) / DATA / ENCODER)
        Layout.create(job, encoder, counted).save(Path(work) / LAYOUT)
        encode(job, 0)
        seconds = time.perf_counter() - start
        size = sum(file.stat().st_size for file in (Path(work) / DATA).glob("*.arrow"))
        beside = [*(Path(work) / DATA / ENCODER).iterdir(), *(Path(work) / DATA).glob("*.parquet")]
        vocabularies = sum(file.stat().st_size for file in beside)
    sampled = max(head.read, 1)
    exact = all(part.rows is not None for part in parts) or head.ended
    rows = head.read if head.ended else _rows(source, parts)
    hands = processes(parts, workers) if source.shared else 1
    rate = hands * sampled / seconds
    place = next(folder for folder in (Path(out).absolute(), *Path(out).absolute().parents) if folder.exists())
    return Estimate(
        rows=rows,
        exact=exact,
        sampled=head.read,
        workers=hands,
        rows_per_second=rate,
        seconds=rows / rate,
        bytes=round(size * rows / sampled) + vocabularies,
        between=round(between * rows / sampled),
        free=shutil.disk_usage(place).free,
    )


class Head:
    """The first rows of a source."""

    def __init__(self, source: Source, parts: Sequence[Part], rows: int) -> None:
        self.source, self.rows, self._parts = source, rows, parts
        self.name, self.shared = source.name, False
        self.read, self.ended = 0, False

    def parts(self) -> list[Part]:
        """The first."""
        return list(self._parts[:1])

    def chunks(self, part: Part, columns: Sequence[str], rows: int) -> Iterator[Chunk]:
        """Stream some columns of the first rows."""
        read = 0
        for chunk in self.source.chunks(part, columns, rows):
            taken = chunk.table.slice(0, self.rows - read)
            read += taken.num_rows
            probability = None if chunk.probability is None else chunk.probability[: taken.num_rows]
            yield replace(chunk, table=taken, probability=probability)
            if read >= self.rows:
                self.read = read
                return
        self.read, self.ended = read, len(self._parts) == 1

    def describe(self) -> list[dict[str, Any]]:
        """Those of the whole."""
        return self.source.describe()

    def matches(self, described: list[dict[str, Any]]) -> bool:
        """Whether the whole does."""
        return self.source.matches(described)


def _rows(source: Source, parts: Sequence[Part]) -> int:
    """The number of rows: what the files say, and of the others what their sizes and first lines let expect."""
    rows = float(sum(part.rows for part in parts if part.rows is not None))
    if isinstance(source, FileSource):
        rows += sum(rows_about(source.files[part.file][1]) for part in parts if part.rows is None)
    return round(rows)
