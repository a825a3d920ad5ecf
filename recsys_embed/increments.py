"""A model published as it changes: a snapshot, then increments of the rows, entries and files that are not what they
were.

A folder of numbered folders. Each has the number, the checksum of what it applies to and of what it leads to; whoever
holds one of these states needs only what came after it. Values that were forgotten are in what was published before:
a new snapshot replaces all of that.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from recsys_embed.data.checked import read_checked
from recsys_embed.errors import CheckpointError
from recsys_embed.files import MANIFEST, atomic_folder, only_writer, verify_manifest, write_manifest
from recsys_embed.served import Served, as_bytes, same_rows

HEAD, MODEL, TENSORS, ID = "increment.json", "model", "rows.safetensors", "id"
_ROWS, _VALUES, _WHOLE = "rows.", "values.", "whole."
_FORMAT = 1


@dataclass(frozen=True)
class Head:
    """What an increment says of itself. ``base`` is None for a snapshot; ``changed`` counts rows of tensors and tables;
    ``removed`` are names that are no longer there, ``sizes`` the rows of the tensors and tables that changed."""

    number: int
    base: str | None
    leads_to: str
    changed: dict[str, int] = field(default_factory=dict)
    removed: tuple[str, ...] = ()
    sizes: dict[str, int] = field(default_factory=dict)
    format: int = _FORMAT


@dataclass(frozen=True)
class Published:
    """What was written, and its ``head``; ``folder`` is None where the model is as it was published last."""

    folder: Path | None
    head: Head


def publish(model: str | Path, to: str | Path, *, snapshot: bool = False) -> Published:
    """Publish what a model serves: at first and with ``snapshot`` as a whole, else what has changed since then.

    A snapshot replaces all that was published before. Training state is never published. Needs room for what is served,
    twice.

    Raises:
        CheckpointError: the model or what was published is damaged, or the disk refused.
    """
    folder = Path(to)
    new = Served.read(Path(model))
    with only_writer(folder):
        heads = _chain(folder)
        if not heads or snapshot:
            head = Head(heads[-1].number + 1 if heads else 0, None, new.digest)
            with atomic_folder(_place(folder, head.number)) as temporary:
                new.write(temporary / MODEL)
                _finish(temporary, head)
            for path in _numbered(folder):
                if int(path.name) < head.number:
                    shutil.rmtree(path)
            return Published(_place(folder, head.number), head)
        last = heads[-1]
        leads_to = new.digest
        if leads_to == last.leads_to:
            return Published(None, last)
        old_state = _state(folder, heads, None)
        with atomic_folder(_place(folder, last.number + 1)) as temporary:
            head = _write_changes(old_state, new, temporary, Head(last.number + 1, last.leads_to, leads_to))
            _finish(temporary, head)
        return Published(_place(folder, head.number), head)


@dataclass(frozen=True)
class Applied:
    """The model folder, the numbers that were applied to reach it, and the last one, whose state it has."""

    model: Path
    numbers: tuple[int, ...]
    number: int


def apply(folder: str | Path, out: str | Path) -> Applied:
    """Make ``out`` the model that was published last: from where it stands, if that is one of the published states,
    else from the snapshot. The files are those of the model that was published, but for its training state.

    Raises:
        CheckpointError: nothing was published; an increment is missing, is there twice, is not of its number or does
            not follow the one before it; a file is damaged; or ``out`` holds something that is no model.
    """
    source, target = Path(folder), Path(out)
    heads = _chain(source)
    if not heads:
        raise CheckpointError(f"{source}: nothing was published here", file=str(source))
    own = None
    if (target / MANIFEST).is_file():
        own = Served.read(target)
    elif target.is_dir() and any(target.iterdir()):
        raise CheckpointError(f"{target}: holds something that is no model", file=str(target))
    reached = {head.leads_to: place for place, head in enumerate(heads)}
    at = None if own is None else reached.get(own.digest)
    after = heads if at is None else heads[at + 1 :]
    if after:
        state = _state(source, heads, None if at is None else (own, at))
        if state.digest != heads[-1].leads_to:
            place = _place(source, heads[-1].number)
            raise CheckpointError(f"{place}: does not lead to the model that was published", file=str(place))
        state.write(target)
    return Applied(target, tuple(head.number for head in after), heads[-1].number)


# --- the chain -----------------------------------------------------------------------------------------------


def _place(folder: Path, number: int) -> Path:
    return folder / f"{number:08d}"


def _numbered(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.name.isdecimal()] if folder.is_dir() else []


def _chain(folder: Path) -> list[Head]:
    """What was published, from the snapshot on, each following the one before it."""
    found: dict[int, Path] = {}
    for path in _numbered(folder):
        number = int(path.name)
        if number in found:
            raise CheckpointError(f"{path}: increment {number} is there twice, also as {found[number]}", file=str(path))
        found[number] = path
    heads: list[Head] = []
    # A new snapshot may stand beside what it replaces, if its writer was stopped.
    last_snapshot = max((n for n, path in found.items() if (path / MODEL).is_dir()), default=min(found, default=0))
    for number in sorted(found):
        if number < last_snapshot:
            continue
        path, head = found[number], _head(found[number])
        if head.number != number:
            raise CheckpointError(f"{path}: is increment {head.number}, under another number", file=str(path))
        if not heads and head.base is not None:
            raise CheckpointError(f"{path}: the snapshot before it is missing", file=str(path))
        if heads and number != heads[-1].number + 1:
            missing = _place(folder, heads[-1].number + 1)
            raise CheckpointError(f"{missing}: increment {heads[-1].number + 1} is missing", file=str(missing))
        if heads and head.base != heads[-1].leads_to:
            raise CheckpointError(
                f"{path}: increment {number} applies to {head.base}, and the one before it leads to "
                f"{heads[-1].leads_to}: it is not of this order",
                file=str(path),
            )
        heads.append(head)
    return heads


def _head(path: Path) -> Head:
    verify_manifest(path)
    try:
        tree = json.loads((path / HEAD).read_text(encoding="utf-8"))
        if tree["format"] != _FORMAT:
            raise ValueError(f"has format {tree['format']}, this version reads {_FORMAT}")
        return Head(**{**tree, "removed": tuple(tree["removed"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path / HEAD}: cannot be read: {error}", file=str(path / HEAD)) from error


def _finish(folder: Path, head: Head) -> None:
    (folder / HEAD).write_text(json.dumps(asdict(head), indent=1) + "\n", encoding="utf-8")
    write_manifest(folder)


def _state(folder: Path, heads: list[Head], begin: tuple[Served | None, int] | None) -> Served:
    """The last state of a chain, from its snapshot or from a state that is at hand and its place."""
    state, at = (None, 0) if begin is None else begin
    if state is None:
        state = Served.read(_place(folder, heads[0].number) / MODEL)
    for head in heads[at + 1 :]:
        state = _changed(state, _place(folder, head.number), head)
    return state


# --- what has changed ----------------------------------------------------------------------------------------


def _write_changes(old: Served, new: Served, folder: Path, head: Head) -> Head:
    """Write what has to be done to ``old``; the head with the account of it."""
    parts: dict[str, Tensor] = {}
    changed: dict[str, int] = {}
    sizes: dict[str, int] = {}
    for name, tensor in new.tensors.items():
        before = old.tensors.get(name)
        if before is None or not _grown(before, tensor):
            parts[_WHOLE + name], changed[name] = tensor, len(tensor) if tensor.dim() else 1
            continue
        rows = _rows_that_differ(before, tensor)
        if len(rows) or len(before) != len(tensor):
            parts |= {_ROWS + name: rows, _VALUES + name: tensor[rows]}
            changed[name], sizes[name] = len(rows), len(tensor)
    save_file(parts, folder / TENSORS)
    for name, table in new.tables.items():
        earlier = old.tables.get(name)
        followed = earlier is not None and earlier.column_names == table.column_names and len(earlier) <= len(table)
        ids = np.arange(len(table))
        if earlier is not None and followed:
            ids = np.append(np.flatnonzero(~same_rows(earlier, table, len(earlier))), ids[len(earlier) :])
        if len(ids) or not followed:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            entries = table if not followed else table.take(pa.array(ids)).append_column(ID, pa.array(ids))
            pq.write_table(entries, path, write_page_checksum=True)
            changed[name] = len(ids)
            if followed:
                sizes[name] = len(table)
    for name, data in new.files.items():
        if old.files.get(name) != data:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            changed[name] = 1
    removed = [*(old.tensors.keys() - new.tensors.keys()), *(old.tables.keys() - new.tables.keys())]
    removed += old.files.keys() - new.files.keys()
    return Head(head.number, head.base, head.leads_to, changed, tuple(sorted(removed)), sizes)


def _changed(old: Served, folder: Path, head: Head) -> Served:
    """A state after an increment."""
    parts = load_file(folder / TENSORS)
    tensors = {name: tensor for name, tensor in old.tensors.items() if name not in head.removed}
    tables = {name: table for name, table in old.tables.items() if name not in head.removed}
    files = {name: data for name, data in old.files.items() if name not in head.removed}
    for name in head.changed:
        if _WHOLE + name in parts:
            tensors[name] = parts[_WHOLE + name]
        elif _ROWS + name in parts:
            tensors[name] = _with_rows(tensors[name], head.sizes[name], parts[_ROWS + name], parts[_VALUES + name])
        elif name.endswith(".parquet"):
            entries = read_checked(folder / name)
            tables[name] = entries if name not in head.sizes else _with_entries(tables[name], entries)
        else:
            files[name] = (folder / name).read_bytes()
    return Served(tensors, tables, files)


def _grown(before: Tensor, after: Tensor) -> bool:
    """Whether the rows of one can be those of the other, and more."""
    alike = before.dtype == after.dtype and before.dim() == after.dim() > 0
    return alike and before.shape[1:] == after.shape[1:] and len(before) <= len(after)


def _rows_that_differ(before: Tensor, after: Tensor) -> Tensor:
    """Numbers ``[n]`` of the rows whose bytes differ, the new ones among them."""
    count = len(before)
    if not count:
        return torch.arange(len(after))
    one, other = (as_bytes(tensor[:count]).reshape(count, -1) for tensor in (before, after))
    differ = np.flatnonzero((one != other).any(axis=1))
    return torch.from_numpy(np.append(differ, np.arange(count, len(after))))


def _with_rows(tensor: Tensor, size: int, rows: Tensor, values: Tensor) -> Tensor:
    grown = tensor.new_zeros(size, *tensor.shape[1:])
    grown[: len(tensor)] = tensor
    grown[rows] = values
    return grown


def _with_entries(table: pa.Table, entries: pa.Table) -> pa.Table:
    ids = entries[ID].to_numpy()
    size = max(len(table), int(ids.max(initial=-1)) + 1)
    source = np.arange(size)
    source[ids] = len(table) + np.arange(len(ids))
    own = entries.drop_columns([ID])
    return pa.concat_tables([table.cast(own.schema), own]).take(pa.array(source))


def describe(published: Published) -> Mapping[str, object]:
    """What was published, in plain values."""
    head = published.head
    return {
        "number": head.number,
        "kind": "nothing new" if published.folder is None else "snapshot" if head.base is None else "increment",
        "folder": None if published.folder is None else str(published.folder),
        "applies_to": head.base,
        "leads_to": head.leads_to,
        "changed": {} if published.folder is None else head.changed,
    }
