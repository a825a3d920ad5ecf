"""The thread that carries operations from spools to a store."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from recsys_embed.tracking.spool import Operation, Spool

_LOG = logging.getLogger("recsys_embed.tracking")
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0


class RefusedError(Exception):
    """The store is sound and will never take this operation."""


Send = Callable[[Spool, int, Operation], str | None]


class Courier:
    """One thread that carries operations to a store, and holds its caller up for no more than ``patience`` seconds.

    ``send(spool, number, operation)`` returns an id or None and raises ``RefusedError`` for what the store will never
    take, anything else where the store is at fault: it may then have arrived all the same. After a fault the store is
    asked again (``probe``) after 1 s, 2 s, 4 s, … up to a minute. An operation with a true ``apart`` (an upload, whose
    place may be another) fails alone. The spools of ``adopt`` are taken up once the store answers.

    ``patience`` counts, over all waiting, the seconds in which no answer came; answers go on being waited for until
    ``most`` seconds. ``connect``, called after the first good probe, is our own work and not counted.
    """

    def __init__(
        self,
        send: Send,
        *,
        probe: Callable[[], None],
        connect: Callable[[], None],
        adopt: Callable[[], list[Spool]],
        patience: float = 2.5,
        most: float = 30.0,
    ) -> None:
        self._send, self._probe, self._connect, self._adopt = send, probe, connect, adopt
        self._patience, self._most = patience, most
        self._spools: list[Spool] = []
        self._skipped: set[tuple[Spool, int]] = set()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closing = self._abandoned = self._last = self._ended = False
        self._sound = self._connected = self._connecting = False
        self._answers = self._failures = 0
        self._retry_at = 0.0
        self.reason = ""

    # --- the job's side ------------------------------------------------------------------------------------------

    def put(self, spool: Spool, operations: Sequence[Operation]) -> None:
        """Append to a spool and see to it that it is delivered."""
        spool.append(operations)
        with self._changed:
            if spool not in self._spools:
                self._spools.append(spool)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="recsys_embed.tracking", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def wait(self, done: Callable[[], bool], *, reserve: float = 0.0) -> None:
        """Wait while the store answers; ``reserve`` seconds of the patience are left for later."""
        self._wait(lambda: done() or self._failures > 0, reserve)

    def close(self) -> int:
        """Try once more what failed, then stop; return how many operations are left in files.

        A call that hangs goes on alone for as long as it takes, is the last one, and ends with the process.
        """
        with self._changed:
            self._closing = True
            self._skipped = {(spool, n) for spool, n in self._skipped if n < 0}
            self._changed.notify_all()
        if self._thread is not None:
            self._wait(lambda: self._ended, 0.0)
        with self._changed:
            self._abandoned = True
            left = sum(map(len, self._spools))
        if self._thread is not None and self._ended:
            self._thread.join()
        return left

    def _wait(self, done: Callable[[], bool], reserve: float) -> None:
        with self._changed:
            begin = since = time.monotonic()
            seen = self._answers
            while not done():
                now = time.monotonic()
                if self._answers != seen or self._connecting:
                    seen, since = self._answers, now
                left = min(self._patience - reserve - (now - since), self._most - (now - begin))
                if left <= 0:
                    break
                self._changed.wait(left)
            if self._answers == seen and not self._connecting:
                self._patience -= time.monotonic() - since

    def drain(self, spools: Sequence[Spool]) -> int:
        """Deliver spools here and now, for as long as the store answers; return how many operations are left."""
        self._spools += spools
        self._closing = True
        self._run()
        return sum(map(len, self._spools))

    # --- the thread's side ---------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while (task := self._next()) is not None:
                self._carry(*task)
        finally:
            for spool in self._spools:
                spool.close()
            with self._changed:
                self._ended = True
                self._changed.notify_all()

    def _next(self) -> tuple[Spool, int, Operation] | None:
        """The next operation, when it is time to try it; None to end."""
        with self._changed:
            while not self._abandoned:
                task = self._first()
                pause = self._retry_at - time.monotonic() if self._failures else 0.0
                if task is None and self._closing:
                    return None
                if task is not None and (pause <= 0 or self._closing):
                    if self._closing and self._last:
                        return None
                    self._last = self._closing and self._failures > 0
                    return task
                self._changed.wait(None if task is None else pause)
            return None

    def _first(self) -> tuple[Spool, int, Operation] | None:
        for spool in self._spools:
            if (spool, -1) not in self._skipped and (found := spool.first(self._skipped)) is not None:
                return spool, *found
        return None

    def _carry(self, spool: Spool, number: int, operation: Operation) -> None:
        try:
            self._reach()
        except Exception as error:
            self._failed(error)
            spool.sync()
            return
        try:
            result = self._send(spool, number, operation)
        except RefusedError as error:
            _LOG.warning("tracking: the store refuses an entry for good, it is left out: %s", error)
            result = None
        except Exception as error:
            spool.tried.add(number)
            self._sound = False
            if operation.get("apart") or spool.adopted:
                self._skip(spool, number if operation.get("apart") else -1, error)
            else:
                self._failed(error)
            return
        spool.cross_off(number, result)
        with self._changed:
            self._failures, self._last = 0, False
        self._answered()

    def _reach(self) -> None:
        """Ask a store in doubt whether it answers; the first time, connect and take up what others left.

        An answer here is no recovery yet: the pauses go on growing until an operation is delivered.
        """
        if not self._sound:
            self._probe()
            self._answered()
            self._sound = True
        if not self._connected:
            self._connecting = True
            try:
                self._connect()
                adopted = self._adopt()
            finally:
                self._connecting = False
            with self._changed:
                handles = {spool.header.get("handle") for spool in self._spools} - {None}
                before = [spool for spool in adopted if spool.header.get("handle") in handles]  # of the same run
                self._spools = [*before, *self._spools, *(spool for spool in adopted if spool not in before)]
            self._connected = True
            self._answered()

    def _answered(self) -> None:
        with self._changed:
            self._answers += 1
            self._changed.notify_all()

    def _failed(self, error: Exception) -> None:
        with self._changed:
            self._sound = False
            self._failures += 1
            self._retry_at = time.monotonic() + min(_FIRST_PAUSE * 2 ** (self._failures - 1), _LONGEST_PAUSE)
            self._last = self._closing
            self.reason = str(error)
            self._changed.notify_all()
        if self._failures == 1 and not self._closing:
            _LOG.info("tracking: %s; the job goes on, and what it logs is kept until it is delivered", error)

    def _skip(self, spool: Spool, number: int, error: Exception) -> None:
        """Leave an operation, or with number -1 all of an adopted spool, for later."""
        with self._changed:
            self._skipped.add((spool, number))
            self.reason = str(error)
