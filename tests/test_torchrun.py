"""The command under torchrun, as users type it: what two processes print, and what they do not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from recsys_embed.sharding import ShardingReport

pytest.importorskip("torchrec", reason="tables on several ranks need TorchRec")

CONFIG = """
[data.planted]
rows = 300
cardinalities = [300, 50]
[model]
dim = 4
cross_layers = 1
hidden = [8]
[training]
epochs = 1
batch_size = 100
[sharding]
placement = { "*" = "row_wise" }
[tracking]
enabled = false
"""
PACKAGE = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_nobody_but_the_first_rank_says_anything(tmp_path: Path, world: int):
    """Row-wise is the placement whose exchange uses names that torch has deprecated; libraries may say nothing.

    The sharded back end is asked for: torchrun gives a process group to one rank as well.
    """
    (tmp_path / "c.toml").write_text(CONFIG)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    command = ["-m", "recsys_embed", "train", "c.toml", "--out", "out", "--json", "--set", "embedding.backend=sharded"]
    done = subprocess.run(
        [sys.executable, *launcher, *command],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PACKAGE)},  # torchrun itself asks for threads
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "out" / "sharding.json").read_text())
    assert {row["placement"] for row in told["tables"]} == {"row_wise"}
    assert done.stderr.split("\n") == [*ShardingReport(**told).text().split("\n"), ""]
    assert json.loads(done.stdout)["status"] == "ok"
