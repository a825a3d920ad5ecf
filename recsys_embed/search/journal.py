"""A journal of trials that outlives its writers: Optuna's, mended where it is opened and before anything is added.

A record is a line. A torn one, of a killed writer or a full disk, was never read by anybody, as readers stop before it,
but the next writer would go on in the same line, after which no reader gets any further.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
from itertools import count
from pathlib import Path
from typing import Any

from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.storages.journal._file import BaseJournalFileLock, get_lock_file

from recsys_embed.errors import CheckpointError
from recsys_embed.files import atomic_write, try_lock, typed_errors

_LOG = logging.getLogger("recsys_embed")
_START = b'{"op_code":'
"""How Optuna begins every record."""


class Journal(JournalFileBackend):
    """The journal at ``path``. A writer waits ``patience`` seconds for another.

    Raises:
        CheckpointError: the file is no journal, or the disk refused; names it.
    """

    def __init__(self, path: Path, patience: float) -> None:
        self._path = path
        with typed_errors(path):
            path.touch()
            super().__init__(str(path), lock_obj=_lock(path, patience))
        with get_lock_file(self._lock):
            self._mend()

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Add records, all or none.

        Raises:
            CheckpointError: the disk refused; names the file, and the bytes needed. It is as before.
        """
        whole = "".join(json.dumps(log, separators=(",", ":")) + "\n" for log in logs).encode()
        with get_lock_file(self._lock), typed_errors(self._path, needed=len(whole)):
            if not _ends_well(self._path):
                self._mend()
            with open(self._path, "ab", buffering=0) as file:
                end = file.tell()
                try:
                    left = memoryview(whole)
                    while left:
                        left = left[file.write(left) :]
                    os.fsync(file.fileno())
                except OSError:
                    with contextlib.suppress(OSError):
                        file.truncate(end)
                    raise

    def _mend(self) -> None:
        if (copy := mend(self._path)) is not None:
            _LOG.warning("%s had a torn record, which was dropped; the file as it was is %s", self._path, copy.name)


class _Lock(BaseJournalFileLock):
    """A lock that ends with the process that holds it. Optuna's own is a link that outlives a killed process: the next
    one waits for half a minute."""

    def __init__(self, path: Path, patience: float) -> None:
        self._path, self._patience, self._descriptor = path, patience, -1

    def acquire(self) -> bool:
        self._descriptor = _opened(self._path)
        begin = time.monotonic()
        while try_lock(self._descriptor) is False:
            if time.monotonic() - begin > self._patience:
                os.close(self._descriptor)
                told = f"{self._path}: another process has held it for {self._patience:g} seconds"
                raise CheckpointError(told, file=str(self._path))
            time.sleep(0.01)
        return True

    def release(self) -> None:
        os.close(self._descriptor)


def _lock(path: Path, patience: float) -> BaseJournalFileLock:
    descriptor = _opened(path)
    try:
        there = try_lock(descriptor) is not None
    finally:
        os.close(descriptor)
    return _Lock(path, patience) if there else JournalFileSymlinkLock(str(path))


def _opened(path: Path) -> int:
    """The file that is locked: not the journal, which mending replaces, nor Optuna's link, which it takes for held."""
    with typed_errors(path):
        return os.open(f"{path}.held", os.O_RDWR | os.O_CREAT, 0o666)


def _ends_well(path: Path) -> bool:
    with open(path, "rb") as file:
        if not file.seek(0, os.SEEK_END):
            return True
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def mend(path: Path) -> Path | None:
    """Drop what is torn of a journal and keep every whole record; the copy of the file as it was.

    None: nothing was torn.

    Raises:
        CheckpointError: the file holds something else, and is left as it is; or the disk refused.
    """
    whole = path.read_bytes()
    lines = whole.split(b"\n")[:-1]  # a record without its newline was never told to be written
    sound = b"".join(record + b"\n" for line in lines if (record := _record_of(line)) is not None)
    if sound == whole:
        return None
    if not sound and not _is_begun(whole):
        raise CheckpointError(f"{path}: is no journal of trials", file=str(path))
    copy = next(free for n in count(1) if not (free := path.with_name(f"{path.name}.torn-{n}")).exists())
    atomic_write(copy, whole)
    atomic_write(path, sound)
    return copy


def _record_of(line: bytes) -> bytes | None:
    """The record that ends a line, which may begin with a torn one."""
    place = 0
    while place >= 0:
        with contextlib.suppress(ValueError):
            record = json.loads(line[place:])
            if isinstance(record, dict) and "op_code" in record and "worker_id" in record:
                return line[place:]
        place = line.find(_START, place + 1)
    return None


def _is_begun(whole: bytes) -> bool:
    """Whether a file without a record may be a journal whose first one is torn, or was never written."""
    return whole.startswith(_START) or _START.startswith(whole) or not whole.strip(b"\0")
