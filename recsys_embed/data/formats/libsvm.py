"""libsvm and libffm files: a label, then ``index:value`` or ``field:index:value`` for what is not zero.

A row is a bag of those whose value is 1, the one-hot features, named ``index`` or ``field:index``: of the line
``1 0:3:1 2:17:1`` the column ``features`` holds ``0:3 2:17``. The column ``field_2`` holds the indices of field 2
alone, here ``17``. Other values are numbers, with columns of their own: ``value_5`` is the value of index 5
(``value_2:5`` in field 2), and 0 where a row does not name it. What is read as a number is not in the bag; a number
that would be in it is an error.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_embed.data.bags import offsets_of
from recsys_embed.data.formats.base import Format
from recsys_embed.data.formats.tables import unpacked
from recsys_embed.data.lines import read_lines
from recsys_embed.data.parts import count_plain, cut_lines
from recsys_embed.data.streams import find
from recsys_embed.data.values import CellError, to_numbers
from recsys_embed.errors import DataError

_COLUMN = re.compile(r"label|features|field_(?P<field>\d+)|value_(?P<key>\d+(:\d+)?)")
_BLANK = re.compile(rb"^[ \t\v\f\r]+$", re.MULTILINE)
_SUFFIXES = (".txt", ".libsvm", ".svm", ".libffm", ".ffm", ".data")


@dataclass(frozen=True)
class Rows:
    """R lines, the first of which is row ``first``, as N tokens.

    ``labels [R]`` text, null where there is none; ``places [N]``, which of the lines a token stands in, from 0; the
    parts of the tokens, ``fields [N]`` (null without one), ``indices [N]`` and ``texts [N]`` of the values.
    """

    file: Path
    first: int
    labels: pa.Array
    places: np.ndarray
    tokens: pa.Array
    fields: pa.Array
    indices: pa.Array
    texts: pa.Array

    @cached_property
    def keys(self) -> pa.Array:
        """What each token is named: ``index`` or ``field:index``."""
        if self.fields.null_count == len(self.fields):
            return self.indices
        return pc.coalesce(pc.binary_join_element_wise(self.fields, self.indices, ":"), self.indices)

    @cached_property
    def values(self) -> np.ndarray:
        """The values ``[N]`` float64.

        Raises:
            DataError: one is no finite number.
        """
        encoded = self.texts.dictionary_encode()
        codes = encoded.indices.to_numpy()
        try:
            found = to_numbers(encoded.dictionary)
            bad = int(np.isnan(found).argmax()) if np.isnan(found).any() else None
        except CellError as error:
            bad = error.index
        if bad is not None:
            raise self.error("the value is no finite number", int((codes == bad).argmax()))
        return np.asarray(found[codes])

    def error(self, message: str, token: int, column: str | None = None) -> DataError:
        """An error about a token."""
        row, value = self.first + int(self.places[token]), self.tokens[token].as_py()
        return DataError(message, file=str(self.file), column=column, row=row, value=value)


def names(file: Path) -> list[str]:
    """The label and the bag; the fields of the first row. Further fields, and values, can be asked for."""
    for rows in _read_rows(file):
        fields = rows.fields.filter(pa.array(rows.places == 0)).drop_null().unique().to_pylist()
        return ["label", "features", *(f"field_{field}" for field in sorted(fields, key=int))]
    raise DataError("is empty", file=str(file))


def read(
    file: Path, columns: Sequence[str], part: tuple[int, int] | None = None, first_row: int = 1
) -> Iterator[pa.RecordBatch]:
    """Some columns as text."""
    asked = {name: _COLUMN.fullmatch(name) for name in columns}
    for name, match in asked.items():
        if match is None:
            raise DataError("there are label, features, field_<n> and value_<n>", file=str(file), column=name)
    numbers = [match["key"] for match in asked.values() if match and match["key"]]
    for rows in _read_rows(file, part, first_row):
        one_hot = rows.values != 0
        if numbers:
            one_hot &= ~_flags(pc.is_in(rows.keys, value_set=pa.array(numbers)))
        fields = rows.fields.dictionary_encode()
        codes = fields.indices.fill_null(-1).to_numpy()
        number = {field: code for code, field in enumerate(fields.dictionary.to_pylist())}
        arrays = []
        for name, match in asked.items():
            assert match is not None
            if match["key"]:
                arrays.append(_numbers(rows, name, _flags(pc.equal(rows.keys, match["key"]))))
            elif match["field"]:
                there = one_hot & (codes == number.get(match["field"], -2))
                arrays.append(_bags(rows, name, there, rows.indices))
            elif name == "features":
                arrays.append(_bags(rows, name, one_hot, rows.keys))
            else:
                arrays.append(_labels(rows))
        yield pa.RecordBatch.from_arrays(arrays, names=list(columns))


def count_rows(lines: bytes) -> int | None:
    """Rows in some lines; those of a comment or of blanks alone, which are none, are not counted here."""
    return None if b"#" in lines or _BLANK.search(lines) else count_plain(lines)


def _read_rows(file: Path, part: tuple[int, int] | None = None, first_row: int = 1) -> Iterator[Rows]:
    row = first_row
    for _, lines in read_lines(file, part=part, first_row=first_row):
        if pc.any(pc.match_substring(lines, "#")).as_py():  # what follows is a comment
            lines = pc.replace_substring_regex(lines, "#.*$", "")
        lines = pc.ascii_trim_whitespace(lines)
        lines = lines.filter(pc.not_equal(lines, ""))
        if len(lines):
            yield take_apart(lines, file, row)
            row += len(lines)


def take_apart(lines: pa.Array, file: Path, first: int) -> Rows:
    """Cut lines, none of them blank, into labels and tokens.

    Raises:
        DataError: a token that is neither ``index:value`` nor ``field:index:value``.
    """
    words = pc.ascii_split_whitespace(lines)
    flat, cuts = words.flatten(), words.offsets.to_numpy()
    heads = flat.take(pa.array(cuts[:-1]))
    unlabelled = pc.match_substring(heads, ":")
    is_token = np.ones(len(flat), bool)
    is_token[cuts[:-1]] = _flags(unlabelled)
    places = np.repeat(np.arange(len(lines)), np.diff(cuts))[is_token]
    tokens = flat.filter(pa.array(is_token))
    parts = pc.split_pattern(tokens, ":")
    flat, cuts = parts.flatten(), parts.offsets.to_numpy()
    lengths = np.diff(cuts)
    indices = flat.take(pa.array(np.maximum(cuts[1:] - 2, 0)))  # a single part is no token, and is told below
    texts = flat.take(pa.array(cuts[1:] - 1))
    fields = flat.take(pa.array(cuts[:-1], mask=lengths != 3))
    well = (lengths == 2) | (lengths == 3)
    well &= _flags(pc.and_(pc.ascii_is_decimal(indices), pc.fill_null(pc.ascii_is_decimal(fields), True)))
    rows = Rows(file, first, pc.if_else(unlabelled, None, heads), places, tokens, fields, indices, texts)
    if not well.all():
        raise rows.error("is not index:value or field:index:value", int(well.argmin()))
    return rows


def _labels(rows: Rows) -> pa.Array:
    if rows.labels.null_count:
        first = pc.index(rows.labels.is_null(), True).as_py()
        raise DataError("begins without a label", file=str(rows.file), column="label", row=rows.first + first)
    return rows.labels


def _bags(rows: Rows, column: str, kept: np.ndarray, names: pa.Array) -> pa.Array:
    """Of each row the names of the tokens that are kept, with blanks between; null where there is none."""
    tokens = np.flatnonzero(kept)
    other = rows.values[tokens] != 1
    if other.any():
        first = int(tokens[other.argmax()])
        raise rows.error(f"only 1 is a category: read other values as numbers, value_{rows.keys[first]}", first, column)
    cuts = offsets_of(np.bincount(rows.places[tokens], minlength=len(rows.labels))).astype(np.int32)
    joined = pc.binary_join(pa.ListArray.from_arrays(pa.array(cuts), names.take(pa.array(tokens))), " ")
    return pc.if_else(pc.equal(joined, ""), None, joined)


def _numbers(rows: Rows, column: str, here: np.ndarray) -> pa.Array:
    """The value of each row's one token among those that are ``here``; 0 where there is none."""
    tokens = np.flatnonzero(here)
    places = rows.places[tokens]
    twice = places[1:] == places[:-1]
    if twice.any():
        raise rows.error("stands twice in its row", int(tokens[1:][twice.argmax()]), column)
    found = np.full(len(rows.labels), -1)
    found[places] = tokens
    return rows.texts.take(pa.array(found, mask=found < 0)).fill_null("0")


def _flags(array: pa.Array) -> np.ndarray:
    return np.asarray(array.to_numpy(zero_copy_only=False))


LIBSVM = Format(
    files="lines `label index:value …`, or `label field:index:value …` as of libffm",
    roles={
        "label": {"column": "label", "positive": (1,), "negative": (0, -1)},
        "multi_valued": {"features": " "},
    },
    find=lambda path: find(path, lambda name: unpacked(name).endswith(_SUFFIXES)),
    names=names,
    read=read,
    cut=lambda number, file: cut_lines(number, file, count_rows),
)
