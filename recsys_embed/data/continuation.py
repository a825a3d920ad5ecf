"""The rows of a new day, encoded by an encoder that there is, whose vocabularies grow."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from recsys_embed.config import DataConfig, GrowthConfig
from recsys_embed.data.dataset import EncodedDataset


def continue_data(
    config: DataConfig,
    encoder_folder: Path,
    out: Path,
    *,
    growth: GrowthConfig,
    workers: int | None = None,
    progress: bool = False,
    frame: pd.DataFrame | None = None,
) -> EncodedDataset:
    """Encode the rows of a new day into ``out``; ids keep the meaning they have in ``encoder_folder``."""
    raise NotImplementedError
