"""One checkpoint per epoch: ``epoch-0007/`` with tensors.safetensors, state.json and a manifest of checksums.

Written whole or not at all. Kept are the newest two and the epochs whose weights were best to these. The newest
valid one is taken up; a damaged one is skipped with a warning. No pickle: a checkpoint can run no code.
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
KEPT = 2


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read: tensors by name, and plain values."""

    path: Path
    epoch: int
    tensors: dict[str, Tensor]
    meta: dict[str, Any]


def save(folder: Path, epoch: int, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> Path:
    """Publish a checkpoint, then remove those that are no longer needed.

    Args:
        folder: where a run's checkpoints lie.
        epoch: 1-based; a checkpoint of the same epoch is replaced, and later ones are removed.
        tensors: any names and dtypes; views are copied.
        meta: values JSON can hold, floats exactly. ``best_epoch``, where given, names the epoch that must stay.

    Raises:
        CheckpointError: the disk refused; names the path. Earlier checkpoints are as before.
    """
    path = _path(folder, epoch)
    with atomic_folder(path) as temporary:
        save_file({name: _alone(tensor) for name, tensor in tensors.items()}, temporary / TENSORS)
        (temporary / STATE).write_text(json.dumps({"epoch": epoch, **meta}, allow_nan=False), encoding="utf-8")
        write_manifest(temporary)
    _prune(folder, epoch)
    return path


def load(path: Path) -> Checkpoint:
    """Read a checkpoint after checking every byte.

    Raises:
        CheckpointError: names the file that is missing or damaged.
    """
    verify_manifest(path)
    try:
        meta = json.loads((path / STATE).read_text(encoding="utf-8"))
        return Checkpoint(path, int(meta["epoch"]), load_file(path / TENSORS), meta)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{path}: is not a checkpoint: {error}", file=str(path)) from error


def newest(folder: Path) -> Checkpoint | None:
    """The newest valid checkpoint, or None. One whose best epoch is damaged is not valid either."""
    for epoch in sorted(_epochs(folder), reverse=True):
        try:
            found = load(_path(folder, epoch))
            best = found.meta.get("best_epoch")
            if best not in (None, epoch):
                verify_manifest(_path(folder, best))
            return found
        except CheckpointError as error:
            warnings.warn(f"checkpoint of epoch {epoch} is skipped: {error}", stacklevel=2)
    return None


def load_epoch(folder: Path, epoch: int) -> Checkpoint:
    """The checkpoint of one epoch; errors as :func:`load`."""
    return load(_path(folder, epoch))


def _path(folder: Path, epoch: int) -> Path:
    return folder / f"epoch-{epoch:04d}"


def _epochs(folder: Path) -> list[int]:
    found = [re.fullmatch(r"epoch-(\d{4,})", path.name) for path in folder.iterdir()] if folder.is_dir() else []
    return [int(match[1]) for match in found if match]


def _prune(folder: Path, epoch: int) -> None:
    present = _epochs(folder)
    kept = set(sorted(one for one in present if one <= epoch)[-KEPT:])
    for one in list(kept):
        try:
            kept.add(json.loads((_path(folder, one) / STATE).read_text(encoding="utf-8")).get("best_epoch", one))
        except (OSError, ValueError):
            continue  # damaged: needs no best epoch
    for one in present:
        if one not in kept:
            shutil.rmtree(_path(folder, one), ignore_errors=True)


def _alone(tensor: Tensor) -> Tensor:
    """The tensor with memory of its own, as the format wants it."""
    tensor = tensor.detach().contiguous()
    whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
    return tensor if whole else tensor.clone()
