"""Train one model and export it: ``python -m pipelines.offline_training CONFIG``.

The same as ``recsys-embed train CONFIG``.
"""

from __future__ import annotations

from pipelines import arguments
from recsys_embed.cli import exit_codes
from recsys_embed.config import load_config
from recsys_embed.jobs import train


def main() -> None:
    """Prepare, train, evaluate, export, track."""
    given = arguments(__doc__)
    with exit_codes(quiet=given.quiet):
        config = load_config(given.config, tuple(given.set))
        model, trained = train(config, given.out or f"train-{given.config.stem}", progress=not given.quiet)
        print(f"validation AUC {trained.row['val_auc']:.4f}, test AUC {trained.row['test_auc']:.4f}")
        print(model)


if __name__ == "__main__":
    main()
