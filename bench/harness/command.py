"""The command that a benchmark is: its options, its table on the terminal, its file."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.harness.setting import set_allocator


def command(
    about: str | None, quick: str, run: Callable[..., dict[str, Any]], table: Callable[..., str], **files: str
) -> None:
    """Read the options, run with the allocator's settings, print the table, and write the result where it is asked for.

    Args:
        about: what is measured, for ``--help``.
        quick: what ``--quick`` leaves out.
        run: measures; whether quickly, and by their names the files that were given.
        table: the result as text.
        files: further options by their names, each a file, and what it is for.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    for name, what in files.items():
        parser.add_argument(f"--{name}", type=Path, metavar="FILE", help=what)
    args = parser.parse_args()
    set_allocator()
    given = {name: path for name in files if (path := getattr(args, name)) is not None}
    result = run(args.quick, **given)
    print(table(result))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
