"""Small tables with known answers, as the fixture `kit`."""

from __future__ import annotations

import gzip
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from recsys_embed.config import DataConfig


def table(rows: int = 240, seed: int = 0) -> pd.DataFrame:
    """Text cells of every role; the column ``part`` splits 4:1:1, and every part has both labels."""
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "clicked": [str(i % 2) for i in range(rows)],
            "user": [f"u{n}" for n in rng.zipf(1.5, rows) % 40],
            "city": rng.choice(["NA", "None", "null", "nan", "1", "01", "1.0", "", "Zürich"], rows),
            "tags": ["|".join(f"t{n}" for n in rng.integers(0, 12, rng.integers(0, 4))) for _ in range(rows)],
            "price": [
                f"{x:.3f}" if keep else ""
                for x, keep in zip(rng.normal(5, 3, rows), rng.random(rows) > 0.1, strict=False)
            ],
            "part": [("train", "train", "train", "train", "val", "test")[(i // 2) % 6] for i in range(rows)],
        },
        dtype=object,
    )
    return frame


def config(path: Path | str = "frame", **changes: Any) -> DataConfig:
    """The schema of :func:`table`."""
    tree: dict[str, Any] = {
        "path": str(path),
        "label": "clicked",
        "categorical": ["user", "city"],
        "multi_valued": {"tags": "|"},
        "numeric": ["price"],
        "split": {"column": "part"},
    }
    return DataConfig.model_validate({**tree, **changes})


def write(frame: pd.DataFrame, path: Path) -> Path:
    """As CSV or TSV, gzipped where the name says so, or as Parquet of text."""
    if path.suffix == ".parquet":
        frame.to_parquet(path)
        return path
    text = frame.to_csv(sep="\t" if ".tsv" in path.name else ",", index=False, na_rep="")
    data = text.encode("utf-8")
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    return path


@pytest.fixture(scope="session")
def kit() -> SimpleNamespace:
    """The functions above."""
    return SimpleNamespace(table=table, config=config, write=write)
