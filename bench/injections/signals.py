"""F7: SIGTERM and Ctrl-C at random moments of ``recsys-embed train``.

The command ends within ten seconds with 143 or 130 and a valid checkpoint; the same command goes on; the model folder
in the end equals, byte for byte, that of a run that never stopped.
"""

from __future__ import annotations

import random
import signal
import time
from pathlib import Path

from bench.injections.artifacts import configured, model_sums, saved_steps, table
from bench.injections.children import command
from bench.injections.tally import Scale, Tally
from recsys_embed.training import checkpoints

PROMPT, STARTING = 10.0, 240.0


def inject(scale: Scale, folder: Path) -> Tally:
    """Signals in turn, one a command, in chains that end with a finished run."""
    tally, draw, wanted = Tally(), random.Random(0), scale.of(2, 20)
    rows, config = folder / "rows.csv", folder / "config.toml"
    table(scale.of(12_000, 40_000)).to_csv(rows, index=False)
    built = configured(data={"path": str(rows)}, training={"batch_size": 32, "epochs": 3, "checkpoint_steps": 50})
    config.write_text(built.to_toml(), encoding="utf-8")
    begin = time.perf_counter()
    whole = command(["train", config, "--out", folder / "whole", "--quiet"])
    _, text = whole.communicate()
    if whole.returncode != 0:
        tally.breach(f"a run that nobody disturbs ends with {whole.returncode}: {text[-300:]}")
        return tally
    usual, chain = time.perf_counter() - begin, 0
    while tally.injected < wanted and chain < wanted:
        chain += 1
        out, left = folder / f"chain-{chain}", min(2 if scale.name == "quick" else 4, wanted - tally.injected)
        for _ in range(left):
            number = (signal.SIGTERM, signal.SIGINT)[tally.injected % 2]
            if not _stopped(config, out, number, draw.uniform(0, 0.1 * usual), tally):
                break
        last = command(["train", config, "--out", out, "--quiet"])
        _, text = last.communicate()
        if last.returncode != 0:
            tally.lost += 1
            tally.breach(f"the same command does not go on: {text[-300:]}")
        elif model_sums(out) != model_sums(folder / "whole"):
            tally.silent += 1
            tally.breach("the model that went on is another one")
    tally.gaps.append("the status of the MLflow run: its test is the tracker's own")
    return tally


def _stopped(config: Path, out: Path, number: signal.Signals, delay: float, tally: Tally) -> bool:
    """Start the command, send the signal while it trains, judge how it ended; False where it had finished."""
    process = command(["train", config, "--out", out, "--quiet"])
    before, begin = saved_steps(out), time.perf_counter()
    while saved_steps(out) <= before and process.poll() is None and time.perf_counter() - begin < STARTING:
        time.sleep(0.01)
    time.sleep(delay)
    process.send_signal(number)
    sent = time.perf_counter()
    _, text = process.communicate()
    code = process.returncode
    took = time.perf_counter() - sent
    if code == 0:
        return False
    tally.injected += 1
    if code == 128 + number and "goes on" in text:
        tally.detected += 1
    else:
        tally.breach(f"{number.name}: ends with {code}: {text[-200:]}")
    if took > PROMPT:
        tally.breach(f"{number.name}: it took {took:.1f} s to end")
    folders = [one for one in (out / "checkpoints").glob("*") if one.is_dir()]
    found = checkpoints.newest(folders[0]) if folders else None
    tally.recovered += found is not None
    tally.lost += found is None
    return True
