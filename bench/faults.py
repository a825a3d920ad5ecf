"""Inject faults, row by row of the reliability table, and count what came of them.

    python bench/faults.py [--quick] [--rows F1,F5] [--json FILE]

Each row is written to the file as soon as it is done: the same command after a kill goes on with the rows that are
not there yet, as long as the code is the same. Exit code 1 where something was lost or silent, where a promise was
otherwise not kept, or where a row's faults never fired. A row that cannot be injected yet says ``not built``, which is
no pass.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
import traceback
import warnings
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.injections import ROWS, injection
from bench.injections.tally import FULL, QUICK, NotBuiltError, Scale

COUNTS = ("injected", "detected", "recovered", "lost", "silent")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--quick", action="store_true", help="fewer faults of each kind: a few minutes instead of forty"
    )
    parser.add_argument("--rows", help="only these, as in F1,F5")
    parser.add_argument("--json", type=Path, help="where results are kept (build/faults-quick.json, -full.json)")
    args = parser.parse_args()
    rows = args.rows.split(",") if args.rows else list(ROWS)
    unknown = [row for row in rows if row not in ROWS]
    if unknown:
        parser.error(f"no row {unknown[0]!r}; there are {', '.join(ROWS)}")
    scale = QUICK if args.quick else FULL
    logging.getLogger("recsys_embed").setLevel(logging.ERROR)
    file = args.json or Path("build") / f"faults-{scale.name}.json"
    results = run(rows, scale, file)
    print(table({row: results["rows"][row] for row in rows}))
    raise SystemExit(any(results["rows"][row]["status"] == "failed" for row in rows))


def run(rows: list[str], scale: Scale, file: Path) -> dict[str, Any]:
    """Inject the rows that the file does not hold yet; write it after each."""
    import torch

    torch.set_num_threads(1)
    results = begun(scale, file)
    for row in rows:
        if results["rows"].get(row, {}).get("status") == "passed":
            continue
        print(f"{row} {ROWS[row][1]} ...", file=sys.stderr, flush=True)
        results["rows"][row] = one(row, scale)
        results["rows"] = {name: results["rows"][name] for name in ROWS if name in results["rows"]}
        write(file, results)
    write(file, results)
    return results


def one(row: str, scale: Scale) -> dict[str, Any]:
    """A row's outcome: ``passed``, ``failed`` or ``not built``, its counts and what there is to say."""
    begin, told = time.perf_counter(), {"promise": ROWS[row][1]}
    try:
        with tempfile.TemporaryDirectory(prefix="faults-") as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tally = injection(row)(scale, Path(folder))
    except NotBuiltError as error:
        return {**told, "status": "not built", "reason": str(error)}
    except Exception:
        return {**told, "status": "failed", "broken": [traceback.format_exc()]}
    return {
        **told,
        "status": "passed" if tally.kept else "failed",
        **{name: int(getattr(tally, name)) for name in COUNTS},
        "broken": tally.broken or ([] if tally.injected else ["no fault fired"]),
        "notes": tally.notes,
        "not_built": tally.gaps,
        "seconds": round(time.perf_counter() - begin, 1),
    }


def begun(scale: Scale, file: Path) -> dict[str, Any]:
    """What the file holds already, of the same code and scale, or an empty result."""
    import os

    import torch

    from recsys_embed.provenance import processor, versions

    new: dict[str, Any] = {
        "date": datetime.now(UTC).date().isoformat(),
        "scale": scale.name,
        "code": code(),
        "machine": {"cpu": processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads()},
        "versions": versions(),
        "rows": {},
    }
    try:
        old: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        same = (old["scale"], old["code"]) == (new["scale"], new["code"])
    except (OSError, ValueError, KeyError, TypeError):
        return new
    return {**new, "rows": old["rows"]} if same else new


def write(file: Path, results: dict[str, Any]) -> None:
    from recsys_embed.files import atomic_write

    atomic_write(file, json.dumps(results, indent=1) + "\n")


def code() -> str:
    """A digest of the package and of the injections."""
    import xxhash

    root, digest = Path(__file__).resolve().parents[1], xxhash.xxh3_64()
    for folder in ("recsys_embed", "bench/injections"):
        for path in sorted((root / folder).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Markdown: counts, then whatever was not kept, not built, or is worth knowing."""
    lines = [
        "| row | promise | faults_injected | detected | recovered | lost | silent | outcome |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        counts = " | ".join(str(row.get(count, "")) for count in COUNTS)
        lines.append(f"| {name} | {row['promise']} | {counts} | {row['status']} |")
    for title, key in (("Not kept", "broken"), ("Not built", "not_built"), ("Notes", "notes")):
        told = [f"- {name}: {text}" for name, row in rows.items() for text in row.get(key, [])]
        if key == "not_built":
            told = [f"- {name}: {row['reason']}" for name, row in rows.items() if "reason" in row] + told
        if told:
            lines += ["", f"{title}:", *told]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
