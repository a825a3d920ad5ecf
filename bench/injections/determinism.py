"""F20: the same command again, in another process with another ``PYTHONHASHSEED``, gives the same bits.

Compared are the checksums of all files of the model folder, at one thread and at two. Between one thread and two the
last bits may differ: sums are added up in another order.
"""

from __future__ import annotations

from pathlib import Path

from bench.injections.artifacts import table
from bench.injections.children import call
from bench.injections.tally import Scale, Tally
from recsys_embed.config import STRATEGIES

TRAIN = """
import json, sys
from pathlib import Path
from bench.injections.artifacts import configured
from recsys_embed import jobs
folder, rows = Path(sys.argv[1]), Path(sys.argv[2])
for strategy in sys.argv[3].split(","):
    for threads in (1, 2):
        config = configured(
            3,
            data={"path": str(rows)},
            embedding={"strategy": strategy, "budget": None if strategy == "full" else 0.5},
            training={"epochs": 2, "threads": threads},
        )
        model, trained = jobs.train(config, folder / f"{strategy}-{threads}", progress=False)
        files = json.loads((model / "manifest.json").read_text())["files"]
        sums = {one["path"]: one["xxh3_64"] for one in files if one["path"] != "config.toml"}
        print(json.dumps([strategy, threads, sums, trained.row["test_logloss"]]))
"""


def inject(scale: Scale, folder: Path) -> Tally:
    """Three processes with hash seeds of their own, each strategy (where quick two, and one), one and two threads."""
    tally, rows = Tally(), folder / "rows.csv"
    table(scale.of(1000, 6000)).to_csv(rows, index=False)
    strategies = list(STRATEGIES) if scale.name == "full" else ["unified"]
    runs = []
    for turn in range(scale.of(2, 3)):
        code, lines, errors = call(
            TRAIN, folder / f"run-{turn}", rows, ",".join(strategies), PYTHONHASHSEED=str(1 + 999 * turn)
        )
        if code:
            tally.breach(f"training failed: {errors}")
            return tally
        runs.append(lines)
    for other in runs[1:]:
        for one, two in zip(runs[0], other, strict=True):
            tally.injected += 1
            same = one == two
            tally.recovered += same
            tally.silent += not same
            if not same:
                changed = [name for name in one[2] if one[2][name] != two[2].get(name)]
                tally.breach(f"{one[0]}, {one[1]} threads: other bits in {changed}")
    return tally
