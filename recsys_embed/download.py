"""Public data sets that may be downloaded without a login, resumed where a download broke off, and checked.

What arrives waits beside its target, under a name of its own, until it is whole and has the published checksum.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from recsys_embed.errors import ConfigError, DownloadError
from recsys_embed.files import sync, try_lock, typed_errors

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 30.0  # of a connection, and of a read
ATTEMPTS = 5  # that bring nothing, one after the other
PAUSE_SECONDS = 1.0  # before an attempt; longer each time
_BLOCK = 1 << 18
Progress = Callable[[int, int | None], None]
"""Called with the bytes that are there, and with those that there will be, where the server says so."""


@dataclass(frozen=True)
class Published:
    """A file at ``url/file``, the checksum that is published beside it, and the format that reads it."""

    url: str
    file: str
    md5: str
    format: str


GROUPLENS = "https://files.grouplens.org/datasets/movielens"
DATASETS = {
    "movielens-1m": Published(GROUPLENS, "ml-1m.zip", "c4d9eecfca2ab87c1945afe126590906", "movielens_1m"),
    "movielens-25m": Published(GROUPLENS, "ml-25m.zip", "6b51fb2759a8657d3bfcbfc42b592ada", "movielens_25m"),
}


def download(name: str, out: str | Path, *, url: str | None = None, progress: Progress | None = None) -> Path:
    """Download a data set of :data:`DATASETS` into a folder, or go on with it; ``url`` is a mirror's folder.

    A file that is there already is checked and left alone.

    Raises:
        ConfigError: there is no such data set; a URL that is not of HTTP; ``out`` is a file.
        DownloadError: the server refuses or does not answer; the file has another checksum than the published one.
        CheckpointError: the disk refused.
    """
    if name not in DATASETS:
        raise ConfigError(f"there is no data set {name!r} to download; there are {', '.join(DATASETS)}")
    published = DATASETS[name]
    place = f"{(url or published.url).rstrip('/')}/{published.file}"
    if not place.startswith(("http://", "https://")):
        raise ConfigError(f"a mirror's URL begins with http:// or https://, got {url!r}")
    if Path(out).exists() and not Path(out).is_dir():
        raise ConfigError(f"{str(out)!r} is not a folder to download into")
    target = Path(out) / published.file
    with typed_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.exists():
            _check(target, published, "; it is left as it is: move it away to download it again")
            return target
        partial = target.with_name(f".{target.name}.part")
        with open(partial, "ab") as file:
            if try_lock(file.fileno()) is False:
                raise DownloadError(f"{target}: another process is downloading it", url=place)
            resumed = file.tell() > 0
            if not resumed or _md5(partial) != published.md5:
                _fetch(place, file, progress)
                if resumed and _md5(partial) != published.md5:
                    logger.info("%s: what an earlier download left does not fit: starting again", target.name)
                    file.truncate(0)
                    _fetch(place, file, progress)
            try:
                _check(partial, published, f", as {place} sends it; what came is removed", shown=target)
            except DownloadError:
                partial.unlink()
                raise
            sync(partial)
            os.replace(partial, target)
        sync(target.parent)
    return target


def _check(path: Path, published: Published, rest: str, shown: Path | None = None) -> None:
    found = _md5(path)
    if found != published.md5:
        raise DownloadError(f"{shown or path}: has the MD5 checksum {found} instead of {published.md5}{rest}")


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _fetch(url: str, file: IO[bytes], progress: Progress | None) -> None:
    """Append to ``file`` until it is whole, over as many connections as it takes."""
    failures = 0
    while True:
        before = file.seek(0, os.SEEK_END)
        try:
            _receive(url, file, progress)
            return
        except urllib.error.HTTPError as error:
            error.close()
            if error.code < 500:
                raise DownloadError(f"{url}: the server answers {error.code} {error.reason}", url=url) from error
            reason = f"the server answers {error.code} {error.reason}"
        except (http.client.HTTPException, ConnectionError) as error:
            reason = str(error) or type(error).__name__
        failures = 1 if file.tell() > before else failures + 1
        if failures >= ATTEMPTS:
            raise DownloadError(f"{url}: {reason}; the same command goes on from here", url=url)
        logger.info("%s; trying again", reason)
        time.sleep(PAUSE_SECONDS * failures)


def _receive(url: str, file: IO[bytes], progress: Progress | None) -> None:
    """One connection.

    Raises:
        ConnectionError: it ended before the file did.
    """
    there = file.tell()
    with _open(url, there) as response:
        if response.status != 206:  # the server begins anew
            file.truncate(0)
            there = file.seek(0)
        elif not response.headers.get("Content-Range", "").startswith(f"bytes {there}-"):
            raise http.client.HTTPException(f"the server does not send what comes after {there:,} bytes")
        length = response.headers.get("Content-Length")
        total = there + int(length) if length is not None and length.isdigit() else None
        for block in _blocks(response):
            file.write(block)
            there += len(block)
            if progress is not None:
                progress(there, total)
        file.flush()
    if total is not None and there < total:
        raise ConnectionError(f"the connection ended after {there:,} of {total:,} bytes")


@contextlib.contextmanager
def _open(url: str, there: int) -> Iterator[http.client.HTTPResponse]:
    """The bytes from ``there`` on, or all of them, as the server likes."""
    headers = {"User-Agent": "recsys-embed", "Accept-Encoding": "identity"}
    if there:
        headers["Range"] = f"bytes={there}-"
    request = urllib.request.Request(url, headers=headers)
    with _network():
        try:
            opened = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
        except urllib.error.HTTPError as error:
            if error.code != 416:  # beyond the end: it is another file that is there
                raise
            error.close()
            request.remove_header("Range")
            opened = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    with opened:
        yield cast(http.client.HTTPResponse, opened)


def _blocks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    with _network():
        while block := response.read(_BLOCK):
            yield block


@contextlib.contextmanager
def _network() -> Iterator[None]:
    """What the network refuses, told apart from what the disk does."""
    try:
        yield
    except urllib.error.HTTPError:
        raise
    except OSError as error:
        raise ConnectionError(str(getattr(error, "reason", error)) or type(error).__name__) from error
