"""Where a job's operations go: a local store at once, a server from a spool."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from recsys_embed.tracking.courier import Courier, RefusedError
from recsys_embed.tracking.operations import end
from recsys_embed.tracking.spool import Operation, Spool
from recsys_embed.tracking.store import Store, is_refusal, probe, settings
from recsys_embed.tracking.uris import reason, shown

FOLDER = "mlflow-pending"
JOB = 0  # the job's own run among the runs of a job; nested ones follow
PENDING = "pending-"
_LOG = logging.getLogger("recsys_embed.tracking")
_RESERVE_SECONDS = 1.5


class Outbox(Protocol):
    """Where a job's operations go."""

    def put(self, operations: Sequence[Operation]) -> None:
        """Take operations, in their order."""

    def id(self, run: int, *, wait: bool = False) -> str:
        """The id of one of the job's runs; ``wait`` a little for a server to give it."""

    def close(self) -> int:
        """Deliver what can be, and say what is left; return how many operations are."""


class Direct:
    """A local store, written at once, from when it is open: MLflow takes seconds to import, in which the job goes on.

    An error in the background is raised by the next call.
    """

    def __init__(self, uri: str, borrowed: str | None) -> None:
        self._ids = {JOB: borrowed} if borrowed else {}
        self._store = Store(uri)
        self._waiting: list[Operation] | None = []  # None: it is open
        self._changing = threading.Lock()
        self._error: Exception | None = None
        self._opening = threading.Thread(target=self._open, name="recsys_embed.tracking")
        self._opening.start()

    def put(self, operations: Sequence[Operation]) -> None:
        with self._changing:
            if self._waiting is not None and self._error is None:
                self._waiting += operations
                return
        self._opened()
        self._send(operations)

    def id(self, run: int, *, wait: bool = False) -> str:
        self._opened()
        return self._ids[run]

    def close(self) -> int:
        self._opened()
        return 0

    def _open(self) -> None:
        try:
            with settings():
                self._store.connect()
                while operations := self._next():
                    self._send(operations)
        except Exception as error:
            self._error = error

    def _next(self) -> list[Operation]:
        """What waits; where nothing does, from now on nothing will."""
        with self._changing:
            assert self._waiting is not None
            operations, self._waiting = self._waiting, [] if self._waiting else None
        return operations

    def _opened(self) -> None:
        self._opening.join()
        if self._error is not None:
            raise self._error

    def _send(self, operations: Sequence[Operation]) -> None:
        for operation in operations:
            created = self._store.send(operation, self._ids)
            if created is not None:
                self._ids[operation["run"]] = created


class Spooled:
    """A server, written from a spool in the background."""

    def __init__(self, uri: str, borrowed: str | None, handle: str | None = None) -> None:
        self._folder = Path.cwd() / FOLDER
        self._shown = shown(uri)
        self._spool = Spool.new(self._folder, {"uri": self._shown, "borrowed": borrowed, "handle": handle})
        if borrowed:
            self._spool.ids[JOB] = borrowed
        self._courier = _courier(uri, self._folder)

    def put(self, operations: Sequence[Operation]) -> None:
        self._courier.put(self._spool, operations)

    def id(self, run: int, *, wait: bool = False) -> str:
        if wait:
            self._courier.wait(lambda: run in self._spool.ids, reserve=_RESERVE_SECONDS)
        return self._spool.ids.get(run) or _handle(self._spool, run)

    def close(self) -> int:
        if left := self._courier.close():
            _say_what_is_left(left, self._shown, self._folder, self._courier.reason)
        return left


def new_handle() -> str:
    """A name for a job's run, which finds it before and after it has an id."""
    return f"{PENDING}{secrets.token_hex(8)}"


def _courier(uri: str, folder: Path | None) -> Courier:
    """To a server, and with what earlier jobs left in a folder."""
    store = Store(uri)

    def send(spool: Spool, number: int, operation: Operation) -> str | None:
        run = operation["run"]
        unsure = number in spool.tried or (spool.adopted and spool.ids.get(run) not in store.created)
        with settings():
            try:
                return store.send(operation, spool.ids, handle=_handle(spool, run), unsure=unsure)
            except Exception as error:
                if operation["do"] != "create" and is_refusal(error):
                    raise RefusedError(f"{operation['do']} of run {spool.ids[run]}: {reason(error)}") from error
                raise RuntimeError(reason(error)) from error

    def connect() -> None:
        with settings():
            store.connect()

    def adopt() -> list[Spool]:
        return [] if folder is None else _left_behind(folder, shown(uri))

    return Courier(send, probe=lambda: probe(uri), connect=connect, adopt=adopt)


def _handle(spool: Spool, run: int) -> str:
    own = spool.header.get("handle") if run == JOB else None
    return own or f"{PENDING}{spool.header['token']}-{run}"


def _left_behind(folder: Path, uri: str | None) -> list[Spool]:
    """What earlier jobs could not deliver to a store, or to any. One that died before the end of its run was killed."""
    spools = Spool.adopt(folder, lambda header: uri is None or header.get("uri") == uri)
    for spool in spools:
        borrowed = spool.header.get("borrowed")
        if borrowed:
            spool.ids[JOB] = borrowed
        elif spool.last is not None and (spool.last["do"], spool.last["run"]) != ("end", JOB):
            spool.append([end(JOB, "KILLED")])
    if count := sum(map(len, spools)):
        _LOG.info("tracking: delivering %d entries that earlier jobs left", count)
    return spools


def _say_what_is_left(count: int, uri: str, folder: Path, reason: str) -> None:
    _LOG.warning(
        "tracking: %d entries for %s wait in %s (%s): the next tracked command in this folder delivers them, or now "
        "`python -m recsys_embed.tracking`", count, uri, folder, shown(reason) or "there was no time",
    )  # fmt: skip


def deliver(uri: str | None = None, folder: str | Path = FOLDER) -> int:
    """Deliver what earlier jobs could not; return how many entries are still waiting.

    ``uri`` is the server's, with the user and password that it may need; None for all servers that something waits for.
    """
    place = Path(folder).absolute()
    found: dict[str, list[Spool]] = {}
    for spool in _left_behind(place, None if uri is None else shown(uri)):
        found.setdefault(str(spool.header["uri"]), []).append(spool)
    total = 0
    for server, spools in found.items():
        count = sum(map(len, spools))
        courier = _courier(uri or server, None)
        left = courier.drain(spools)
        total += left
        _LOG.info("%d of %d entries were delivered to %s", count - left, count, server)
        if left:
            _say_what_is_left(left, server, place, courier.reason)
    return total
