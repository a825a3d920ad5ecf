"""F21: training again and again in one process, stopped in the middle each time, leaks nothing.

A cycle opens the data set, trains, is stopped by SIGTERM after an epoch, goes on from the checkpoint, exports, loads
and predicts. After some cycles of warm-up: resident memory, open files, ``/dev/shm`` and temporary files.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from bench.injections.artifacts import schema, table
from bench.injections.children import call
from bench.injections.tally import NotBuiltError, Scale, Tally
from recsys_embed.data import prepare

GROWTH = 0.05

CYCLES = """
import gc, json, os, shutil, signal, sys, tempfile
from pathlib import Path
import psutil
from bench.injections.artifacts import configured, table
from recsys_embed.data import EncodedDataset, prepare
from recsys_embed.export import export, load
from recsys_embed.recommender import build_recommender
from recsys_embed.training.interrupt import Interrupted
from recsys_embed.training.trainer import train

data, out, cycles = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
process = psutil.Process()

def stop(line):
    os.kill(os.getpid(), signal.SIGTERM)

def cycle(turn):
    config = configured(turn)
    checkpoints = out / "checkpoints"
    stopped = False
    for hook in (stop, None):
        dataset = EncodedDataset.open(data)
        model = build_recommender(config, dataset.features, len(dataset.dense))
        try:
            train(model, dataset, config.training, checkpoints=checkpoints, progress=False, on_epoch=hook)
        except Interrupted:
            stopped = True
    scores = load(export(model, config, dataset.encoder, out / "model")).predict(table(50))
    assert len(scores) == 50
    prepare(table(200), {"label": "clicked", "categorical": ["user"], "split": {"column": "part"}})  # temporary
    shutil.rmtree(checkpoints)
    return stopped

for turn in range(cycles):
    stopped = cycle(turn)
    gc.collect()
    shm = os.listdir("/dev/shm") if os.path.isdir("/dev/shm") else []
    print(json.dumps({
        "stopped": stopped, "rss": process.memory_info().rss,
        "fds": process.num_fds(), "threads": process.num_threads(),
        "shm": sum("torch" in name or str(os.getpid()) in name for name in shm),
        "temporary": sorted(os.listdir(tempfile.gettempdir())), "out": sorted(os.listdir(out)),
    }), flush=True)
"""


def inject(scale: Scale, folder: Path) -> Tally:
    """Cycles in a process with a temporary folder of its own."""
    if importlib.util.find_spec("psutil") is None:
        raise NotBuiltError("psutil, of the extra dev, is not installed")
    tally, cycles = Tally(), scale.of(12, 60)
    warm = scale.of(5, 10)
    for name in ("temporary", "out"):
        (folder / name).mkdir()
    prepare(table(1500), schema(), folder / "data")
    code, lines, errors = call(
        CYCLES, folder / "data", folder / "out", cycles, timeout=600, TMPDIR=str(folder / "temporary")
    )
    if code or len(lines) < cycles:
        tally.breach(f"the process ended with {code} after {len(lines)} cycles: {errors}")
        return tally
    tally.injected = sum(line["stopped"] for line in lines)
    tally.detected = tally.injected
    before, after = lines[warm - 1], lines[-1]
    growth = after["rss"] / before["rss"] - 1
    tally.notes.append(
        f"resident memory {before['rss'] / 1e6:.0f} MB after {warm} cycles, {after['rss'] / 1e6:.0f} MB after {cycles} "
        f"({growth:+.1%}); open files {before['fds']} and {after['fds']}, threads {before['threads']} and "
        f"{after['threads']}"
    )
    if tally.injected < cycles:
        tally.breach(f"only {tally.injected} of {cycles} cycles were stopped")
    if growth > GROWTH:
        tally.breach(f"resident memory grew by {growth:.1%}")
    if after["fds"] > before["fds"]:
        tally.breach(f"open files: {before['fds']} and then {after['fds']}")
    if after["shm"]:
        tally.breach(f"{after['shm']} files are left in /dev/shm")
    for what, allowed in (("temporary", []), ("out", ["model"])):
        # torch makes a cache for its compiler when it is imported, one a user and machine, and keeps it.
        left = [name for name in after[what] if name not in allowed and not name.startswith("torchinductor_")]
        if left:
            tally.breach(f"files are left: {left[:5]}")
    tally.recovered = tally.injected if not tally.broken else 0
    return tally
