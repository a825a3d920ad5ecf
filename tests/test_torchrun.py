"""The command under torchrun, as users type it: what two processes print, and what they do not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import optuna
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
COUNTING = """
import atexit, json, os
from pathlib import Path
import torch.distributed as dist
from recsys_embed import cli

counts, destroy = [], dist.destroy_process_group

def count():
    tasks = Path("/proc/self/task").iterdir()
    counts.append(sum("gloo_runloop" in (task / "comm").read_text() for task in tasks))

def destroyed():
    count()
    destroy()

def ended():
    count()
    Path(f"threads-{os.environ['RANK']}.json").write_text(json.dumps(counts))

dist.destroy_process_group = destroyed
atexit.register(ended)
cli.main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_nobody_but_the_first_rank_says_anything(tmp_path: Path, world: int):
    """Row-wise is the placement whose exchange uses names that torch has deprecated; libraries may say nothing.

    The sharded back end is asked for: torchrun gives a process group to one rank as well.
    """
    done = run(tmp_path, world, "train", "--set", "embedding.backend=sharded")
    assert done.returncode == 0, done.stderr
    told = json.loads((tmp_path / "out" / "sharding.json").read_text())
    assert {row["placement"] for row in told["tables"]} == {"row_wise"}
    assert done.stderr.split("\n") == [*ShardingReport(**told).text().split("\n"), ""]
    assert json.loads(done.stdout)["status"] == "ok"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the names of threads are read from /proc")
def test_the_process_groups_threads_end_before_python_does(tmp_path: Path):
    """One that let go of the last agreement's tensor while Python ended aborted its process, on a busy machine."""
    (tmp_path / "counting.py").write_text(COUNTING)
    done = run(tmp_path, 2, "train", "--set", "embedding.backend=sharded", program=["counting.py"])
    assert done.returncode == 0, done.stderr
    for rank in range(2):
        before, after = json.loads((tmp_path / f"threads-{rank}.json").read_text())
        assert before > 0 == after


@pytest.mark.slow
def test_all_ranks_take_part_in_a_search_and_one_writes(tmp_path: Path) -> None:
    search = "{ methods = ['magnitude', 'random'], trials = 3, seeds = [0] }"
    settings = ["embedding.budget=0.4", f"search={search}", "sharding.placement={'*'='auto'}"]
    done = run(tmp_path, 2, "search", *[part for one in settings for part in ("--set", one)])
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert [(row["method"], row["trial"]) for row in told["trials"]] == [
        ("magnitude", 1), ("random", 1), ("random", 2), ("random", 3),
    ]  # fmt: skip
    assert {row["status"] for row in told["trials"]} <= {"ok", "pruned"}
    assert [row["found_by"] for row in told["results"]] == ["magnitude", "random"]
    study = optuna.load_study(study_name="recsys_embed/random", storage=f"sqlite:///{tmp_path / 'out' / 'trials.db'}")
    assert [trial.state.is_finished() for trial in study.trials] == 3 * [True]
    assert (tmp_path / "out" / "best" / "model" / "manifest.json").exists()


def run(
    folder: Path, world: int, command: str, *options: str, program: Sequence[str] = ("-m", "recsys_embed")
) -> subprocess.CompletedProcess[str]:
    """The command on ``world`` processes, over CONFIG, into ``folder/out``."""
    (folder / "c.toml").write_text(CONFIG)
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    arguments = [*program, command, "c.toml", "--out", "out", "--json", *options]
    return subprocess.run(
        [sys.executable, *launcher, *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PACKAGE)},  # torchrun itself asks for threads
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
