"""``python -m recsys_embed.tracking [URI]``: deliver what waits in this folder; exit code 2 if something is left."""

from __future__ import annotations

import logging
import sys

from recsys_embed.tracking import deliver

if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    raise SystemExit(2 if deliver(*sys.argv[1:2]) else 0)
