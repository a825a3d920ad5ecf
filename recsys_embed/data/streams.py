"""Bytes of a file, of a compressed one, and of a member of a zip archive, as one kind of stream.

Gzip, zstd and zip are told by their first bytes, not by their names. A member's path is the archive's, ``!/`` and its
name: ``ml-1m.zip!/ml-1m/ratings.dat``. Nothing is unpacked to the disk. What is cut short or damaged is an error where
it is noticed: gzip and zip carry checksums, read to the end; zstd does where the writer put one (the program ``zstd``
does, Arrow does not).
"""

from __future__ import annotations

import fnmatch
import glob
import gzip
import io
import lzma
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

import pyarrow as pa

from recsys_embed.errors import DataError

MEMBER = "!/"
_GZIP, _ZSTD, _ZIP = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", (b"PK\x03\x04", b"PK\x05\x06")
_BUFFER = 1 << 20
# A member is streamed, so that a bomb costs no memory; but nobody waits for terabytes out of a mail attachment.
_BOMB_BYTES, _BOMB_RATIO = 1 << 30, 200
_DAMAGE = (EOFError, OSError, zlib.error, lzma.LZMAError, zipfile.BadZipFile)


def open_stream(path: Path) -> IO[bytes]:
    """A buffered stream of the bytes that a path stands for, decompressed.

    Opening it, and every read, raises DataError where the file is absent, cut short, damaged, encrypted or a bomb.
    """
    return _layers(path, _BUFFER)[0]


def sample(path: Path, count: int) -> tuple[bytes, int]:
    """The first ``count`` bytes that a path stands for, and how many of :func:`size_of` they come out of, about."""
    stream, source = _layers(path, 1 << 14)
    with stream:
        return stream.read(count), source.passed


def is_packed(path: Path) -> bool:
    """Whether the bytes that a path stands for are on the disk in another form."""
    with open_file(on_disk(path)) as file:
        start = file.read(4)
    return start[:2] == _GZIP or start == _ZSTD or start in _ZIP


def size_of(path: Path) -> int:
    """The bytes of a file, or of a member out of its archive."""
    place = split_member(path)
    if place is None:
        return path.stat().st_size
    with open_file(place[0]) as file:
        return _entry(_directory(place[0], file), *place).file_size


def open_file(path: Path) -> IO[bytes]:
    """A file as it is on the disk.

    Raises:
        DataError: it cannot be opened.
    """
    try:
        return open(path, "rb")
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror}", file=str(path)) from error


def _layers(path: Path, buffer: int) -> tuple[IO[bytes], _Named]:
    """The stream of a path's bytes, and the one below it of packed bytes: the same, where nothing is packed."""
    place = split_member(path)
    raw = [open_file(path)] if place is None else _open_member(path, *place)
    source = _Named(path, *raw)
    stream = io.BufferedReader(source, buffer)
    try:
        start = stream.peek(4)[:4]
        if start in _ZIP:
            raise DataError(f"is a zip archive: name one of its members as {path}{MEMBER}NAME", file=str(path))
    except DataError:
        stream.close()
        raise
    if start[:2] == _GZIP:
        stream = io.BufferedReader(_Named(path, cast(IO[bytes], gzip.GzipFile(fileobj=stream)), stream), buffer)
    elif start == _ZSTD:
        stream = io.BufferedReader(_Named(path, pa.CompressedInputStream(stream, "zstd"), stream), buffer)
    return stream, source


def find(path: str | Path, wanted: Callable[[str], bool]) -> list[Path]:
    """The files a path stands for, in the order of their paths: itself, a folder's, or those of a pattern.

    Of a folder, and of the members of an archive, those whose last name is ``wanted``; a pattern and the name of a file
    or member are taken at their word.

    Raises:
        DataError: there is none.
    """
    place, member = Path(path), split_member(Path(path))
    if member is not None:
        archive, pattern = member
        found = [Path(f"{archive}{MEMBER}{name}") for name in members(archive) if fnmatch.fnmatchcase(name, pattern)]
    elif place.is_dir():
        found = _expand([file for file in place.iterdir() if _shown(file) and wanted(file.name)], wanted)
    elif place.is_file():
        found = _expand([place], wanted)
    else:
        names = [Path(name) for name in glob.glob(str(path), recursive=True)]
        found = _expand([file for file in names if _shown(file)], wanted)
    if not found:
        holds = place.is_dir() or place.is_file()
        raise DataError("holds no data file" if holds else "there is no such file", file=str(path))
    return sorted(found)


