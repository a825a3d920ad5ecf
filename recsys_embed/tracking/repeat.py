"""The config of a logged run, to run it again. Never code, never a pickle."""

from __future__ import annotations

import contextlib
import glob
import json
import os
import tempfile
import tomllib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import xxhash

from recsys_embed.config import TrackingConfig
from recsys_embed.errors import CheckpointError, ConfigError, StackError
from recsys_embed.tracking.operations import CONFIG_DIGEST, WORKING_FOLDER
from recsys_embed.tracking.outbox import PENDING
from recsys_embed.tracking.store import HANDLE, quiet
from recsys_embed.tracking.uris import INSTALL, available, database, experiment_name, reason, shown, tracking_uri


def fetch_config(run_id: str, config: TrackingConfig) -> dict[str, Any]:
    """The config that a run was started with, as a tree, checked against the digest logged with it.

    Data that the run read by a path relative to its working folder are named by their whole path when this is another
    folder, unless they are only here. A repeat is logged where the run was found. ``run_id`` may be a ``pending-…``.

    Raises:
        ConfigError: no such run, or the run has no config.
        CheckpointError: the config was changed after the run.
        StackError: MLflow is missing.
    """
    uri = tracking_uri(config)
    if not available(uri):
        raise StackError(f"--from-run needs MLflow: {INSTALL}", component="mlflow", mend=INSTALL)
    if (file := database(uri)) is not None and not file.exists():  # MLflow would create it
        raise ConfigError(f"--from-run {run_id}: there is no store {str(file)!r}; name the one that has the run: "
                          "--set tracking.uri=URI", path="tracking.uri")  # fmt: skip
    with quiet(), tempfile.TemporaryDirectory() as folder:
        from mlflow import MlflowClient

        try:
            client = MlflowClient(tracking_uri=uri)
            if run_id.startswith(PENDING):
                run_id = _delivered(client, run_id)
            run = client.get_run(run_id)
            text = Path(client.download_artifacts(run_id, "config.toml", folder)).read_text(encoding="utf-8")
        except Exception as error:
            raise ConfigError(f"--from-run {run_id}: no config in {shown(uri)}: {reason(error)}") from error
    if run.data.tags.get(CONFIG_DIGEST) != xxhash.xxh3_64_hexdigest(text.encode()):
        raise CheckpointError(f"the config of run {run_id} is not the one that was logged", file="config.toml")
    tree = tomllib.loads(text)
    tree.setdefault("tracking", {})["uri"] = config.uri
    _name_from_here(tree["data"], run.data.tags.get(WORKING_FOLDER, ""))
    return tree


def best_trials(config: TrackingConfig, tag: str, names: Collection[str], count: int) -> list[dict[str, Any]]:
    """Parameters of the tracked runs with the best validation AUC: their tag ``tag`` has a JSON object with these
    names, each such object once. None where nothing was tracked.

    Raises:
        StackError: MLflow is missing.
        ConfigError: the store cannot be read.
    """
    uri = tracking_uri(config)
    if not available(uri):
        raise StackError(f"search.warm_start needs MLflow: {INSTALL}", component="mlflow", mend=INSTALL)
    if (file := database(uri)) is not None and not file.exists():
        return []
    found: dict[str, dict[str, Any]] = {}
    with quiet():
        from mlflow import MlflowClient

        try:
            client, page = MlflowClient(tracking_uri=uri), ""
            experiment = client.get_experiment_by_name(experiment_name(config))
            while experiment is not None and len(found) < count:
                runs = client.search_runs(
                    [experiment.experiment_id], f"tags.{tag} LIKE '{{_%'", order_by=[_BEST], page_token=page or None
                )
                for run in runs:
                    with contextlib.suppress(ValueError):  # too long for a tag
                        parameters = json.loads(run.data.tags[tag])
                        if set(parameters) == set(names):
                            found.setdefault(run.data.tags[tag], parameters)
                if not (page := runs.token or ""):
                    break
        except Exception as error:
            raise ConfigError(
                f"search.warm_start: cannot read {shown(uri)}: {reason(error)}", path="search.warm_start"
            ) from error
    return list(found.values())[:count]


_BEST = "metrics.best_val_auc DESC"


def _delivered(client: Any, handle: str) -> str:
    """The run that a ``pending-…`` became."""
    experiments = [one.experiment_id for one in client.search_experiments()]
    found = client.search_runs(experiments, f"tags.`{HANDLE}` = '{handle}'")
    if not found:
        raise LookupError("it was not delivered yet")
    return str(found[0].info.run_id)


def _name_from_here(data: dict[str, Any], folder: str) -> None:
    """Make the relative paths of a run's data mean here what they meant in its working folder."""
    if not folder or Path(folder) == Path.cwd():
        return

    def named(path: str) -> str:
        there = os.path.join(folder, path)
        return path if not glob.glob(there) and glob.glob(path) else there

    if "path" in data:
        data["path"] = named(data["path"])
    files = data.get("split", {}).get("files")
    if files:
        files |= {split: named(path) for split, path in files.items()}
