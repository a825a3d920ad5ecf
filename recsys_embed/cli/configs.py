"""The config that a command was given: a file or a run, with overrides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from recsys_embed.errors import ConfigError

if TYPE_CHECKING:
    from recsys_embed.config import Config, TrackingConfig


def read_config(path: Path | None, overrides: Sequence[str] | None, *, from_run: str | None = None) -> Config:
    """The config in a file, or the one that a run was logged with.

    Raises:
        ConfigError: both or neither are given, or what is given is no config.
    """
    from recsys_embed.config import load_config, parse_config

    changes = tuple(overrides or ())
    if (path is None) == (from_run is None):
        raise ConfigError("give either CONFIG or --from-run RUN_ID")
    if path is not None:
        return load_config(path, changes)
    assert from_run is not None
    from recsys_embed.tracking import fetch_config

    return parse_config(fetch_config(from_run, _tracking(changes)), changes, source=f"run {from_run}")


def _tracking(overrides: Sequence[str]) -> TrackingConfig:
    """Where to look for a run: the tracking keys among the overrides."""
    from recsys_embed.config import parse_config

    wanted = tuple(one for one in overrides if one.startswith("tracking."))
    return parse_config({"data": {"planted": {}}}, wanted, source="--set").tracking


def data_name(config: Config) -> str:
    """A short name of the data, for default folders."""
    if config.data.planted is not None:
        return "planted"
    path = config.data.path or (config.data.split.files or {})["train"]
    name = Path(path).name.split(".")[0]
    return name if name and not set(name) & set("*?[") else Path(path).parent.name or "data"
