"""Operations that wait in a file until a store takes them.

Whoever logs appends a line to a file and goes on; a courier delivers in the background for as long as the store
answers. What is not delivered stays in the file, and any later courier for the same store takes it up, knowing what
was delivered before. What an operation means is the sender's business.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from recsys_embed.files import try_lock

Operation = Mapping[str, Any]

_LOG = logging.getLogger("recsys_embed.tracking")
_VERSION = 1
_SUFFIX = ".jsonl"


class Spool:
    """What one job wants delivered, in JSON lines: a header, operations, and a line for each that was delivered.

    ``ids`` maps an operation's ``run`` to the id that its delivery returned, ``last`` is the operation appended last,
    delivered or not, and ``tried`` has the numbers of those whose delivery failed since this object was made. The file
    is locked by its process, so that a file without a lock is a dead job's; where the system has no locks, one that
    nobody wrote to for a day. Where the file cannot be written, the spool goes on in memory.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], *, adopted: bool = False) -> None:
        self.path, self.header, self.adopted = path, dict(header), adopted
        self.ids: dict[int, str] = {}
        self.last: Operation | None = None
        self.tried: set[int] = set()
        self._waiting: dict[int, Operation] = {}
        self._count = 0
        self._file: IO[bytes] | None = None
        self._torn = False
        self._lock = threading.Lock()

    @classmethod
    def new(cls, folder: Path, header: Mapping[str, Any]) -> Spool:
        """An empty spool with a file of its own in ``folder``; ``token`` in its header is unique."""
        while True:
            token = secrets.token_hex(8)
            spool = cls(folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{token}{_SUFFIX}", {**header, "token": token})
            try:
                folder.mkdir(parents=True, exist_ok=True)
                file = open(spool.path, "xb")  # noqa: SIM115 - closed by close()
            except FileNotFoundError:  # another job has just removed the empty folder
                continue
            except OSError as error:
                _LOG.warning("%s: cannot be written, what is not delivered when this job ends is lost: %s",
                             spool.path, os.strerror(error.errno or 0))  # fmt: skip
                return spool
            if try_lock(file.fileno()) is not False and spool.path.exists():
                spool._file = file
                spool._write([{"version": _VERSION, **spool.header}])
                return spool
            file.close()  # another job took it for a dead one's before it was locked

    @classmethod
    def adopt(cls, folder: Path, wanted: Callable[[Mapping[str, Any]], bool]) -> list[Spool]:
        """The spools that dead jobs left in ``folder``, oldest first, where ``wanted`` says so of their header."""
        found = (cls._take(path, wanted) for path in sorted(folder.glob(f"*{_SUFFIX}")))
        return [spool for spool in found if spool is not None]

    @classmethod
    def _take(cls, path: Path, wanted: Callable[[Mapping[str, Any]], bool]) -> Spool | None:
        try:
            file = open(path, "r+b")  # noqa: SIM115 - closed by close()
        except OSError:
            return None
        kept = False
        try:
            locked = try_lock(file.fileno())
            in_use = time.time() - path.stat().st_mtime < 86_400 if locked is None else not locked
            if in_use or not path.exists():
                return None
            content = file.read()
            if not content:
                path.unlink()
                return None
            lines = [line for line in map(_parsed, content.split(b"\n")) if line is not None]
            if not lines or lines[0].get("version") != _VERSION or not wanted(lines[0]):
                return None
            spool = cls(path, lines[0], adopted=True)
            spool._replay(lines[1:])
            spool._file, spool._torn, kept = file, not content.endswith(b"\n"), True
            return spool
        except OSError:
            return None
        finally:
            if not kept:
                file.close()

    def _replay(self, lines: Iterable[Mapping[str, Any]]) -> None:
        for line in lines:
            if "operation" in line:
                self._waiting[line["n"]] = self.last = line["operation"]
                self._count = max(self._count, line["n"] + 1)
            elif "done" in line:
                self._crossed_off(line["done"], line.get("id"))

    def __len__(self) -> int:
        """How many operations are not delivered yet."""
        return len(self._waiting)

    def append(self, operations: Sequence[Operation]) -> None:
        """Add operations. They survive the process from then on, and the machine from the next :meth:`sync` on."""
        with self._lock:
            lines = []
            for operation in operations:
                self._waiting[self._count] = self.last = operation
                lines.append({"n": self._count, "operation": operation})
                self._count += 1
            self._write(lines)

    def first(self, skipped: set[tuple[Spool, int]]) -> tuple[int, Operation] | None:
        """The oldest operation not delivered and not skipped, with its number."""
        with self._lock:
            return next(((n, one) for n, one in self._waiting.items() if (self, n) not in skipped), None)

    def cross_off(self, number: int, result: str | None) -> None:
        """Note that an operation was delivered, and the id that came back."""
        with self._lock:
            self._write([{"done": number} | ({} if result is None else {"id": result})])
            self._crossed_off(number, result)

    def _crossed_off(self, number: int, result: str | None) -> None:
        operation = self._waiting.pop(number, None)
        if result is not None and operation is not None:
            self.ids[operation["run"]] = result

    def _write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        if self._file is None:
            return
        text = "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines)
        try:
            self._file.write(b"\n" * self._torn + text.encode())
            self._file.flush()
            self._torn = False
        except OSError as error:
            if not self._torn:
                _LOG.warning("%s: cannot be written: %s", self.path, os.strerror(error.errno or 0))
            self._torn = True

    def sync(self) -> None:
        """Flush to the disk, which may take a while; appending goes on meanwhile. For the thread that closes."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """Let go of the file; remove it, and its folder, if everything was delivered."""
        if self._waiting:
            self.sync()
        with self._lock:
            if self._file is None:
                return
            with contextlib.suppress(OSError):
                if not self._waiting:
                    self.path.unlink(missing_ok=True)
                    self.path.parent.rmdir()  # fails while there are others
            with contextlib.suppress(OSError):
                self._file.close()
            self._file = None


def _parsed(line: bytes) -> dict[str, Any] | None:
    """A line's object; None for an empty or torn line."""
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
