"""A trained model as a folder that scores raw rows anywhere: no training data, FBGEMM or MLflow needed, no pickle.

model/
  manifest.json       path, bytes and checksum of every file
  config.toml         the resolved config of the training
  model.safetensors   tables as logical rows in their stored type, and the model's weights
  encoder/            the vocabulary and scalers
  training/           what a later training goes on from, with a manifest of its own; see training/kept.py. Whoever only
                      serves can leave it out
"""

from __future__ import annotations

import contextlib
import csv
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from recsys_embed.config import Config, parse_config
from recsys_embed.data import Encoder
from recsys_embed.data.readers import read_frames
from recsys_embed.errors import CheckpointError, DataError
from recsys_embed.files import atomic_folder, atomic_path, verify_manifest, write_manifest
from recsys_embed.recommender import Recommender, shipped_recommender
from recsys_embed.training.kept import TRAINING, keep

CONFIG, WEIGHTS, ENCODER = "config.toml", "model.safetensors", "encoder"
CHUNK_ROWS = 65_536


def export(
    model: Recommender, config: Config, encoder: Encoder, out: str | Path, *, checkpoint: Path | None = None
) -> Path:
    """Write the model folder: all of it or, after a crash, none of it. What only training needs is left out, but for
    the ``checkpoint`` of these weights that a later training goes on from.

    Raises:
        CheckpointError: the disk refused.
    """
    with atomic_folder(out) as folder:
        (folder / CONFIG).write_text(config.to_toml(), encoding="utf-8")
        # Copies, since a tensor may be a view into one store that several tables share.
        tensors = {name: tensor.detach().cpu().clone() for name, tensor in model.shipped_state().items()}
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / WEIGHTS)
        encoder.save(folder / ENCODER)
        if checkpoint is not None:
            keep(checkpoint, folder)
        write_manifest(folder, without=TRAINING)
    return Path(out)


class Predictor:
    """A loaded model: ``predict`` takes raw rows as they were before encoding."""

    def __init__(self, model: Recommender, config: Config, encoder: Encoder) -> None:
        self.model, self.config, self.encoder = model.eval(), config, encoder

    def predict(self, frame: pd.DataFrame) -> pd.Series[float]:
        """Probabilities of a positive label, in the frame's index and order.

        Columns may stand in any order; the label and other columns are not needed. Ids never seen in training count as
        unseen.

        Raises:
            DataError: a feature's column is missing, or a numeric column holds text.
        """
        scores = np.empty(len(frame), dtype=np.float64)
        step = self.config.training.batch_size
        with torch.inference_mode():
            for start in range(0, len(frame), step):
                batch = self.encoder.encode(frame.iloc[start : start + step])
                scores[start : start + step] = self.model.probabilities(self.model(batch)).cpu().numpy()
        return pd.Series(scores, index=frame.index, name="score")


def load(model_dir: str | Path) -> Predictor:
    """Load a model folder, after checking every file in it. Tables are held as they are stored, for reading only.

    Raises:
        CheckpointError: a file is missing, damaged, or does not fit the others.
    """
    folder = Path(model_dir)
    verify_manifest(folder)
    try:
        tree = tomllib.loads((folder / CONFIG).read_text(encoding="utf-8"))
        tensors = load_file(folder / WEIGHTS)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, SafetensorError) as error:
        name = str(folder / (WEIGHTS if isinstance(error, SafetensorError) else CONFIG))
        raise CheckpointError(f"{name}: cannot be read: {error}", file=name) from error
    config = parse_config(tree, source=str(folder / CONFIG))
    encoder = Encoder.load(folder / ENCODER)
    try:
        model = shipped_recommender(config, encoder.features, len(encoder.dense), tensors)
    except RuntimeError as error:
        name = str(folder / WEIGHTS)
        raise CheckpointError(f"{name}: does not fit the config beside it: {error}", file=name) from error
    return Predictor(model, config, encoder)


# --- scoring files -------------------------------------------------------------------------------------------


def predict_file(predictor: Predictor, rows: str | Path, out: str | Path | None = None) -> int:
    """Score raw rows as a stream, in their order, into columns ``row`` (from 0) and ``score``; return their number.

    ``out`` is CSV, or Parquet by its name; it appears when it is complete. Without it CSV goes to standard output.

    Raises:
        DataError: the rows cannot be read, or lack a feature's column.
        CheckpointError: ``out`` cannot be written.
    """
    total = 0
    with _writer(None if out is None else Path(out)) as write:
        for scores in score_frames(predictor, rows):
            write(np.arange(total, total + len(scores)), scores)
            total += len(scores)
    return total


def score_frames(predictor: Predictor, rows: str | Path) -> Iterator[np.ndarray]:
    """Scores of a file's rows, chunk by chunk."""
    columns = input_columns(predictor)
    data = predictor.config.data
    for frame in read_frames(rows, columns, format=data.format, separator=data.separator, chunk_rows=CHUNK_ROWS):
        yield predictor.predict(frame).to_numpy()


def input_columns(predictor: Predictor) -> list[str]:
    """The raw columns that a prediction reads."""
    return list(predictor.encoder.columns)


@contextlib.contextmanager
def _writer(out: Path | None) -> Iterator[Any]:
    if out is None:
        yield _csv(sys.stdout)
        return
    if out.is_dir():
        raise DataError("is a folder, not a file to write", file=str(out))
    with atomic_path(out) as temporary:
        if out.suffix.lower() in (".parquet", ".pq"):
            schema = pa.schema([("row", pa.int64()), ("score", pa.float64())])
            with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
                yield lambda rows, scores: writer.write_table(
                    pa.table({"row": rows.astype(np.int64), "score": scores}, schema=schema)
                )
        else:
            with open(temporary, "w", encoding="utf-8", newline="") as file:
                yield _csv(file)


def _csv(file: IO[str]) -> Any:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["row", "score"])
    return lambda rows, scores: writer.writerows(zip(rows.tolist(), scores.tolist(), strict=True))
