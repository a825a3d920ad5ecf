"""Files that are there whole or not at all, and folders whose every byte is checked.

A folder is written under a temporary name beside its target, flushed to the disk and then renamed: a crash at any
moment leaves either the old folder or the new one. Writing leaves only whole folders behind; bits that flip later
are found by the manifest, since no table or tensor format finds them by itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any

import xxhash

from recsys_embed.errors import CheckpointError

MANIFEST = "manifest.json"

_TEMPORARY, _OLD = ".tmp-", ".old-"
_STORAGE_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO}
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


# --- publishing ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty temporary folder that becomes ``path`` when the block ends, all of it or none of it.

    An existing ``path`` is replaced (on Linux in one exchange, elsewhere by two renames with the old folder put
    back at the next call). When the block raises, ``path`` is as before and the temporary folder is gone. Temporary
    folders of processes that died are removed here.

    Raises:
        CheckpointError: ``path`` is a file, or the disk refused (full, read-only, not permitted); names the path.
    """
    target = Path(path)
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        raise CheckpointError(f"{target}: is not a folder, and a folder is to be written there", file=str(target))
    with typed_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        clean(target)
        temporary, lock = _locked_folder(target)
    try:
        with typed_errors(target, inside=temporary):
            yield temporary
            _sync_tree(temporary)
            _publish(temporary, target)
            sync(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # after an exchange this is the old folder
        if lock is not None:
            os.close(lock)


def publish(folder: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Make a finished folder of the same file system ``path``, as :func:`atomic_folder` does; an existing ``path`` then
    stands where the new folder was, or is gone.

    Raises:
        CheckpointError: the disk refused; names ``path``, which is as before.
    """
    source, target = Path(folder), Path(path)
    with typed_errors(target, inside=source):
        clean(target)
        _sync_tree(source)
        _publish(source, target)
        sync(target.parent)


def atomic_write(path: str | os.PathLike[str], data: str | bytes) -> None:
    """Write a file (text as UTF-8) so that after a crash it holds the old bytes or the new ones, never a mixture.

    Raises:
        CheckpointError: the disk refused; names the path. The old file is as before.
    """
    whole = data.encode("utf-8") if isinstance(data, str) else data
    with _atomic_path(Path(path), len(whole)) as temporary:
        temporary.write_bytes(whole)


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield an empty temporary file that becomes ``path`` when the block ends, for writers that stream.

    Raises:
        CheckpointError: the disk refused; names the path. The old file is as before, as it is when the block raises.
    """
    with _atomic_path(Path(path)) as temporary:
        yield temporary


@contextlib.contextmanager
def _atomic_path(target: Path, needed: int | None = None) -> Iterator[Path]:
    with typed_errors(target, needed=needed):
        target.parent.mkdir(parents=True, exist_ok=True)
        clean(target)
        temporary, lock = _locked_file(target)
    try:
        with lock, typed_errors(target, inside=temporary, needed=needed):
            yield temporary
            sync(temporary)
            os.replace(temporary, target)
            sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def only_writer(folder: str | os.PathLike[str]) -> Iterator[None]:
    """Make a folder and hold it for this block: nobody else's block for it can begin until then.

    The lock is the system's on the folder itself: it leaves no file behind and ends with the process. Where there are
    no locks (Windows, some network file systems) nothing is held.

    Raises:
        CheckpointError: somebody holds the folder, or it cannot be made; names it.
    """
    target = Path(folder)
    with typed_errors(target):
        target.mkdir(parents=True, exist_ok=True)
        descriptor = None if sys.platform == "win32" else os.open(target, os.O_RDONLY)
    try:
        if descriptor is not None and try_lock(descriptor) is False:
            raise CheckpointError(
                f"{target}: another run is writing here: wait until it has ended, or take another output folder",
                file=str(target),
            )
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def clean(path: str | os.PathLike[str]) -> None:
    """Remove what dead processes left beside ``path``; put an old folder back whose replacement never arrived."""
    target = Path(path)
    old = target.with_name(_OLD + target.name)
    if old.exists():
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            os.rename(old, target)
    _sweep(target.parent, re.escape(target.name))


def sweep(folder: str | os.PathLike[str]) -> None:
    """Remove what dead processes left in ``folder``, whatever it was to become."""
    _sweep(Path(folder), ".+")


def _sweep(folder: Path, names: str) -> None:
    stale = re.compile(re.escape(_TEMPORARY) + names + r"-[0-9a-f]{16}")
    for entry in list(folder.iterdir()) if folder.is_dir() else []:
        if stale.fullmatch(entry.name) and not _in_use(entry):
            shutil.rmtree(entry, ignore_errors=True) if entry.is_dir() else entry.unlink(missing_ok=True)


def _temporary_name(target: Path) -> Path:
    return target.with_name(f"{_TEMPORARY}{target.name}-{secrets.token_hex(8)}")


def _locked_folder(target: Path) -> tuple[Path, int | None]:
    """A new folder and the lock that says its writer is alive: the system drops it with the process."""
    while True:
        folder = _temporary_name(target)
        folder.mkdir()
        if sys.platform == "win32":
            return folder, None
        with contextlib.suppress(FileNotFoundError):  # another process took it for a dead one's before it was locked
            lock = os.open(folder, os.O_RDONLY)
            if try_lock(lock) is not False and folder.exists():
                return folder, lock
            os.close(lock)


def _locked_file(target: Path) -> tuple[Path, IO[bytes]]:
    while True:
        path = _temporary_name(target)
        file = open(path, "xb")  # noqa: SIM115 - the caller closes it
        if try_lock(file.fileno()) is not False and path.exists():
            return path, file
        file.close()


def try_lock(descriptor: int) -> bool | None:
    """Whether this process got the lock; None where there are no locks (Windows, some network file systems)."""
    if sys.platform == "win32":
        return None
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _in_use(entry: Path) -> bool:
    """Whether the writer of a temporary file or folder may be alive; without locks, for a day."""
    locked = None
    try:
        if sys.platform != "win32":
            descriptor = os.open(entry, os.O_RDONLY)
            locked = try_lock(descriptor)
            os.close(descriptor)
        return time.time() - entry.stat().st_mtime < 86_400 if locked is None else not locked
    except FileNotFoundError:
        return False
    except OSError:
        return True


def _publish(temporary: Path, target: Path) -> None:
    if not target.exists():
        os.rename(temporary, target)
    elif not _exchange(temporary, target):
        old = target.with_name(_OLD + target.name)
        os.rename(target, old)
        try:
            os.rename(temporary, target)
        except OSError:
            os.rename(old, target)
            raise
        shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one atomic step; False where the system cannot."""
    if sys.platform != "linux":
        return False
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    done: int = rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), ctypes.c_uint(_RENAME_EXCHANGE))
    return done == 0


def _sync_tree(folder: Path) -> None:
    for root, _, names in os.walk(folder, topdown=False):
        for name in names:
            sync(Path(root, name))
        sync(Path(root))


def sync(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    if sys.platform == "win32" and path.is_dir():
        return  # has no handle to flush
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def typed_errors(target: Path, *, inside: Path | None = None, needed: int | None = None) -> Iterator[None]:
    """Turn a refusal of the disk into CheckpointError. Errors about files outside ``inside`` are the caller's own.

    ``needed`` are the bytes to be written, where they are known.
    """
    try:
        yield
    except Exception as error:
        code = _errno(error)
        place = getattr(error, "filename", None)
        foreign = inside is not None and place is not None and inside not in [Path(place), *Path(place).parents]
        if code not in _STORAGE_ERRNOS or foreign:
            raise
        free = ""
        if code in (errno.ENOSPC, errno.EDQUOT):
            with contextlib.suppress(OSError):
                written = f"{_bytes_in(inside)} bytes were written so far" if inside is not None else ""
                asked = f"{needed} bytes are needed" if needed is not None else written
                free = f" ({asked}{', ' * bool(asked)}{shutil.disk_usage(target.parent).free} bytes are free)"
        raise CheckpointError(f"{target}: cannot be written: {os.strerror(code)}{free}", file=str(target)) from error


def _bytes_in(path: Path) -> int:
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def _errno(error: BaseException) -> int | None:
    """The system's error number; libraries written in Rust only put it into their text."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


# --- checking ------------------------------------------------------------------------------------------------


def checksum(path: str | os.PathLike[str]) -> str:
    """The xxh3_128 of a file's bytes, by which it is known again."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()


def write_manifest(folder: str | os.PathLike[str], *, without: str | None = None) -> str:
    """Write ``manifest.json`` with path, bytes and xxh3_64 of every other file, but for those of a folder ``without``,
    which has its own; return the checksum of that list."""
    root = Path(folder)
    found = [file.relative_to(root) for file in root.rglob("*") if file.is_file()]
    names = sorted(file.as_posix() for file in found if file.parts[0] != without)
    files = [
        {"path": name, "bytes": (root / name).stat().st_size, "xxh3_64": _checksum(root / name)}
        for name in names
        if name != MANIFEST
    ]
    text = _manifest_text(files)
    atomic_write(root / MANIFEST, text)
    return str(json.loads(text)["checksum"])


def verify_manifest(folder: str | os.PathLike[str]) -> dict[str, int]:
    """Check every file against the manifest; return path → bytes. Files the manifest does not list are ignored.

    Raises:
        CheckpointError: names the first file that is missing, cut short or changed.
    """
    root = Path(folder)
    files = _read_manifest(root)
    for entry in files:
        name, size, checksum = entry["path"], entry["bytes"], entry["xxh3_64"]
        path = root / name
        try:
            found = path.stat().st_size
            if found != size:
                raise CheckpointError(f"{path}: has {found} bytes instead of {size}", file=str(path))
            if _checksum(path) != checksum:
                raise CheckpointError(f"{path}: its contents have changed since it was written", file=str(path))
        except FileNotFoundError:
            raise CheckpointError(f"{path}: is missing", file=str(path)) from None
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read: {error}", file=str(path)) from error
    return {entry["path"]: entry["bytes"] for entry in files}


def _read_manifest(root: Path) -> list[dict[str, Any]]:
    path = root / MANIFEST
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        what = "is missing" if root.is_dir() else "is missing, as is its folder"
        raise CheckpointError(f"{path}: {what}", file=str(path)) from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error}", file=str(path)) from error
    try:
        files: list[dict[str, Any]] = json.loads(raw)["files"]
        whole = _manifest_text(files).encode("utf-8") == raw
        inside = all(
            not (name := PurePosixPath(entry["path"])).is_absolute() and ".." not in name.parts for entry in files
        )
    except (ValueError, KeyError, TypeError):
        whole = inside = False
    if not whole or not inside:
        raise CheckpointError(f"{path}: is not the manifest that was written: it is damaged", file=str(path))
    return files


def _manifest_text(files: list[dict[str, Any]]) -> str:
    """The one way to write a list of files; reading compares with it, so that no byte can change unnoticed."""
    checksum = xxhash.xxh3_64_hexdigest(json.dumps(files).encode("utf-8"))
    return json.dumps({"version": 1, "checksum": checksum, "files": files}, indent=1) + "\n"


def _checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, xxhash.xxh3_64).hexdigest()
