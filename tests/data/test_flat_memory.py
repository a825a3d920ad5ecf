"""What reads raw rows takes memory that does not grow with them: the peak in a process of its own, over a growing file.

Eight times the rows, in the same process, take less than a third of the bytes that were added.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from tests.data.allocators import giving_back

FEW, MORE = 80_000, 640_000
GROWTH = 16_000_000  # bytes; a row has 110

CHILD = """
import json, sys
from pathlib import Path
import pandas as pd
from recsys_embed import export
from recsys_embed.data import blocks, delimited, parquet, parts, prepare, rows, sources, tally
from recsys_embed.provenance import peak_rss_bytes, reset_peak_rss

what, out, *files = sys.argv[1:]
# Limits that few rows reach: what they bound is no growth.
delimited.BLOCK = 1 << 17
parts.PART_BYTES = 4 << 20
blocks.BLOCK_BYTES, tally.RANGE_VALUES = 1 << 20, 1 << 11
export.CHUNK_ROWS = rows.CHUNK_ROWS = parquet._ROWS = sources._HASHED_ROWS = 1 << 13

class Scores:
    '''A model's part in scoring a file: numbers for a chunk of rows.'''
    class encoder: columns = ["user", "item", "price"]
    class config:
        class data: separator, format = None, "auto"
    def predict(self, frame):
        return frame["price"].astype(float)

schema = {"label": "clicked", "categorical": ["user", "item"], "numeric": ["price"]}
reads = {
    "predict": lambda rows, out: export.predict_file(Scores(), rows, out + ".csv"),
    "prepare": lambda rows, out: sum(prepare(rows, schema, out, workers=1).schema["rows"].values()),
}
reads["frame"] = reads["prepare"]
found = []
inputs = [pd.read_parquet(file) for file in files] if what == "frame" else files
for number, given in enumerate(inputs):
    reset_peak_rss()
    done = reads[what](given, f"{out}-{number}")
    found.append([done, peak_rss_bytes()])
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of so many rows, of long categories."""
    home, draw = tmp_path_factory.mktemp("rows"), np.random.default_rng(0)
    names = np.array([f"{n:090d}" for n in range(300)])
    frame = pd.DataFrame(
        {
            "clicked": draw.integers(0, 2, MORE),
            "user": names[draw.integers(0, 300, MORE)],
            "item": draw.integers(0, 100, MORE).astype(str),
            "price": draw.random(MORE).round(6),
        }
    )
    for rows in (FEW, MORE):
        frame[:rows].to_csv(home / f"{rows}.csv", index=False)
        frame[:rows].to_parquet(home / f"{rows}.parquet", row_group_size=20_000, compression=None, use_dictionary=False)
    return home


@pytest.mark.parametrize(
    ("what", "suffix"), [("predict", "csv"), ("predict", "parquet"), ("prepare", "csv"), ("frame", "parquet")]
)
def test_memory_does_not_grow_with_rows(home: Path, tmp_path: Path, what: str, suffix: str) -> None:
    files = [str(home / f"{rows}.{suffix}") for rows in (FEW, MORE)]
    command = [sys.executable, "-c", CHILD, what, str(tmp_path / "out"), *files]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=giving_back())
    found = json.loads(done.stdout)
    assert [rows for rows, _ in found] == [FEW, MORE]
    assert found[1][1] - found[0][1] < GROWTH, found
