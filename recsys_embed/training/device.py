"""The device of a run."""

from __future__ import annotations

import torch

from recsys_embed import ranks
from recsys_embed.errors import ConfigError


def device_of(name: str) -> torch.device:
    """The device that ``training.device`` names.

    Raises:
        ConfigError: it is not there.
    """
    device = torch.device(name)
    if device.type != "cuda":
        return device
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        why = "this build of torch has no CUDA" if torch.version.cuda is None else "no CUDA device is visible"
        raise ConfigError(f"training.device = {name!r}, but {why}: use 'cpu'", path="training.device")
    index = device.index if ":" in name else ranks.local()
    if index >= count:
        raise ConfigError(f"training.device = {name!r}, but there are {count} CUDA devices", path="training.device")
    return torch.device("cuda", index)