def on_disk(path: Path) -> Path:
    """The file that holds a path's bytes: of a member, its archive."""
    place = split_member(path)
    return path if place is None else place[0]


def exists(path: Path) -> bool:
    """Whether there is such a file or member."""
    place = split_member(path)
    return path.is_file() if place is None else place[1] in members(place[0])


def split_member(path: Path) -> tuple[Path, str] | None:
    """The archive and the name of a member's path; None for the path of a file."""
    text = path.as_posix()
    cut = text.find(MEMBER)
    while cut >= 0:
        if Path(text[:cut]).is_file():
            return Path(text[:cut]), text[cut + len(MEMBER) :]
        cut = text.find(MEMBER, cut + 1)
    return None


def members(archive: Path) -> list[str]:
    """The names of an archive's files, in its order.

    Raises:
        DataError: it is not a whole zip archive.
    """
    with open_file(archive) as file:
        return [_normal(one) for one in _directory(archive, file).infolist() if not one.is_dir()]


class _Named(io.RawIOBase):
    """The first of some streams, with errors that name the file; all are closed with it. ``passed``: bytes so far."""

    def __init__(self, path: Path, *streams: IO[bytes]) -> None:
        self._path, self._streams = path, streams
        self.passed = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a part of the buffer; 0 at the end."""
        try:
            data = self._streams[0].read(len(buffer))
        except DataError:
            raise
        except _DAMAGE as error:
            raise DataError(f"cannot be read to its end: {error}", file=str(self._path)) from error
        buffer[: len(data)] = data
        self.passed += len(data)
        return len(data)

    def close(self) -> None:
        """Close all of them."""
        if not self.closed:
            for stream in self._streams:
                stream.close()
        super().close()


def _directory(archive: Path, file: IO[bytes]) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(file)
    except (*_DAMAGE, NotImplementedError, ValueError) as error:
        raise DataError(f"is not a whole zip archive: {error}", file=str(archive)) from error


def _open_member(path: Path, archive: Path, name: str) -> list[IO[bytes]]:
    file = open_file(archive)
    try:
        directory = _directory(archive, file)
        entry = _entry(directory, archive, name)
        size, packed = entry.file_size, entry.compress_size
        if size > _BOMB_BYTES and size > _BOMB_RATIO * packed:
            raise DataError(
                f"would grow from {packed:,} to {size:,} bytes, as bombs do: unpack it yourself if it is none",
                file=str(path),
            )
        try:
            member = directory.open(entry)
        except (*_DAMAGE, RuntimeError, NotImplementedError) as error:  # encrypted; packed in a way unknown here
            raise DataError(f"cannot be read: {error}", file=str(path)) from error
    except BaseException:
        file.close()
        raise
    return [member, file]


def _entry(directory: zipfile.ZipFile, archive: Path, name: str) -> zipfile.ZipInfo:
    found = [one for one in directory.infolist() if _normal(one) == name]
    if len(found) != 1:
        what = f"has the member {name!r} {len(found)} times" if found else f"has no member {name!r}"
        raise DataError(what, file=str(archive))
    return found[0]


def _normal(member: zipfile.ZipInfo) -> str:
    """A member's name as it stands in a path."""
    return str(PurePosixPath(member.filename))


def _expand(files: list[Path], wanted: Callable[[str], bool]) -> list[Path]:
    """Archives replaced by the members that are wanted."""
    found: list[Path] = []
    for file in files:
        if _is_zip(file):
            inside = [Path(f"{file}{MEMBER}{name}") for name in members(file)]
            found += [member for member in inside if not _hidden(member) and wanted(member.name)]
        else:
            found.append(file)
    return found


def _shown(file: Path) -> bool:
    return file.is_file() and not _hidden(file)


def _hidden(file: Path) -> bool:
    return file.name.startswith((".", "_"))


def _is_zip(file: Path) -> bool:
    with open_file(file) as opened:
        return opened.read(4) in _ZIP
