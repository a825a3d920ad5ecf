"""Rows in the shape of Criteo's: a label, 13 counts and 26 categories of 8 hex digits, tab-separated, without quotes.

Categories are drawn by a Zipf law over the cardinalities of the Kaggle file, counts from a geometric law; a cell is
missing where the original often is. Block by block, from seeds of their own: more rows are the same rows and others.
"""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv

if TYPE_CHECKING:
    from recsys_embed.config import DataConfig
    from recsys_embed.data import EncodedDataset

CARDINALITIES = (
    1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194, 27, 14992, 5461306, 10, 5652,
    2173, 4, 7046547, 18, 15, 286181, 105, 142572,
)  # fmt: skip
NUMERIC = tuple(f"I{i}" for i in range(1, 14))
CATEGORICAL = tuple(f"C{i}" for i in range(1, 27))
BLOCK = 500_000
EXPONENT, MISSING = 1.05, (0, 0.2, 0.45)


def write_rows(path: Path, rows: int) -> None:
    """A file of so many rows, with a header. Two processes make it."""
    with open(path, "wb") as file, ProcessPoolExecutor(2) as pool:
        file.write(("\t".join(("label", *NUMERIC, *CATEGORICAL)) + "\n").encode())
        for text in pool.map(block, range(-(-rows // BLOCK)), [min(BLOCK, rows - i) for i in range(0, rows, BLOCK)]):
            file.write(text)


def config_of(path: Path) -> DataConfig:
    """How such a file is prepared: numbers by their logarithm."""
    from recsys_embed.config import DataConfig

    return DataConfig(path=str(path), categorical=CATEGORICAL, numeric=dict.fromkeys(NUMERIC, "log"), separator="\t")


def prepared(folder: Path, rows: int) -> tuple[DataConfig, EncodedDataset]:
    """So many rows, written and prepared in a folder."""
    from recsys_embed.data import prepare

    write_rows(folder / "rows.tsv", rows)
    config = config_of(folder / "rows.tsv")
    return config, prepare(config, folder / "data")


def block(number: int, rows: int) -> bytes:
    """Rows of a block as text."""
    draw = np.random.default_rng([7, number])
    columns: dict[str, pa.Array] = {"label": pa.array((draw.random(rows) < 0.25).astype(np.int8))}
    for i, name in enumerate(NUMERIC):
        counts = draw.geometric(1 / (2 + 40 * i), rows) - 1
        columns[name] = pa.array(counts, mask=draw.random(rows) < MISSING[i % 3])
    for i, (name, size) in enumerate(zip(CATEGORICAL, CARDINALITIES, strict=True)):
        columns[name] = pa.array(_hex(zipf(draw, size, rows), i), mask=draw.random(rows) < MISSING[i % 3] / 3)
    sink = pa.BufferOutputStream()
    options = pacsv.WriteOptions(include_header=False, delimiter="\t", quoting_style="none")
    pacsv.write_csv(pa.table(columns), sink, options)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


def zipf(draw: np.random.Generator, size: int, count: int) -> np.ndarray:
    """Ranks from 0, by the inverse of the continuous law's distribution function."""
    power = 1 - EXPONENT
    ranks = (1 + draw.random(count) * (size**power - 1)) ** (1 / power)
    return np.minimum(ranks.astype(np.int64) - 1, size - 1)


def _hex(ranks: np.ndarray, column: int) -> np.ndarray:
    """8 hex digits of each rank: a bijection of 32 bits, other for every column."""
    mixed = ((ranks + column * 0x1000003) * 0x9E3779B1 & 0xFFFFFFFF).astype(">u4")
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)
    raw = mixed.view(np.uint8).reshape(-1, 4)
    text = np.empty((len(ranks), 8), np.uint8)
    text[:, ::2], text[:, 1::2] = digits[raw >> 4], digits[raw & 15]
    return np.asarray(text.view("S8").ravel().astype("U8"))
