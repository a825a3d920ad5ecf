"""A checkpoint by the step it was taken at: ``step-00000700/`` with a safetensors file of each rank, state.json and one
manifest with the checksums of all.

What all ranks have alike is in the file of the first. Rows are dealt: each rank writes its share of the logical rows,
wherever they lie, and any number of ranks can deal them again. Written whole or not at all. Kept are the newest few and
those whose weights were best to these. The newest valid one is taken up; a damaged one is skipped with a warning. No
pickle: a checkpoint can run no code.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from recsys_embed import ranks
from recsys_embed.errors import CheckpointError
from recsys_embed.files import atomic_folder, sweep, sync, typed_errors, verify_manifest, write_manifest
from recsys_embed.share import WHOLE, Share

STATE = "state.json"

_T = TypeVar("_T")


def tensors_file(rank: int = 0, count: int = 1) -> str:
    """The name of a rank's file."""
    return f"rank-{rank:05d}-of-{count:05d}.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was opened: plain values, and tensors by name that are read when they are asked for.

    ``dealt`` are the names of those whose rows lie in the files of ``count`` ranks, one share after another.
    """

    path: Path
    step: int
    meta: dict[str, Any]
    count: int
    dealt: frozenset[str]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All of them, whole."""
        return self.share(WHOLE)

    def one(self, name: str) -> Tensor | None:
        """One of them, whole; None where there is none of the name."""
        with contextlib.ExitStack() as stack, _refused(self.path):
            files = [stack.enter_context(safe_open(file, "pt")) for file in self._files()]
            if name in self.dealt:
                return _rows([file.get_slice(name) for file in files], WHOLE)
            return files[0].get_tensor(name) if name in files[0].keys() else None  # noqa: SIM118

    def share(self, share: Share) -> dict[str, Tensor]:
        """What all ranks have alike, and a share of the rows that are dealt.

        As many ranks as there were get what they gave, also where that was no equal share.

        Raises:
            CheckpointError: a file is not what it was when the checkpoint was opened.
        """
        with contextlib.ExitStack() as stack, _refused(self.path):
            files = [stack.enter_context(safe_open(file, "pt")) for file in self._files()]
            found = {name: files[0].get_tensor(name) for name in files[0].keys() if name not in self.dealt}  # noqa: SIM118
            for name in sorted(self.dealt):
                if share.count == self.count:
                    found[name] = files[share.place].get_tensor(name)
                else:
                    found[name] = _rows([file.get_slice(name) for file in files], share)
        return found

    def check(self) -> None:
        """Look whether the files hold what the state says.

        Raises:
            CheckpointError: they do not.
        """
        with _refused(self.path):
            for file in self._files():
                with safe_open(file, "pt") as opened:
                    missing = self.dealt - set(opened.keys())
                if missing:
                    raise ValueError(f"{file.name} has no {min(missing)!r}")

    def _files(self) -> list[Path]:
        return [self.path / tensors_file(rank, self.count) for rank in range(self.count)]


def save(
    folder: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    meta: Mapping[str, Any],
    *,
    dealt: Mapping[str, Tensor] | None = None,
    keep: int = 2,
) -> Path:
    """Publish a checkpoint, then remove those that are no longer needed. All ranks call, for one folder.

    Args:
        folder: where a run's checkpoints lie.
        step: updates so far; a checkpoint of the same step is replaced, and later ones are removed.
        tensors: any names, dtypes and devices; views are copied. Those of the first rank are written.
        meta: values JSON can hold, floats exactly. ``best_step``, where given, names the checkpoint that must stay.
        dealt: this rank's rows of tensors that are spread over ranks, under the same names on all of them.
        keep: how many of the newest stay, besides the best of these.

    Raises:
        CheckpointError: the disk refused, to this rank or another; names the path. Earlier checkpoints are as before.
    """
    path, first, dealt = _path(folder, step), ranks.own() == 0, dealt or {}
    state = {"step": step, "ranks": ranks.count(), "dealt": sorted(dealt), **meta}
    text = json.dumps(state, allow_nan=False)
    with contextlib.ExitStack() as stack:
        begun = _together(path, lambda: str(stack.enter_context(atomic_folder(path))) if first else "")
        temporary = Path(ranks.told(begun))
        own = temporary / tensors_file(ranks.own(), ranks.count())
        mine = {name: _alone(tensor) for name, tensor in {**(tensors if first else {}), **dealt}.items()}

        def write() -> None:
            save_file(mine, own)
            sync(own)

        def publish() -> None:
            if first:
                (temporary / STATE).write_text(text, encoding="utf-8")
                write_manifest(temporary)
                stack.close()

        _together(path, write)
        _together(path, publish)
    if first:
        sweep(folder)
        _prune(folder, step, keep)
    return path


