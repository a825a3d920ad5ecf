"""Where runs go: the store's URI, and what can be told from it."""

from __future__ import annotations

import importlib.util
import os
import re
from pathlib import Path

from recsys_embed.config import TrackingConfig

INSTALL = "pip install 'recsys-embed[tracking]'"
_DEFAULT = TrackingConfig()
_SQLITE, _MEMORY = "sqlite:///", "sqlite:///:memory:"


def tracking_uri(config: TrackingConfig) -> str:
    """Where runs go: the config's URI; where it is the default, ``MLFLOW_TRACKING_URI`` if that is set."""
    return os.environ.get("MLFLOW_TRACKING_URI") or config.uri if is_default(config) else config.uri


def is_default(config: TrackingConfig) -> bool:
    """Whether the store was not chosen by the config."""
    return config.uri == _DEFAULT.uri


def experiment_name(config: TrackingConfig) -> str:
    """The experiment; where it is the default, ``MLFLOW_EXPERIMENT_NAME`` if that is set."""
    if config.experiment != _DEFAULT.experiment:
        return config.experiment
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or config.experiment


def available(uri: str) -> bool:
    """Whether the libraries that a store needs are installed: SQL stores need two beside the light client."""
    needed = ["mlflow"] + ([] if uri.startswith(("http", "databricks", "file")) else ["sqlalchemy", "alembic"])
    return all(importlib.util.find_spec(name) is not None for name in needed)


def is_local(uri: str) -> bool:
    """Whether a store is files of this machine, which neither hang nor go away."""
    return "://" not in uri or uri.startswith(("sqlite:", "file:"))


def database(uri: str) -> Path | None:
    """The file of a SQLite store."""
    return Path(uri.removeprefix(_SQLITE)) if uri.startswith(_SQLITE) and uri != _MEMORY else None


def artifacts_beside(uri: str) -> str | None:
    """For a SQLite file, the folder ``mlruns`` beside it; otherwise the server decides."""
    file = database(uri)
    return None if file is None else (file.resolve().parent / "mlruns").as_uri()


def shown(text: str) -> str:
    """A URI, or text with URIs in it, without users and passwords."""
    return re.sub(r"//[^/@\s]*@", "//", text)


def reason(error: BaseException) -> str:
    """An error in one short line, fit to be shown."""
    return shown(" ".join(str(error).split()))[:300] or type(error).__name__
