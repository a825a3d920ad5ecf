"""Compare embedding strategies under byte budgets: ``python -m pipelines.compression_report CONFIG``.

The same as ``recsys-embed report CONFIG``.
"""

from __future__ import annotations

from pipelines import arguments
from recsys_embed.cli import data_name, exit_codes
from recsys_embed.config import load_config
from recsys_embed.jobs import report


def main() -> None:
    """Prepare the data once, train or reuse every run, write the page, log it."""
    given = arguments(__doc__)
    with exit_codes(quiet=given.quiet):
        config = load_config(given.config, tuple(given.set))
        done = report(config, given.out or f"report-{data_name(config)}", progress=not given.quiet)
        print(done.page)
        raise SystemExit(done.exit_code)


if __name__ == "__main__":
    main()
