"""The jobs as short scripts, run from a checkout: ``python -m pipelines.compression_report CONFIG``."""

from __future__ import annotations

import argparse
from pathlib import Path


def arguments(description: str | None) -> argparse.Namespace:
    """What every script takes: ``config``, ``out``, ``set``, ``quiet``."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="a TOML config")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the folder to write")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="override a key of the config")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    return parser.parse_args()
