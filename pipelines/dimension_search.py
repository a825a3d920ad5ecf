"""Search the widths of embeddings under a byte budget: ``python -m pipelines.dimension_search CONFIG``.

The same as ``recsys-embed search CONFIG``.
"""

from __future__ import annotations

from pipelines import arguments
from recsys_embed.cli import data_name, exit_codes
from recsys_embed.config import load_config
from recsys_embed.jobs import search


def main() -> None:
    """Prepare the data once, search by every method, train and export the best, write the page, log it."""
    given = arguments(__doc__)
    with exit_codes(quiet=given.quiet):
        config = load_config(given.config, tuple(given.set))
        done = search(config, given.out or f"search-{data_name(config)}", progress=not given.quiet)
        if done.page is not None:
            print(done.page)
        raise SystemExit(done.exit_code)


if __name__ == "__main__":
    main()
