"""Memory does not grow with rows: what a pass takes at its peak, in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from recsys_embed.data.columns import Columns
from recsys_embed.data.storage import SplitFile

WIDTH, ROWS, BLOCK = 40, 800_000, 100_000
MEMORY = 16_000_000

PASS = """
import json, sys
from pathlib import Path
from recsys_embed.data.loader import batches
from recsys_embed.data.stored import StoredRows
from recsys_embed.provenance import peak_rss_bytes, reset_peak_rss
import psutil

rows = StoredRows(Path(sys.argv[1]), 26)
list(zip(range(3), batches(rows.read(0, 5000), 1000, 1)))  # whatever is loaded late is loaded
reset_peak_rss()
before, labels, seed = psutil.Process().memory_info().rss, 0.0, json.loads(sys.argv[2])
if seed == "mapped":
    labels = sum(float(column.sum()) for column in (*rows.whole().ids, *rows.whole().dense))
else:
    for batch in batches(rows, 1000, seed, memory=int(sys.argv[3])):
        labels += float(batch.label.sum())
print(json.dumps([rows.nbytes, peak_rss_bytes() - before, labels]))
"""


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("split") / "train.arrow"
    file = SplitFile.create(path, ROWS, [str(n) for n in range(WIDTH)], [None] * 26, [4] * 26)
    for first in range(0, ROWS, BLOCK):
        ids = np.arange(first, first + BLOCK, dtype=np.int32)
        numbers = np.ones(BLOCK, np.float32)
        file.write(path, first, [0] * 26, Columns((ids,) * 26, (numbers,) * 13, numbers))
    return path


def passed(split: Path, seed: object) -> tuple[int, int, float]:
    """Bytes of the split, of the peak above what there was before, and the labels of a pass."""
    command = [sys.executable, "-c", PASS, str(split), json.dumps(seed), str(MEMORY)]
    size, peak, labels = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return size, peak, labels


@pytest.mark.parametrize("seed", [None, 1])
def test_a_pass_holds_no_more_than_it_may(split: Path, seed: int | None) -> None:
    size, peak, labels = passed(split, seed)
    assert labels == ROWS
    assert size > 7 * MEMORY
    assert peak < 2.5 * MEMORY


def test_a_mapped_pass_holds_all_of_it(split: Path) -> None:
    """So the tests above could fail."""
    size, peak, _ = passed(split, "mapped")
    assert peak > 0.9 * size
