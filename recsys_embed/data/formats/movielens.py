"""MovieLens as GroupLens publishes it: ratings, joined with what is known of users and movies.

Ratings are streamed; users and movies, which are few, are held in memory. A rating above 3 is a positive example, one
below 3 a negative one, and 3 is neither.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_embed.data.chunks import require
from recsys_embed.data.delimited import Dialect, header, read_delimited
from recsys_embed.data.formats.base import Format
from recsys_embed.data.formats.tables import unpacked
from recsys_embed.data.lines import read_lines
from recsys_embed.data.parts import Part, count_plain, count_quoted, cut_lines
from recsys_embed.data.streams import exists, find
from recsys_embed.errors import DataError

_CSV = Dialect(",")


@dataclass(frozen=True)
class Side:
    """A small file beside the ratings: its name, its columns, and the one that joins, which ratings have too."""

    file: str
    columns: tuple[str, ...]
    key: str


class MovieLens:
    """One edition: the name of its file of ratings, which says how all are written, and the files beside it."""

    def __init__(self, ratings: str, columns: tuple[str, ...], sides: tuple[Side, ...]) -> None:
        self.ratings, self.columns, self.sides = ratings, columns, sides

    def format(self, files: str, roles: Mapping[str, Any]) -> Format:
        """The edition as a format."""
        return Format(files, roles, self.find, self.names, self.read, self.cut, self.beside)

    def find(self, path: str | Path) -> list[Path]:
        """The ratings of a folder or an archive, or a file of ratings by its name."""
        return find(path, lambda name: unpacked(name) == self.ratings)

    def beside(self, file: Path) -> list[Path]:
        """The files of users and movies."""
        return [self._side_file(file, side) for side in self.sides]

    def names(self, file: Path) -> list[str]:
        """All columns, joined."""
        stored = self.columns or header(file, _CSV)
        return [*stored, *(name for side in self.sides for name in side.columns if name != side.key)]

    def cut(self, number: int, file: Path) -> list[Part]:
        """The parts of a file of ratings."""
        if self.columns:
            return cut_lines(number, file, count_plain)
        return cut_lines(number, file, count_quoted, headed=True)

    def read(
        self, file: Path, columns: Sequence[str], part: tuple[int, int] | None = None, first_row: int = 1
    ) -> Iterator[pa.RecordBatch]:
        """Some columns as text. A rating of a user or movie that its file does not have is an error."""
        require(columns, self.names(file), str(file))
        joined = [side for side in self.sides if ({*side.columns} - {side.key}) & {*columns}]
        tables = [(side, *self._side(file, side)) for side in joined]
        stored = [name for name in columns if not any(name in side.columns and name != side.key for side in joined)]
        stored = list(dict.fromkeys([*stored, *(side.key for side in joined)]))
        row = first_row
        for batch in self._rows(file, stored, self.columns, part, first_row):
            cells = dict(zip(stored, batch.columns, strict=True))
            for side, place, table in tables:
                found = pc.index_in(cells[side.key], value_set=table.column(side.key))
                if found.null_count:
                    first = pc.index(found.is_null(), True).as_py()
                    raise DataError(
                        f"{place.name} has no such line",
                        file=str(file),
                        column=side.key,
                        row=row + first,
                        value=cells[side.key][first].as_py() or "",
                    )
                cells |= {name: table.column(name).take(found) for name in side.columns if name != side.key}
            yield pa.RecordBatch.from_arrays([cells[name] for name in columns], names=list(columns))
            row += batch.num_rows

    def _rows(
        self,
        file: Path,
        columns: Sequence[str],
        names: Sequence[str],
        part: tuple[int, int] | None = None,
        first_row: int = 1,
    ) -> Iterator[pa.RecordBatch]:
        """Some columns of one of the files, which has ``names``, or a header."""
        if names:
            return read_double_colons(file, columns, names, part, first_row)
        return read_delimited(file, columns, _CSV, part=part)

    def _side_file(self, ratings: Path, side: Side) -> Path:
        for suffix in ("", ".gz", ".zst"):
            file = ratings.with_name(side.file + suffix)
            if exists(file):
                return file
        raise DataError(f"there is no {side.file} beside it", file=str(ratings))

    def _side(self, ratings: Path, side: Side) -> tuple[Path, pa.RecordBatch]:
        file = self._side_file(ratings, side)
        batches = list(self._rows(file, side.columns, side.columns if self.columns else ()))
        if not batches:
            raise DataError("holds no row", file=str(file))
        table = pa.Table.from_batches(batches).combine_chunks().to_batches()[0]
        seen: dict[str | None, int] = {}
        for row, value in enumerate(table.column(side.key).to_pylist(), 1):
            if seen.setdefault(value, row) != row or value is None:
                raise DataError(
                    "is missing" if value is None else f"stands in row {seen[value]} already",
                    file=str(file),
                    column=side.key,
                    row=row,
                    value=value,
                )
        return file, table


def read_double_colons(
    file: Path,
    columns: Sequence[str],
    names: Sequence[str],
    part: tuple[int, int] | None = None,
    first_row: int = 1,
) -> Iterator[pa.RecordBatch]:
    """Some columns of lines in Latin-1 that are cut at ``::``, null where a cell is empty."""
    for row, lines in read_lines(file, "latin-1", part, first_row):
        cells = pc.split_pattern(lines, "::")
        wrong = pc.not_equal(pc.list_value_length(cells), len(names))
        if pc.any(wrong).as_py():
            first = pc.index(wrong, True).as_py()
            raise DataError(
                f"has {len(cells[first])} fields instead of {len(names)} when cut at '::'",
                file=str(file),
                row=row + first,
                value=lines[first].as_py()[:80],
            )
        flat = cells.flatten()
        arrays = []
        for name in columns:
            column = flat.take(pa.array(np.arange(names.index(name), len(flat), len(names))))
            arrays.append(pc.if_else(pc.equal(column, ""), None, column))
        yield pa.RecordBatch.from_arrays(arrays, names=list(columns))


MOVIELENS_1M = MovieLens(
    "ratings.dat",
    ("user_id", "movie_id", "rating", "timestamp"),
    (
        Side("users.dat", ("user_id", "gender", "age", "occupation", "zip"), "user_id"),
        Side("movies.dat", ("movie_id", "title", "genres"), "movie_id"),
    ),
).format(
    "`ratings.dat`, `users.dat`, `movies.dat` in a folder, or `ml-1m.zip`",
    {
        "label": {"column": "rating", "positive": (4, 5), "negative": (1, 2)},
        "categorical": ("user_id", "movie_id", "gender", "age", "occupation", "zip"),
        "multi_valued": {"genres": "|"},
    },
)
MOVIELENS_25M = MovieLens("ratings.csv", (), (Side("movies.csv", ("movieId", "title", "genres"), "movieId"),)).format(
    "`ratings.csv`, `movies.csv` in a folder, or `ml-25m.zip`; and the other editions written so",
    {
        "label": {"column": "rating", "positive": (3.5, 4, 4.5, 5), "negative": (0.5, 1, 1.5, 2, 2.5)},
        "categorical": ("userId", "movieId"),
        "multi_valued": {"genres": "|"},
    },
)
