"""F1: SIGKILL at a random moment of a save, over an older checkpoint.

A process forks one writer for each kill; the writer saves checkpoint after checkpoint, each with its step in every
cell. After the kill the newest valid checkpoint must be there, be whole, and be no older than the last save that had
ended; the next save must leave no temporary folder behind. A kill counts where it left one: it landed in a save.
"""

from __future__ import annotations

from pathlib import Path

from bench.injections.children import call
from bench.injections.tally import Scale, Tally

LANDED = 0.3

KILLS = """
import json, os, random, shutil, signal, sys, time, warnings
from pathlib import Path
import torch
from recsys_embed.training import checkpoints

torch.set_num_threads(1)
folder, kills, megabytes = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
draw = random.Random(0)

def save(step):
    cells = torch.full((megabytes, 250_000), float(step))
    checkpoints.save(folder, step, {"table": cells, "step": torch.tensor(step)}, {"seen": step})

def seconds(step):
    begin = time.perf_counter()
    save(step)
    return time.perf_counter() - begin

step = 2
usual = max(seconds(1), seconds(2))
for kill in range(kills):
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        for one in range(step + 1, step + 1000):
            os.write(into, b"x")
            save(one)
        os._exit(0)
    os.close(into)
    os.read(out, 1)
    time.sleep(draw.uniform(0, 2 * usual))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    begun = 1 + len(os.read(out, 1000))  # saves that had begun
    os.close(out)
    landed = any(one.name.startswith(".tmp-") for one in folder.iterdir())
    with warnings.catch_warnings(record=True) as skipped:
        warnings.simplefilter("always")
        found = checkpoints.newest(folder)
    least = step + begun - 1
    whole = found is not None and len(set(found.tensors["table"].flatten()[::997].tolist())) == 1
    right = whole and int(found.tensors["step"]) == found.meta["seen"] == int(found.tensors["table"][0, 0])
    told = {
        "landed": landed, "found": found is not None, "right": bool(right), "skipped": len(skipped),
        "late": found is not None and found.meta["seen"] < least,
    }
    step = found.meta["seen"] if found is not None else step
    step += 1
    save(step)
    told["left"] = sum(one.name.startswith((".tmp-", ".old-")) for one in folder.iterdir())
    print(json.dumps(told), flush=True)
"""


def inject(scale: Scale, folder: Path) -> Tally:
    """10 kills in saves of 16 MB, or 60 in saves of 128 MB."""
    tally, kills, size = Tally(), scale.of(10, 60), scale.of(16, 128)
    code, lines, errors = call(KILLS, folder / "checkpoints", kills, size, timeout=900)
    if code or len(lines) < kills:
        tally.breach(f"the process ended with {code} after {len(lines)} kills: {errors}")
    for line in lines:
        tally.injected += line["landed"]
        tally.detected += line["landed"]
        tally.lost += not line["found"] or line["late"]
        tally.silent += line["found"] and not line["right"]
        tally.recovered += line["landed"] and line["right"] and not line["late"]
        if line["left"]:
            tally.breach("a temporary folder is left after the next save")
        if line["skipped"]:
            tally.breach("a damaged checkpoint was published, and skipped")
    tally.notes.append(f"{tally.injected} of {len(lines)} kills landed in a save of {size} MB")
    if tally.injected < LANDED * kills:
        tally.breach(f"only {tally.injected} of {kills} kills landed in a save")
    return tally
