"""Search the widths of embeddings: ``python -m pipelines.dimension_search CONFIG``. Not built yet.

The same as ``recsys-embed search CONFIG``, which says so with exit code 2.
"""

from __future__ import annotations

from pipelines import arguments
from recsys_embed.cli import search


def main() -> None:
    """Say what there is instead."""
    search(arguments(__doc__).config)


if __name__ == "__main__":
    main()
