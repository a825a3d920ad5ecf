"""A model folder as an MLflow model: our code and safetensors, a signature and an input example, no pickle."""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

import pandas as pd

from recsys_embed.errors import ConfigError
from recsys_embed.export import Predictor, load
from recsys_embed.files import atomic_folder
from recsys_embed.training.kept import TRAINING, link_or_copy

CODE = Path(__file__).with_name("code.py")


def save_mlflow_model(model_dir: str | Path, out: str | Path) -> Path:
    """Write the MLflow model of a model folder into the new folder ``out``, whole or not at all.

    ``mlflow.pyfunc.load_model(out).predict(frame)`` then gives the scores of ``load(model_dir).predict(frame)``. A
    categorical column may hold numbers or text; the input example has each column's most frequent value.

    Raises:
        ConfigError: MLflow is not installed.
        CheckpointError: the model folder is damaged, or the disk refused.
    """
    if importlib.util.find_spec("mlflow") is None:
        raise ConfigError("an MLflow model needs mlflow: pip install 'recsys-embed[tracking]'")
    predictor = load(model_dir)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow warns about its own type hints and its own use of pandas
        return _save(predictor, Path(model_dir), Path(out))


def _save(predictor: Predictor, model_dir: Path, out: Path) -> Path:
    from mlflow.models import ModelSignature
    from mlflow.pyfunc import save_model
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import AnyType

    numbers = {scaler.column for scaler in predictor.encoder.scalers}
    anything: Any = AnyType()  # type: ignore[no-untyped-call]
    inputs: list[Any] = [
        ColSpec(DataType.double if name in numbers else anything, name, required=False)
        for name in predictor.encoder.columns
    ]
    signature = ModelSignature(inputs=Schema(inputs), outputs=Schema([ColSpec(DataType.double, "score")]))
    with atomic_folder(out) as folder, tempfile.TemporaryDirectory(dir=out.parent) as place:
        served = shutil.copytree(  # all but what a later training goes on from
            model_dir,
            Path(place, model_dir.resolve().name),
            copy_function=link_or_copy,
            ignore=shutil.ignore_patterns(TRAINING),
        )
        save_model(
            folder,
            python_model=str(CODE),
            artifacts={"model": str(served)},
            signature=signature,
            input_example=input_example(predictor),
            pip_requirements=["recsys-embed"],
        )
    return out


def input_example(predictor: Predictor) -> pd.DataFrame:
    """One raw row: the most frequent value of each feature, none where its values are hashed, and 1 for each number."""
    encoder = predictor.encoder
    row: dict[str, object] = {}
    for feature in encoder.features:
        values = [] if feature.hashed else encoder.vocabularies[feature.vocab].values.drop_null()[:1].to_pylist()
        row[feature.name] = values[0] if values else ""
    row |= {scaler.column: 1.0 for scaler in encoder.scalers}
    return pd.DataFrame([row], columns=list(encoder.columns))
