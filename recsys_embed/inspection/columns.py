"""What is gathered of a column while its rows go by, in bounded memory."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys_embed.data.bags import split_cells
from recsys_embed.data.values import EXACT_FLOAT
from recsys_embed.inspection.frequent import Frequent
from recsys_embed.inspection.hashes import hash_cells
from recsys_embed.inspection.sample import FOLDS, Sample

_ISO = r"^\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|[+-]\d\d:?\d\d)?)?$"
_WRITTEN = (r"^[\d-]{10}(.?)[\d:.]*(.*)$", r"\1\2")  # what is between date and time, and the zone
_CODE = r"^[+-]?0\d"
EXAMPLES, SHOWN = 3, 80  # values, and characters of each


class Rows:
    """Rows of a chunk as all columns need them: ``hashes [rows]`` uint64, and ``cells [rows]``, fold and label in one
    number below ``FOLDS · labels``."""

    def __init__(self, hashes: np.ndarray, label: np.ndarray, labels: int) -> None:
        self.hashes, self.labels = hashes, labels
        self.cells = (hashes >> np.uint64(62)).astype(np.int64) * labels + label


class Numbers:
    """A column's numbers, for as long as every cell is one.

    ``fractions`` and ``big`` are rows with a fraction, and with a whole number that floats do not tell from the next.
    ``code``: some begin with a zero, as numbers do not. ``rounded``: of the big ones some are written with an exponent.
    """

    def __init__(self) -> None:
        self.count = self.big = self.fractions = 0
        self.low, self.high, self.total = np.inf, -np.inf, 0.0
        self.code = self.rounded = False
        self.alive = True

    def add(self, values: pa.Array, counts: np.ndarray) -> np.ndarray:
        """Take in different values with their rows; returns them as numbers ``[n]`` float64, NaN from the first text
        on."""
        nothing = np.full(len(values), np.nan)
        if not self.alive or not len(values):
            return nothing
        try:
            numbers = pc.utf8_trim_whitespace(values).cast(pa.float64()).to_numpy(zero_copy_only=False)
        except pa.ArrowInvalid:
            numbers = nothing
        if not np.isfinite(numbers).all():
            self.alive = False
            return nothing
        self.count += int(counts.sum())
        self.low, self.high = min(self.low, float(numbers.min())), max(self.high, float(numbers.max()))
        self.total += float(numbers @ counts)
        self.fractions += int(counts[numbers % 1 != 0].sum())
        big = np.abs(numbers) >= EXACT_FLOAT
        if big.any():
            self.big += int(counts[big].sum())
            self.rounded = self.rounded or bool(pc.any(pc.match_substring_regex(values, "[eE]")).as_py())
        self.code = self.code or bool(pc.any(pc.match_substring_regex(values, _CODE)).as_py())
        return np.asarray(numbers)

    def __bool__(self) -> bool:
        return self.alive and self.count > 0

    @property
    def whole(self) -> bool:
        """Whether none has a fraction."""
        return not self.fractions

    @property
    def mean(self) -> float:
        """Of all cells."""
        return self.total / self.count


class Dates:
    """The range of a column of ISO dates or times, for as long as every cell is one.

    ``alike``: so far all are written in one way and zone, and the order of their text is that of time.
    """

    def __init__(self) -> None:
        self.low, self.high = "", ""
        self.alive = self.alike = True
        self._written: set[str] = set()

    def add(self, values: pa.Array) -> None:
        """Take in different values."""
        if not self.alive or not len(values):
            return
        self.alive = bool(pc.all(pc.match_substring_regex(values, _ISO)).as_py())
        if self.alive:
            found = pc.min_max(values).as_py()
            self.low = min(self.low or found["min"], found["min"])
            self.high = max(self.high, found["max"])
            if self.alike:
                self._written |= set(pc.replace_substring_regex(values, *_WRITTEN).unique().to_pylist())
                self.alike = len(self._written) == 1

    def __bool__(self) -> bool:
        return self.alive and bool(self.low)


class Bags:
    """The values inside the cells of a column that a separator cuts."""

    def __init__(self, name: str, separator: str) -> None:
        self.name, self.separator = name, separator
        self.sample, self.frequent = Sample(), Frequent()
        self.values = self.longest = 0

    def add(self, cells: pa.Array) -> None:
        """Take in the cells of all rows that have one."""
        values, offsets = split_cells(cells, self.separator)
        self.values += len(values)
        self.longest = max(self.longest, int(np.diff(offsets).max(initial=0)))
        different, codes = _coded(values)
        hashes, counts = hash_cells(different, self.name), np.bincount(codes, minlength=len(different))
        by_fold = np.zeros((len(hashes), FOLDS, 1), np.int64)
        by_fold[:, 0, 0] = counts
        self.sample.add(hashes, by_fold, np.zeros(len(hashes), np.uint64), np.full(len(hashes), np.nan))
        self.frequent.add(hashes, counts, different)


class Column:
    """A column of text so far. ``unreadable`` says why there is none."""

    def __init__(self, name: str, separator: str | None = None) -> None:
        self.name = name
        self.rows = self.missing = 0
        self.missing_counts = np.zeros((FOLDS, 1), np.int64)
        self.missing_rows = np.zeros(1, np.uint64)  # an array, whose sums wrap around
        self.sample, self.frequent = Sample(), Frequent()
        self.numbers, self.dates = Numbers(), Dates()
        self.bags = Bags(name, separator) if separator else None
        self.examples: list[str] = []
        self.floats = False
        self.unreadable: str | None = None

    @property
    def present(self) -> int:
        """Cells that are not missing."""
        return self.rows - self.missing

    @property
    def distinct(self) -> int:
        """Different values, a missing one not among them; an estimate where the sample is cut."""
        return min(self.sample.distinct, self.present)

    def add(self, cells: pa.Array, rows: Rows) -> None:
        """Take in the next rows."""
        self.rows += len(cells)
        there = cells.is_valid().to_numpy(zero_copy_only=False)
        counted = np.bincount(rows.cells[~there], minlength=FOLDS * rows.labels).reshape(FOLDS, rows.labels)
        wider = ((0, 0), (0, rows.labels - self.missing_counts.shape[1]))
        self.missing_counts = np.pad(self.missing_counts, wider) + counted
        self.missing += int((~there).sum())
        self.missing_rows += rows.hashes[~there].sum(dtype=np.uint64)
        values = cells.drop_null()
        if not len(values):
            return
        different, codes = _coded(values)
        hashes, width = hash_cells(different, self.name), FOLDS * rows.labels
        counts = np.bincount(codes * width + rows.cells[there], minlength=len(hashes) * width)
        counts = counts.reshape(len(hashes), FOLDS, rows.labels)
        sums = np.zeros(len(hashes), np.uint64)
        np.add.at(sums, codes, rows.hashes[there])
        totals = counts.sum((1, 2))
        numbers = self.numbers.add(different, totals)
        self.dates.add(different)
        self.sample.add(hashes, counts, sums, numbers)
        self.frequent.add(hashes, totals, different)
        if len(self.examples) < EXAMPLES:
            seen = [one[:SHOWN] for one in different.slice(0, EXAMPLES).to_pylist()]
            self.examples = list(dict.fromkeys([*self.examples, *seen]))[:EXAMPLES]
        if self.bags is not None:
            self.bags.add(values)

    def top(self, count: int) -> list[tuple[str, int]]:
        """The most frequent values, as far as they are known for sure, and their rows: exactly up to the limit of the
        sample, at least so many beyond it."""
        found = [(text, rows) for _, text, rows in self.frequent.values()]
        if not self.sample.cut and found:
            hashes = np.array([hashed for hashed, _, _ in self.frequent.values()], np.uint64)
            rows = self.sample.totals[np.searchsorted(self.sample.hashes, hashes)].tolist()
            found = sorted(zip([text for text, _ in found], rows, strict=True), key=lambda one: (-one[1], one[0]))
        return [one for one in found if one[1] > self.frequent.lost][:count]


def _coded(values: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Different values in the order in which they appear, and the number of each row's."""
    coded = values.dictionary_encode()
    return coded.dictionary, coded.indices.to_numpy(zero_copy_only=False).astype(np.int64)
