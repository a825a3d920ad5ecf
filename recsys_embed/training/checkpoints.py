"""A checkpoint by the step it was taken at: ``step-00000700/`` with tensors.safetensors, state.json and checksums.

Written whole or not at all. Kept are the newest few and those whose weights were best to these. The newest valid one
is taken up; a damaged one is skipped with a warning. No pickle: a checkpoint can run no code.
"""

from __future__ import annotations

import json
import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from recsys_embed.errors import CheckpointError
from recsys_embed.files import atomic_folder, verify_manifest, write_manifest

TENSORS, STATE = "tensors.safetensors", "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read: tensors by name, and plain values."""

    path: Path
    step: int
    tensors: dict[str, Tensor]
    meta: dict[str, Any]


def save(folder: Path, step: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], *, keep: int = 2) -> Path:
    """Publish a checkpoint, then remove those that are no longer needed.

    Args:
        folder: where a run's checkpoints lie.
        step: updates so far; a checkpoint of the same step is replaced, and later ones are removed.
        tensors: any names, dtypes and devices; views are copied.
        meta: values JSON can hold, floats exactly. ``best_step``, where given, names the checkpoint that must stay.
        keep: how many of the newest stay, besides the best of these.

    Raises:
        CheckpointError: the disk refused; names the path. Earlier checkpoints are as before.
    """
    path = _path(folder, step)
    with atomic_folder(path) as temporary:
        save_file({name: _alone(tensor) for name, tensor in tensors.items()}, temporary / TENSORS)
        (temporary / STATE).write_text(json.dumps({"step": step, **meta}, allow_nan=False), encoding="utf-8")
        write_manifest(temporary)
    _prune(folder, step, keep)
    return path


def load(path: Path) -> Checkpoint:
    """Read a checkpoint after checking every byte.

    Raises:
        CheckpointError: names the file that is missing or damaged.
    """
    verify_manifest(path)
    try:
        meta = json.loads((path / STATE).read_text(encoding="utf-8"))
        return Checkpoint(path, int(meta["step"]), load_file(path / TENSORS), meta)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{path}: is not a checkpoint: {error}", file=str(path)) from error


def newest(folder: Path) -> Checkpoint | None:
    """The newest valid checkpoint, or None. One whose best step is damaged is not valid either."""
    for step in sorted(_steps(folder), reverse=True):
        try:
            found = load(_path(folder, step))
            best = found.meta.get("best_step")
            if best not in (None, step):
                verify_manifest(_path(folder, best))
            return found
        except CheckpointError as error:
            warnings.warn(f"checkpoint of step {step} is skipped: {error}", stacklevel=2)
    return None


def load_step(folder: Path, step: int) -> Checkpoint:
    """The checkpoint of one step; errors as :func:`load`."""
    return load(_path(folder, step))


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def _steps(folder: Path) -> list[int]:
    found = [re.fullmatch(r"step-(\d{8,})", path.name) for path in folder.iterdir()] if folder.is_dir() else []
    return [int(match[1]) for match in found if match]


def _prune(folder: Path, step: int, keep: int) -> None:
    present = _steps(folder)
    kept = set(sorted(one for one in present if one <= step)[-keep:])
    for one in list(kept):
        try:
            best = json.loads((_path(folder, one) / STATE).read_text(encoding="utf-8")).get("best_step")
        except (OSError, ValueError):
            continue  # damaged: needs no best step
        kept.add(one if best is None else best)
    for one in present:
        if one not in kept:
            shutil.rmtree(_path(folder, one), ignore_errors=True)


def _alone(tensor: Tensor) -> Tensor:
    """The tensor in main memory, with storage of its own, as the format wants it."""
    tensor = tensor.detach().cpu().contiguous()
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole else tensor.clone()
