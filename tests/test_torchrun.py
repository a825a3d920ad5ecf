"""The command under torchrun, as users type it: what two processes print, and what they do not."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import warnings
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
def test_nobody_but_the_first_rank_says_anything(tmp_path: Path):
    """Row-wise is the placement whose exchange uses names that torch has deprecated; libraries may say nothing."""
    (tmp_path / "c.toml").write_text(CONFIG)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "recsys_embed", "train"]
    done = subprocess.run(
        [sys.executable, *command, "c.toml", "--out", "out", "--json"],
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


def test_what_is_dropped_is_told_by_its_words():
    """A deprecation that is not known, another category, and other lines of the same logger are heard as ever."""
    from recsys_embed.tables import sharded

    heard: list[str] = []
    listener = logging.Handler()
    listener.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("torch.fx._symbolic_trace")
    logger.addHandler(listener)
    known = "`torch.distributed.reduce_scatter_tensor` is deprecated. Please use `torch.distributed.reduce_scatter_sin"
    there = {"filename": "c10d_logger.py", "lineno": 1, "module": "torch.distributed.c10d_logger"}
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            sharded._hush()
            warnings.warn_explicit(known, FutureWarning, **there)
            warnings.warn_explicit(known.replace("reduce_scatter", "broadcast"), FutureWarning, **there)
            warnings.warn_explicit(known, UserWarning, **there)
            warnings.warn_explicit(known, FutureWarning, **{**there, "module": "mine"})
        logger.warning("is_fx_tracing will return true for both fx.symbolic_trace and torch.export. Please use x")
        logger.warning("is_fx_tracing is something else")
    finally:
        logger.removeHandler(listener)
        logger.removeFilter(sharded._is_news)
    assert [str(one.message)[:35] for one in caught] == ["`torch.distributed.broadcast_tensor", *[known[:35]] * 2]
    assert heard == ["is_fx_tracing is something else"]
