"""Runs in MLflow; the only importer of it, and only when there is something to log.

A report is a run with a nested run per training; a single training is one run. Where the caller has an active run, that
run is used as it is, and stays open. Tracking never decides over a training: a store that cannot be reached costs one
warning and a few seconds, then nothing more is logged. Only text, CSV and JSON are stored, never a pickled flavour.
"""

from __future__ import annotations

import contextlib
import getpass
import importlib.util
import json
import logging
import math
import os
import re
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import xxhash

from recsys_embed.config import Config, TrackingConfig
from recsys_embed.errors import CheckpointError, ConfigError, StackError
from recsys_embed.features import Feature
from recsys_embed.ledger import VOCABULARY
from recsys_embed.provenance import versions

INSTALL = "pip install 'recsys-embed[tracking]'"
_LOG = logging.getLogger("recsys_embed.tracking")
_DEFAULT = TrackingConfig()
_PARENT, _CONFIG_DIGEST = "mlflow.parentRunId", "recsys_embed.config_digest"
_PARAM_LIMIT, _BATCH, _METRICS = 6000, 100, 800
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    # The defaults, seven retries of 120 s, hold one call to a dead server for four minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
}


def tracking_uri(config: TrackingConfig) -> str:
    """Where runs go: the config's URI; where it is the default, ``MLFLOW_TRACKING_URI`` if that is set."""
    return os.environ.get("MLFLOW_TRACKING_URI") or config.uri if config.uri == _DEFAULT.uri else config.uri


def _experiment(config: TrackingConfig) -> str:
    if config.experiment != _DEFAULT.experiment:
        return config.experiment
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or config.experiment


def available(uri: str) -> bool:
    """Whether the libraries that a store needs are installed: SQL stores need two beside the light client."""
    needed = ["mlflow"] + ([] if uri.startswith(("http", "databricks", "file")) else ["sqlalchemy", "alembic"])
    return all(importlib.util.find_spec(name) is not None for name in needed)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what MLflow and its libraries say about themselves off the user's terminal."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    loggers = [logging.getLogger(name) for name in ("alembic", "urllib3.connectionpool")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


