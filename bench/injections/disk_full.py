"""F3: the disk fills up while something is written over something good.

The disk is a tmpfs of 24 MB, filled with ballast but for a random share of what is needed; where mounting is not
allowed, a limit on the size of files (``RLIMIT_FSIZE``), which fails the same calls with another number. A write into a
mapped file can kill the process: it is a process of its own, and the next kind has another.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.injections.children import call
from bench.injections.tally import Scale, Tally

KINDS = (
    "checkpoint",
    "model folder",
    "encoded data set",
    "results.csv",
    "predictions",
    "prediction file",
    "sqlite of a search",
    "journal of a search",
)

FILL = """
import ctypes, json, os, random, resource, sys
from pathlib import Path

def small_disk(place):
    # In a mount namespace of this process: the disk goes with it, however it ends.
    libc, private = ctypes.CDLL(None, use_errno=True), (1 << 14) | (1 << 18)
    return (
        sys.platform == "linux"
        and libc.unshare(0x20000) == 0
        and libc.mount(b"none", b"/", None, private, None) == 0
        and libc.mount(b"tmpfs", os.fsencode(place), b"tmpfs", 0, b"size=24m") == 0
    )

place, times, kinds = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3].split(",")
tmpfs = small_disk(place)

from bench.injections import artifacts
from bench.injections.artifacts import encoded, fresh, make, table
from recsys_embed.errors import RecsysEmbedError
from recsys_embed.export import load, predict_file
from recsys_embed.search.storage import open_storage, optuna, storage_errors

ROWS = {"model folder": 1500, "results.csv": 20_000, "prediction file": 3000, "predictions": 100_000}

class Scores:
    def __init__(self, root):
        self.root = root
    def read(self):
        return self.root.read_text()

class Kept:
    def __init__(self, root, where):
        self.root, self.where = root, where
    def read(self):
        study = optuna().load_study(study_name="s", storage=open_storage(self.where, self.root.parent))
        return [(trial.number, trial.values, trial.user_attrs) for trial in study.trials]

def trials(home, where):
    def write(turn):
        with storage_errors(where, home):
            storage = open_storage(where, home)
            study = optuna().create_study(storage=storage, study_name="s", load_if_exists=True)
            row = "x" * (100_000 << turn)  # more than all before it
            study.add_trial(optuna().trial.create_trial(value=turn, user_attrs={"row": row}))
        return Kept(home / ("trials.db" if where == "sqlite" else "trials.journal"), where)
    return write

def writer(kind, home):
    if kind.endswith("of a search"):
        return trials(home, kind.split()[0])
    rows = ROWS.get(kind, 20_000)
    if kind != "prediction file":
        if kind == "model folder":
            encoded(home, rows)
        return lambda turn: make(kind, home, turn=turn, rows=rows)
    predictor, source = load(make("model folder", home, rows=1500).root), home / "rows.csv"
    table(rows).to_csv(source, index=False)
    def write(turn):
        predict_file(predictor, source, home / "scores.csv")
        return Scores(home / "scores.csv")
    return write

def files_of(path):
    return [one for one in (path.rglob("*") if path.is_dir() else [path]) if one.is_file()]

def left_in(folder):
    return sorted(str(one.relative_to(folder)) for one in folder.rglob("*") if one.name.startswith("."))

def try_it(kind, home, write, good, turn, draw):
    before, sizes = good.read(), [file.stat().st_size for file in files_of(good.root)]
    ballast = place / "ballast"
    if tmpfs:
        status = os.statvfs(place)
        left = int(sum(sizes) * draw.uniform(0.05, 0.9))
        ballast.write_bytes(bytes(max(0, status.f_bavail * status.f_frsize - left)))
    else:
        hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(max(sizes) * draw.uniform(0.05, 0.9)), hard))
    told = {"kind": kind, "tmpfs": tmpfs, "fired": True, "typed": False, "error": ""}
    try:
        write(turn)
        told["fired"] = False
    except RecsysEmbedError as error:
        told |= {"typed": True, "error": str(error), "names": str(good.root.parent) in str(error)}
    except BaseException as error:
        told["error"] = f"{type(error).__name__}: {error}"
    finally:
        if tmpfs:
            ballast.unlink()
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    try:
        told["kept"] = good.read() == before
    except Exception as error:
        told |= {"kept": False, "error": told["error"] + f"; then {type(error).__name__}: {error}"}
    good = write(turn)  # there is room again
    good.read()
    print(json.dumps({**told, "left": left_in(home)}), flush=True)
    return good

for kind in kinds:
    draw, home = random.Random(kind), fresh(place / "home")
    write = writer(kind, home)
    good = write(0)
    for turn in range(1, times + 1):
        good = try_it(kind, home, write, good, turn, draw)
    print(json.dumps({"done": kind}), flush=True)
"""


def inject(scale: Scale, folder: Path) -> Tally:
    """Each kind of artifact, some times; to be kept are the old one, the type of the error, and an orderly folder."""
    tally, times, todo = Tally(), scale.of(2, 5), list(KINDS)
    while todo:
        place = folder / f"disk-{len(todo)}"
        place.mkdir()
        code, lines, errors = call(FILL, place, times, ",".join(todo), timeout=600)
        for line in lines:
            if "done" in line:
                todo.remove(line["done"])
            elif line["fired"]:
                _count(line, tally)
        if todo:
            died = todo.pop(0)
            tally.injected += 1
            tally.breach(f"{died}: the process ended with {code} ({'SIGBUS' if code == -7 else errors[-300:]})")
    for kind in KINDS:
        if not any(kind in one for one in (*fired(tally), *tally.broken)):
            tally.breach(f"{kind}: the disk was never full")
    tally.gaps.append("at an MLflow store: what it writes itself is not ours to check")
    return tally


def _count(line: dict[str, Any], tally: Tally) -> None:
    kind = line["kind"]
    tally.injected += 1
    tally.detected += line["typed"]
    tally.recovered += line["kept"]
    tally.lost += not line["kept"]
    note = "a tmpfs of 24 MB" if line["tmpfs"] else "RLIMIT_FSIZE, as no tmpfs could be mounted"
    tally.note(f"{FIRED}{kind}, by {note}")
    if not line["typed"]:
        tally.breach(f"{kind}: {line['error'][:200]}")
    elif not line["names"] or (line["tmpfs"] and "bytes" not in line["error"]):
        tally.breach(f"{kind}: the error names no path, or no bytes: {line['error'][:200]}")
    if line["left"]:
        tally.breach(f"{kind}: left after the next write: {line['left'][:3]}")


FIRED = "full at "


def fired(tally: Tally) -> list[str]:
    """The notes of the kinds whose disk was full at least once."""
    return [note for note in tally.notes if note.startswith(FIRED)]
