"""Where a search keeps its trials, so that many processes can share them and none can damage them.

SQLite in the output folder, a journal file, or any database that SQLAlchemy knows. Optuna reads and writes them; plain
Optuna opens them too.
"""

from __future__ import annotations

import contextlib
import errno
import random
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recsys_embed.errors import CheckpointError, StackError
from recsys_embed.files import typed_errors
from recsys_embed.tracking.uris import database, reason, shown

if TYPE_CHECKING:
    from optuna.storages import BaseStorage

INSTALL = "pip install 'recsys-embed[search]'"
_BUSY_SECONDS = 60.0
"""How long a writer waits for others that hold the database or the journal."""
_BOTH_MADE = re.compile("already exists|UNIQUE|[Dd]uplicate")
"""What databases say where two processes make the same tables."""


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


def place_of(where: str, folder: Path) -> str:
    """The URL of the database, or the path of the journal, that ``search.storage`` names."""
    if where == "sqlite":
        return f"sqlite:///{(folder / 'trials.db').resolve()}"
    return str(folder / "trials.journal") if where == "journal" else where


def open_storage(where: str, folder: Path) -> BaseStorage:
    """The storage that ``search.storage`` names: ``sqlite`` and ``journal`` are files in ``folder``, a URL a database,
    anything else the path of a journal.

    Raises:
        CheckpointError: it cannot be opened; names it.
    """
    library, url = optuna(), place_of(where, folder)
    try:
        if "://" not in url:
            from recsys_embed.search.journal import Journal

            Path(url).parent.mkdir(parents=True, exist_ok=True)
            storage: BaseStorage = library.storages.JournalStorage(Journal(Path(url), _BUSY_SECONDS))
            return storage
        folder.mkdir(parents=True, exist_ok=True)
        return _database(library, url)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{shown(url)}: cannot be opened: {reason(error)}", file=shown(url)) from error


@contextlib.contextmanager
def storage_errors(where: str, folder: Path) -> Iterator[None]:
    """Name the storage in errors of its database: it is full, away, or was held for too long.

    Raises:
        CheckpointError: instead of Optuna's.
    """
    url = place_of(where, folder)
    try:
        yield
    except optuna().exceptions.StorageInternalError as error:
        told, file = reason(error.__cause__ or error), database(url)
        if file is not None and "disk is full" in told:
            with typed_errors(file):
                raise OSError(errno.ENOSPC, told) from error
        raise CheckpointError(f"{shown(url)}: {told}; the same command goes on from there", file=shown(url)) from error


def _database(library: Any, url: str) -> BaseStorage:
    """The database at ``url``, whose tables may be made by another process at this moment."""
    sqlite = url.startswith("sqlite")
    options = {"connect_args": {"timeout": _BUSY_SECONDS}} if sqlite else {"pool_pre_ping": True}
    for wait in (0.1, 0.5, 2.0, None):
        try:
            storage = library.storages.RDBStorage(url, engine_kwargs=options)
            break
        except Exception as error:
            if wait is None or not _BOTH_MADE.search(str(error)):
                raise
            time.sleep(wait * random.uniform(0.5, 1.5))
    if sqlite:
        _one_at_a_time(storage.engine)
    opened: BaseStorage = storage
    return opened


def _one_at_a_time(engine: Any) -> None:
    """Hold SQLite's lock for the whole of every transaction.

    Optuna asks for the lock of the row that it reads and then changes. SQLite has none, and Python begins a transaction
    at the change: two workers would take one trial, or one would give up what the other just completed.
    """
    from sqlalchemy import event

    def begun(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    event.listen(engine, "begin", begun)
