"""An MLflow store, and the calls that operations are."""

from __future__ import annotations

import contextlib
import logging
import os
import ssl
import threading
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from recsys_embed.tracking.operations import MODEL
from recsys_embed.tracking.spool import Operation
from recsys_embed.tracking.uris import artifacts_beside, shown

HANDLE = "recsys_embed.handle"
_LOG = logging.getLogger("recsys_embed.tracking")
_PARENT = "mlflow.parentRunId"
_PROBE_SECONDS = 1.2
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    # The defaults, seven retries of 120 s, hold one call to a dead server for four minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "4",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
}


# --- what MLflow is told while we call it --------------------------------------------------------------------

_settings_lock = threading.Lock()
_settings_users = 0
_settings_undo = contextlib.ExitStack()


@contextlib.contextmanager
def settings() -> Iterator[None]:
    """Short timeouts, no telemetry and no chatter, for the time of a call; what the user has set stays.

    The environment is the process's: a call of the user's own on another thread in that time gets the timeouts too.
    """
    global _settings_users
    with _settings_lock:
        _settings_users += 1
        if _settings_users == 1:
            for name, value in _ENVIRONMENT.items():
                if name not in os.environ:
                    os.environ[name] = value
                    _settings_undo.callback(os.environ.pop, name, None)
            for logger in map(logging.getLogger, ("alembic", "urllib3.connectionpool")):
                _settings_undo.callback(logger.setLevel, logger.level)
                logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        with _settings_lock:
            _settings_users -= 1
            if _settings_users == 0:
                _settings_undo.close()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """The settings, and no warnings: for the main thread alone, since the filters of warnings are the process's."""
    with settings(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


# --- carrying operations to MLflow ---------------------------------------------------------------------------


class Store:
    """A store, and the call that each operation is. ``created`` has the ids of the runs that it created."""

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self._experiments: dict[str, str] = {}  # by name
        self._experiments_of: dict[str, str] = {}  # by run
        self._client: Any = None
        self.created: set[str] = set()

    def connect(self) -> None:
        """Import MLflow, which takes seconds."""
        from mlflow import MlflowClient

        self._client = MlflowClient(tracking_uri=self._uri)

    def send(
        self, operation: Operation, ids: Mapping[int, str], *, handle: str = "", unsure: bool = False
    ) -> str | None:
        """Carry out an operation; return the id of a run that it created.

        ``handle`` marks a created run. ``unsure``: it may have been carried out before, so look first; parameters,
        tags, files, inputs and ends are the same when repeated.
        """
        do = operation["do"]
        if do == "create":
            return self._create(operation, ids, handle, unsure)
        run = ids[operation["run"]]
        if do == "log":
            self._log(run, operation, unsure)
        elif do == "text":
            self._client.log_text(run, operation["text"], operation["file"])
        elif do == "file" and not os.path.exists(operation["path"]):
            _LOG.warning("tracking: %s is gone and cannot be logged into run %s", operation["path"], run)
        elif do == "file":
            self._client.log_artifact(run, operation["path"], operation.get("to") or None)
        elif do == "data":
            self._data_set(run, operation)
        elif do == "champion":
            self._champion(run, operation["name"], operation["alias"])
        elif do == "end":
            self._client.set_terminated(run, operation["status"], end_time=operation["time"])
        return None

    def _create(self, operation: Operation, ids: Mapping[int, str], handle: str, unsure: bool) -> str:
        tags = dict(operation["tags"])
        if operation["parent"] is None:
            experiment = self._experiment(operation["experiment"])
        else:
            tags[_PARENT] = ids[operation["parent"]]
            experiment = self._experiment_of(tags[_PARENT])
        continued = operation.get("handle")
        if handle := continued or handle:
            tags[HANDLE] = handle
            if (continued or unsure) and (
                found := self._client.search_runs([experiment], f"tags.`{HANDLE}` = '{handle}'")
            ):
                if continued:
                    self._client.update_run(found[0].info.run_id, status="RUNNING")
                return str(found[0].info.run_id)
        run = self._client.create_run(experiment, operation["time"], tags, operation["name"]).info.run_id
        self.created.add(run)
        self._experiments_of[run] = experiment
        return str(run)

    def _experiment(self, name: str) -> str:
        if name not in self._experiments:
            known = self._client.get_experiment_by_name(name)
            if known is None:
                try:
                    self._experiments[name] = self._client.create_experiment(name, artifacts_beside(self._uri))
                except Exception:
                    known = self._client.get_experiment_by_name(name)  # created by somebody else in between
                    if known is None:
                        raise
            if known is not None:
                self._experiments[name] = str(known.experiment_id)
        return self._experiments[name]

    def _experiment_of(self, run: str) -> str:
        if run not in self._experiments_of:
            self._experiments_of[run] = str(self._client.get_run(run).info.experiment_id)
        return self._experiments_of[run]

    def _log(self, run: str, operation: Operation, unsure: bool) -> None:
        from mlflow.entities import Metric, Param, RunTag

        metrics, params = operation.get("metrics", []), operation.get("params", {})
        if unsure:
            known = {key: self._client.get_metric_history(run, key) for key in {one[0] for one in metrics}}
            there = {(key, one.timestamp, one.step) for key, history in known.items() for one in history}
            metrics = [one for one in metrics if (one[0], one[2], one[3]) not in there]
        if params and operation.get("borrowed"):
            theirs = self._client.get_run(run).data.params
            params = {key: value for key, value in params.items() if key not in theirs}
        tags = operation.get("tags", {})
        if metrics or params or tags:
            self._client.log_batch(
                run,
                metrics=[Metric(*one) for one in metrics],
                params=[Param(*one) for one in params.items()],
                tags=[RunTag(*one) for one in tags.items()],
            )

    def _champion(self, run: str, name: str, alias: str) -> None:
        """One version for each run, however often it is asked for, and none before the model is there."""
        from mlflow.exceptions import MlflowException

        if f"{MODEL}/MLmodel" not in {file.path for file in self._client.list_artifacts(run, str(MODEL))}:
            raise RuntimeError(f"run {run} has no model yet to be registered as {name!r}")
        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        quoted = name.replace("'", "\\'")
        there = [one for one in self._client.search_model_versions(f"name = '{quoted}'") if one.run_id == run]
        if not there:
            source = f"{self._client.get_run(run).info.artifact_uri}/{MODEL}"
            there = [self._client.create_model_version(name, source, run_id=run)]
        self._client.set_registered_model_alias(name, alias, there[0].version)

    def _data_set(self, run: str, operation: Operation) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        data = Dataset(
            name=operation["name"], digest=operation["digest"], source_type="local", source=operation["source"]
        )
        self._client.log_inputs(run, [DatasetInput(data, [InputTag("mlflow.data.context", "training")])])


def is_refusal(error: Exception) -> bool:
    """Whether MLflow itself said that a request is wrong; a proxy's answer, a login or a limit says no such thing."""
    from mlflow.exceptions import RestException

    if not isinstance(error, RestException):
        return False
    status: int = error.get_http_status_code()  # type: ignore[no-untyped-call]
    return status in range(400, 500) and status not in (401, 403, 408, 429)


def probe(uri: str) -> None:
    """Ask a server whether it is there, before MLflow is imported for it. Any answer but a server error will do."""
    if not uri.startswith(("http://", "https://")):
        return
    try:
        with urllib.request.urlopen(f"{shown(uri).rstrip('/')}/health", timeout=_PROBE_SECONDS):
            return
    except urllib.error.HTTPError as error:
        error.close()
        if error.code >= 500:
            raise ConnectionError(f"the server answers {error.code}") from error
    except urllib.error.URLError as error:
        if not isinstance(error.reason, ssl.SSLError):  # MLflow has certificates of its own
            raise ConnectionError(f"the server does not answer: {error.reason}") from error
    except OSError as error:
        raise ConnectionError(f"the server does not answer: {error}") from error
