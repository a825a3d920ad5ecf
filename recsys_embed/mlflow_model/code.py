"""The code of the MLflow model: MLflow copies this file beside the model folder and runs it to load the model."""

from __future__ import annotations

from typing import Any

import mlflow
import pandas as pd
from mlflow.pyfunc.model import PythonModel

from recsys_embed.export import load


class RawRowsToScores(PythonModel):
    """Raw rows in, probabilities out, as :meth:`recsys_embed.export.Predictor.predict`."""

    def load_context(self, context: Any) -> None:
        """Load the model folder, after checking every file in it."""
        self._predictor = load(context.artifacts["model"])

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> Any:
        """Scores ``[rows]`` in the order of the rows."""
        return self._predictor.predict(model_input)


mlflow.models.set_model(RawRowsToScores())
