"""Where a search keeps its trials, so that many processes can share them and none can damage them.

SQLite in the output folder, a journal file, or any database that SQLAlchemy knows. Optuna reads and writes them; plain
Optuna opens them too.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recsys_embed.errors import CheckpointError, StackError
from recsys_embed.files import sync, try_lock, typed_errors
from recsys_embed.tracking.uris import reason, shown

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

_LOG = logging.getLogger("recsys_embed")
INSTALL = "pip install 'recsys-embed[search]'"
_BUSY_SECONDS = 60.0
"""How long a writer waits for others that hold the database or the journal."""


def optuna() -> Any:
    """The library, with its own messages at warnings.

    Raises:
        StackError: it is missing.
    """
    try:
        import optuna as library
    except ImportError as error:
        raise StackError(f"a search needs Optuna: {INSTALL}", component="optuna", mend=INSTALL) from error
    library.logging.set_verbosity(library.logging.WARNING)
    return library


def open_storage(where: str, folder: Path) -> BaseStorage:
    """The storage that ``search.storage`` names: ``sqlite`` and ``journal`` are files in ``folder``, a URL a database,
    anything else the path of a journal.

    Raises:
        CheckpointError: it cannot be opened; names it.
    """
    library = optuna()
    if where != "sqlite" and "://" not in where:
        path = folder / "trials.journal" if where == "journal" else Path(where)
        with typed_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        journal: BaseStorage = library.storages.JournalStorage(_journal(path))
        return journal
    url = where
    if where == "sqlite":
        with typed_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        url = f"sqlite:///{(folder / 'trials.db').resolve()}"
    waits = {"connect_args": {"timeout": _BUSY_SECONDS}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    try:
        database: BaseStorage = library.storages.RDBStorage(url, engine_kwargs=waits)
        return database
    except Exception as error:
        raise CheckpointError(f"{shown(url)}: cannot be opened: {reason(error)}", file=shown(url)) from error


def _journal(path: Path) -> Any:
    """The journal at ``path``, mended, under a lock that ends with the process that holds it."""
    from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
    from optuna.storages.journal._file import BaseJournalFileLock

    class Lock(BaseJournalFileLock):
        """Optuna's own lock is a link that outlives a killed process: the next one waits for half a minute."""

        def __init__(self) -> None:
            self._descriptor = -1

        def acquire(self) -> bool:
            self._descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT)
            begin = time.monotonic()
            while try_lock(self._descriptor) is False:
                if time.monotonic() - begin > _BUSY_SECONDS:
                    os.close(self._descriptor)
                    raise CheckpointError(f"{path}: another process has held it for a minute", file=str(path))
                time.sleep(0.01)
            return True

        def release(self) -> None:
            os.close(self._descriptor)

    lock = Lock() if _has_locks(path) else JournalFileSymlinkLock(str(path))
    if path.exists():
        lock.acquire()
        try:
            if (copy := mend(path)) is not None:
                _LOG.warning("%s had a torn record, which was dropped; the file as it was is %s", path, copy.name)
        finally:
            lock.release()
    return JournalFileBackend(str(path), lock_obj=lock)


def _has_locks(path: Path) -> bool:
    with typed_errors(path):
        descriptor = os.open(f"{path}.locks", os.O_RDWR | os.O_CREAT)
    try:
        return try_lock(descriptor) is not None
    finally:
        os.close(descriptor)
        os.unlink(f"{path}.locks")


def mend(path: Path) -> Path | None:
    """Drop the records of a journal that a killed writer or a full disk left torn; where the whole file is kept.

    A record is a line. A torn one was never read by anybody, as readers stop before it, but the next writer would go on
    in the same line, after which no reader gets any further.

    None: nothing was torn.
    """
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    sound = [line for line in lines if _is_record(line)]
    if len(sound) == len(lines):
        return None
    copy = path.with_name(f"{path.name}.torn-{time.strftime('%Y%m%d-%H%M%S')}")
    with typed_errors(path):
        shutil.copyfile(path, copy)
        sync(copy)
        mended = path.with_name(f"{path.name}.mended")
        mended.write_bytes(b"".join(sound))
        sync(mended)
        os.replace(mended, path)
    return copy


def _is_record(line: bytes) -> bool:
    if not line.endswith(b"\n"):
        return False
    try:
        record = json.loads(line)
    except ValueError:
        return False
    return isinstance(record, dict) and "op_code" in record and "worker_id" in record