def write(folder: Path, meta: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Make a folder a checkpoint of one rank, of the plain values of another one and all of its tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: _alone(tensor) for name, tensor in tensors.items()}, folder / tensors_file())
    text = json.dumps({**meta, "ranks": 1}, allow_nan=False)
    (folder / STATE).write_text(text, encoding="utf-8")
    write_manifest(folder)


def load(path: Path, *, checked: bool = False) -> Checkpoint:
    """Open a checkpoint after checking every byte, unless another rank has.

    Raises:
        CheckpointError: names the file that is missing or damaged.
    """
    if not checked:
        verify_manifest(path)
    with _refused(path):
        meta = _state(path)
        found = Checkpoint(path, int(meta["step"]), meta, int(meta["ranks"]), frozenset(meta["dealt"]))
    found.check()
    return found


def newest(folder: Path) -> Checkpoint | None:
    """The newest valid checkpoint, or None. One whose best step is damaged is not valid either."""
    for step in sorted(_steps(folder), reverse=True):
        try:
            found = load(_path(folder, step))
            best = found.meta.get("best_step")
            if best not in (None, step):
                load(_path(folder, best))
            return found
        except CheckpointError as error:
            warnings.warn(f"checkpoint of step {step} is skipped: {error}", stacklevel=2)
    return None


def load_step(folder: Path, step: int) -> Checkpoint:
    """The checkpoint of one step, which :func:`newest` has checked; errors as :func:`load`."""
    return load(_path(folder, step), checked=True)


def peek(folder: Path) -> dict[str, Any]:
    """The plain values of the newest checkpoint whose state can be read, unchecked; empty where there is none."""
    for step in sorted(_steps(folder), reverse=True):
        with contextlib.suppress(OSError, ValueError):
            found = _state(_path(folder, step))
            if isinstance(found, dict):
                return found
    return {}


def _together(path: Path, action: Callable[[], _T]) -> _T:
    """Act on every rank; what the disk refuses to one of them, none of them has done."""
    refused: CheckpointError | None = None
    try:
        with typed_errors(path):
            result = action()
    except CheckpointError as error:
        refused = error
    except (OSError, SafetensorError) as error:
        refused = CheckpointError(f"{path}: cannot be written: {error}", file=str(path))
    if not ranks.everywhere(refused is None):
        raise refused or CheckpointError(f"{path}: another rank could not write its part", file=str(path))
    return result


@contextlib.contextmanager
def _refused(path: Path) -> Iterator[None]:
    """Turn what a file that is no part of a checkpoint leads to into our error."""
    try:
        yield
    except (OSError, ValueError, KeyError, IndexError, TypeError, SafetensorError) as error:
        raise CheckpointError(f"{path}: is not a checkpoint: {error}", file=str(path)) from error


def _rows(slices: list[Any], share: Share) -> Tensor:
    """A share of the rows that lie in some files one after another."""
    sizes = [part.get_shape()[0] for part in slices]
    first, last = share.of(sum(sizes))
    begin, pieces = 0, []
    for part, size in zip(slices, sizes, strict=True):
        low, high = max(first - begin, 0), min(last - begin, size)
        if low < high:
            pieces.append(part[low:high])
        begin += size
    return torch.cat(pieces) if pieces else slices[0][:0]


def _path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def _state(path: Path) -> Any:
    """What JSON the state of a checkpoint holds."""
    return json.loads((path / STATE).read_text(encoding="utf-8"))


def _steps(folder: Path) -> list[int]:
    found = [re.fullmatch(r"step-(\d{8,})", path.name) for path in folder.iterdir()] if folder.is_dir() else []
    return [int(match[1]) for match in found if match]


def _prune(folder: Path, step: int, keep: int) -> None:
    present = _steps(folder)
    kept = set(sorted(one for one in present if one <= step)[-keep:])
    for one in list(kept):
        try:
            best = _state(_path(folder, one)).get("best_step")
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
