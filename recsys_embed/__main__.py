"""``python -m recsys_embed``."""

from recsys_embed.cli import main

if __name__ == "__main__":
    main()