class Tracker:
    """Logs one job. Nothing is imported or contacted before the first call that logs.

    ``run_id`` is the job's own run once something was logged, else ``None``.

    Raises:
        StackError: MLflow is missing although the config names a URI of its own.
    """

    def __init__(self, config: Config, name: str, *, job: str) -> None:
        self.run_id: str | None = None
        self._config, self._name, self._job = config, name, job
        self._uri = tracking_uri(config.tracking)
        self._client: Any = None
        self._experiment_id = ""
        self._borrowed = False
        self._on = config.tracking.enabled
        if self._on and not available(self._uri):
            if config.tracking.uri != _DEFAULT.uri:
                raise StackError(
                    f"tracking to {_shown(self._uri)} needs MLflow: {INSTALL}", component="mlflow", mend=INSTALL
                )
            self._on = False
            _LOG.warning("MLflow is not installed, nothing is tracked: %s", INSTALL)

    # --- what a job calls --------------------------------------------------------------------------------------

    def epoch(self, metrics: Mapping[str, Any]) -> None:
        """Log one epoch's metrics into the job's own run."""
        with self._safely():
            self._log(self._started(), epochs=[metrics])

    def training(
        self,
        config: Config,
        row: Mapping[str, Any],
        *,
        history: Sequence[Mapping[str, Any]] = (),
        ledger: pd.DataFrame | None = None,
        features: Sequence[Feature] = (),
        nested: bool = True,
    ) -> str | None:
        """Log a finished training, as a run nested under the job's or into the job's own; return the run's id."""
        logged: str | None = None
        with self._safely():
            run = self._started()
            if nested:
                name = f"{row['strategy']} {row['budget_requested'] or 'full size'} seed {row['seed']}"
                run = self._create(name, config, {_PARENT: run})
            tags = {key: str(row[key]) for key in ("run", "status", "settings", "fingerprint")}
            self._log(run, epochs=history, metrics=row, tags=tags | ({"error": row["error"]} if row["error"] else {}))
            self._data_set(run, row)
            if ledger is not None:
                self._client.log_text(run, ledger.to_csv(index=False), "ledger.csv")
                self._client.log_text(run, _sizes(ledger, features).to_csv(index=False), "features.csv")
            if nested:
                self._client.set_terminated(run, "FINISHED" if row["status"] in ("ok", "infeasible") else "FAILED")
            logged = run
        return logged

    def artifacts(self, files: Sequence[Path], *, tags: Mapping[str, str] | None = None) -> None:
        """Log files, and tags, into the job's own run."""
        with self._safely():
            run = self._started()
            self._log(run, tags=tags or {})
            for file in files:
                if file.exists():
                    self._client.log_artifact(run, str(file))

    def close(self, status: str = "FINISHED") -> None:
        """End the job's run, unless it is the caller's own."""
        if self.run_id is not None and not self._borrowed:
            with self._safely():
                self._client.set_terminated(self.run_id, status)

    # --- MLflow ------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _safely(self) -> Iterator[None]:
        """Run a block if tracking is on; an error in it turns tracking off with one warning."""
        if not self._on:
            with contextlib.suppress(_OffError):
                yield
            return
        try:
            with _quiet():
                yield
        except Exception as error:
            self._on = False
            reason = _shown(" ".join(str(error).split()))[:300]
            _LOG.warning("tracking to %s is off for this job, everything else goes on: %s", _shown(self._uri), reason)

    def _started(self) -> str:
        """The id of the job's run, created at the first call."""
        if not self._on:
            raise _OffError
        if self.run_id is None:
            import mlflow
            from mlflow import MlflowClient

            active = mlflow.active_run()
            borrowed = active.info.run_id if active else os.environ.get("MLFLOW_RUN_ID")
            if active:
                self._uri = mlflow.get_tracking_uri()
            self._client = MlflowClient(tracking_uri=self._uri)
            if borrowed:
                run = self._client.get_run(borrowed)
                self._experiment_id, self._borrowed = run.info.experiment_id, True
                self._describe(borrowed, self._config, known=run.data.params)
                self.run_id = borrowed
            else:
                self._experiment_id = self._open_experiment()
                self.run_id = self._create(self._name, self._config, {})
        return self.run_id

    def _open_experiment(self) -> str:
        name = _experiment(self._config.tracking)
        known = self._client.get_experiment_by_name(name)
        if known is not None:
            return str(known.experiment_id)
        return str(self._client.create_experiment(name, artifact_location=_artifacts_beside(self._uri)))

    def _create(self, name: str, config: Config, tags: Mapping[str, str]) -> str:
        with contextlib.suppress(Exception):  # no user name on this system
            tags = {"mlflow.user": getpass.getuser(), **tags}
        tags = {"mlflow.source.name": f"recsys-embed {self._job}", **tags}
        run: str = self._client.create_run(self._experiment_id, run_name=name, tags=dict(tags)).info.run_id
        self._describe(run, config, known={})
        return run

    def _describe(self, run: str, config: Config, *, known: Mapping[str, str]) -> None:
        """Config as parameters and as a file, versions as tags."""
        from mlflow.entities import Param

        text = config.to_toml()
        values = flatten(config.model_dump(mode="json", exclude={"tracking"}))
        params = [Param(key, value) for key, value in values.items() if key not in known]
        for start in range(0, len(params), _BATCH):
            self._client.log_batch(run, params=params[start : start + _BATCH])
        tags = {f"version.{name}": version for name, version in versions().items()}
        self._log(run, tags=tags | {_CONFIG_DIGEST: xxhash.xxh3_64_hexdigest(text.encode())})
        self._client.log_text(run, text, "config.toml")

    def _log(
        self,
        run: str,
        *,
        epochs: Sequence[Mapping[str, Any]] = (),
        metrics: Mapping[str, Any] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """One batch: finite numbers only (MLflow stores an infinity as 1.8e308)."""
        from mlflow.entities import Metric, RunTag

        now = int(time.time() * 1000)
        logged = [
            Metric(key, float(value), now, int(epoch["epoch"]))
            for epoch in epochs
            for key, value in _finite(epoch).items()
            if key != "epoch"
        ]
        # The validation AUC of the kept weights would otherwise overwrite the curve of the same name.
        finals = {("best_val_auc" if key == "val_auc" else key): value for key, value in _finite(metrics or {}).items()}
        logged += [Metric(key, value, now, 0) for key, value in finals.items() if key not in ("seed", "dim")]
        labels = [RunTag(key, value[:5000]) for key, value in (tags or {}).items()]
        for start in range(0, max(len(logged), 1), _METRICS):
            self._client.log_batch(
                run, metrics=logged[start : start + _METRICS], tags=labels[:_BATCH] if start == 0 else ()
            )

    def _data_set(self, run: str, row: Mapping[str, Any]) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        source = json.dumps(self._config.data.model_dump(mode="json", exclude_none=True))[:60_000]
        data = Dataset(
            name=str(row["dataset"]), digest=str(row["fingerprint"])[:36], source_type="local", source=source
        )
        self._client.log_inputs(run, [DatasetInput(data, [InputTag("mlflow.data.context", "training")])])


class _OffError(Exception):
    """Leaves a block of a tracker that is off."""


def fetch_config(run_id: str, config: TrackingConfig) -> str:
    """The config (TOML) that a run was started with, checked against the digest logged with it.

    Raises:
        ConfigError: no such run, or the run has no config.
        CheckpointError: the config was changed after the run.
        StackError: MLflow is missing.
    """
    uri = tracking_uri(config)
    if not available(uri):
        raise StackError(f"--from-run needs MLflow: {INSTALL}", component="mlflow", mend=INSTALL)
    with _quiet(), tempfile.TemporaryDirectory() as folder:
        from mlflow import MlflowClient

        try:
            client = MlflowClient(tracking_uri=uri)
            run = client.get_run(run_id)
            text = Path(client.download_artifacts(run_id, "config.toml", folder)).read_text(encoding="utf-8")
        except Exception as error:
            reason = _shown(" ".join(str(error).split()))[:300]
            raise ConfigError(f"--from-run {run_id}: no config in {_shown(uri)}: {reason}") from error
    if run.data.tags.get(_CONFIG_DIGEST) != xxhash.xxh3_64_hexdigest(text.encode()):
        raise CheckpointError(f"the config of run {run_id} is not the one that was logged", file="config.toml")
    return text


# --- shapes MLflow accepts -----------------------------------------------------------------------------------


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted parameters within MLflow's limits. Lists, and tables whose keys it would refuse, are JSON."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping) and value and all(re.fullmatch(r"\w+", str(name)) for name in value):
            flat |= flatten(value, f"{path}.")
        elif value is not None:
            flat[path[:250]] = (value if isinstance(value, str) else json.dumps(value))[:_PARAM_LIMIT]
    return flat


def _finite(values: Mapping[str, Any]) -> dict[str, float]:
    return {
        key: float(value)
        for key, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }


def _sizes(ledger: pd.DataFrame, features: Sequence[Feature]) -> pd.DataFrame:
    """Cardinality beside the rows and width of every table that a feature reads: one file, not a thousand metrics."""
    columns = ["feature", "part", "table", "rows", "width", "serve_bytes"]
    sizes = pd.DataFrame({"feature": [f.name for f in features], "cardinality": [f.cardinality for f in features]})
    return ledger.loc[ledger["part"] != VOCABULARY, columns].merge(sizes, on="feature", how="outer")


def _artifacts_beside(uri: str) -> str | None:
    """For a SQLite file, the folder ``mlruns`` beside it; otherwise the server decides."""
    if not uri.startswith("sqlite:///") or uri == "sqlite:///:memory:":
        return None
    return (Path(uri.removeprefix("sqlite:///")).resolve().parent / "mlruns").as_uri()


def _shown(text: str) -> str:
    """A URI, or text with URIs in it, without users and passwords."""
    return re.sub(r"//[^/@\s]*@", "//", text)
