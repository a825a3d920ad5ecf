"""Downloads from a server of our own: resumed, checked, and nothing of the user's lost."""

from __future__ import annotations

import hashlib
import json
import random
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from typer.testing import CliRunner

from recsys_embed import download as module
from recsys_embed.cli import app
from recsys_embed.download import DATASETS, Published, download
from recsys_embed.errors import ConfigError, DownloadError
from recsys_embed.files import try_lock

CONTENT = random.Random(0).randbytes(1_000_000)
NAME = "movielens-1m"


class Handler(BaseHTTPRequestHandler):
    """Serves ``content``; each of ``plan``'s words is how the next request is answered, the last one for ever."""

    content: ClassVar[bytes] = CONTENT
    plan: ClassVar[list[str]] = ["range"]
    asked: ClassVar[list[str | None]] = []

    def do_GET(self) -> None:
        word = self.plan.pop(0) if len(self.plan) > 1 else self.plan[0]
        wanted = self.headers["Range"]
        self.asked.append(wanted)
        if word in ("404", "503"):
            self.send_error(int(word))
            return
        if word == "hang":
            self.connection.recv(1)  # until the other side gives up
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and word != "no range" else 0
        if start >= len(self.content):
            self.send_error(416)
            return
        body = self.content[start:]
        self.send_response(206 if start or word == "wrong part" else 200)
        self.send_header("Content-Length", str(len(body)))
        if start or word == "wrong part":
            said = start + (word == "wrong part")
            self.send_header("Content-Range", f"bytes {said}-{len(self.content) - 1}/{len(self.content)}")
        self.end_headers()
        self.wfile.write(body[: 300_000 if word == "drop" else len(body)])
        if word == "drop":
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of a server that has the file, which is what was published."""
    published = Published("http://127.0.0.1:9/nowhere", "ml.zip", hashlib.md5(CONTENT).hexdigest(), "movielens_1m")
    monkeypatch.setitem(DATASETS, NAME, published)
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(module, "TIMEOUT_SECONDS", 5.0)
    for key in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(key, raising=False)
    Handler.content, Handler.plan, Handler.asked = CONTENT, ["range"], []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/data"
    server.shutdown()
    thread.join()
    server.server_close()


def part(folder: Path, content: bytes) -> Path:
    """What an earlier download left."""
    path = folder / ".ml.zip.part"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("plan", "left", "asked"),
    [
        (["range"], b"", [None]),
        (["no range"], b"", [None]),
        (["range"], CONTENT[:1000], ["bytes=1000-"]),
        (["no range"], CONTENT[:1000], ["bytes=1000-"]),
        (["drop", "range"], b"", [None, "bytes=300000-"]),
        (["drop", "no range"], b"", [None, "bytes=300000-"]),
        (["drop"], b"", [None, "bytes=300000-", "bytes=600000-", "bytes=900000-"]),
        (["503", "503", "range"], b"", [None, None, None]),
        (["hang", "range"], b"", [None, None]),
        (["wrong part", "range"], CONTENT[:1000], ["bytes=1000-", "bytes=1000-"]),
        (["range"], CONTENT, []),  # killed between the last byte and the new name
        (["range"], b"x" + CONTENT[1:1000], ["bytes=1000-", None]),  # the rest of another file
        (["range"], b"x" + CONTENT[1:], ["bytes=1000000-", None]),
        (["range"], b"x" * 1_000_009, ["bytes=1000009-", None]),
    ],
)
def test_a_file_arrives_whole(
    mirror: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plan: list[str], left: bytes, asked: list[str | None]
) -> None:
    """Whatever the server does, and whatever an earlier download left; no byte is asked for twice without need."""
    if "hang" in plan:
        monkeypatch.setattr(module, "TIMEOUT_SECONDS", 0.2)
    if left:
        part(tmp_path, left)
    Handler.plan = list(plan)
    seen: list[tuple[int, int | None]] = []
    path = download(NAME, tmp_path, url=mirror + "/", progress=lambda *at: seen.append(at))
    assert path == tmp_path / "ml.zip"
    assert path.read_bytes() == CONTENT
    assert [file.name for file in tmp_path.iterdir()] == ["ml.zip"]
    assert Handler.asked == asked
    assert not seen or seen[-1] == (len(CONTENT), len(CONTENT))
    before = list(Handler.asked)
    assert download(NAME, tmp_path, url=mirror) == path  # is there already
    assert Handler.asked == before


def test_other_bytes_are_refused(mirror: str, tmp_path: Path) -> None:
    Handler.content = CONTENT[:-1] + bytes([CONTENT[-1] ^ 1])
    published, found = (hashlib.md5(one).hexdigest() for one in (CONTENT, Handler.content))
    with pytest.raises(DownloadError, match=f"checksum {found} instead of {published}, as {mirror}/ml.zip sends it"):
        download(NAME, tmp_path, url=mirror)
    assert list(tmp_path.iterdir()) == []
    part(tmp_path, CONTENT[:1000])
    with pytest.raises(DownloadError, match="instead of"):
        download(NAME, tmp_path, url=mirror)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_the_users_is_left_alone(mirror: str, tmp_path: Path) -> None:
    mine = tmp_path / "ml.zip"
    mine.write_bytes(b"mine")
    with pytest.raises(DownloadError, match="it is left as it is"):
        download(NAME, tmp_path, url=mirror)
    assert mine.read_bytes() == b"mine"
    assert Handler.asked == []


@pytest.mark.parametrize(
    ("plan", "message", "requests"),
    [
        (["404"], "the server answers 404", 1),
        (["503"], "the server answers 503 .*goes on from here", 5),
        (["drop", "503"], "goes on from here", 5),
        (["wrong part"], "does not send what comes after", 5),
    ],
)
def test_a_server_that_does_not_deliver(
    mirror: str, tmp_path: Path, plan: list[str], message: str, requests: int
) -> None:
    Handler.plan = list(plan)
    with pytest.raises(DownloadError, match=message) as caught:
        download(NAME, tmp_path, url=mirror)
    assert caught.value.url == f"{mirror}/ml.zip"
    assert len(Handler.asked) == requests
    kept = tmp_path / ".ml.zip.part"
    assert kept.stat().st_size == (300_000 if plan[0] == "drop" else 0)
    Handler.plan = ["range"]
    assert download(NAME, tmp_path, url=mirror).read_bytes() == CONTENT
    assert Handler.asked[requests:] == (["bytes=300000-"] if plan[0] == "drop" else [None])


def test_a_server_that_is_not_there(mirror: str, tmp_path: Path) -> None:
    """The published place of this test is one."""
    with pytest.raises(DownloadError, match="Connection refused"):
        download(NAME, tmp_path)


def test_two_at_once(mirror: str, tmp_path: Path) -> None:
    with open(part(tmp_path, b""), "ab") as held:
        assert try_lock(held.fileno())
        with pytest.raises(DownloadError, match="another process"):
            download(NAME, tmp_path, url=mirror)


def test_what_cannot_be_asked_for(mirror: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="movielens-1m, movielens-25m"):
        download("criteo", tmp_path)
    with pytest.raises(ConfigError, match="file:///etc"):
        download(NAME, tmp_path, url="file:///etc")
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="is not a folder"):
        download(NAME, tmp_path / "file", url=mirror)


def test_the_command(mirror: str, tmp_path: Path) -> None:
    arguments = ["download", NAME, "--out", str(tmp_path / "new" / "data"), "--url", mirror]
    done = CliRunner().invoke(app, arguments)
    path = tmp_path / "new" / "data" / "ml.zip"
    assert (done.exit_code, done.stdout.splitlines()[-1]) == (0, str(path))
    told = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert told == {"path": str(path), "md5": DATASETS[NAME].md5, "format": "movielens_1m"}
    path.write_bytes(b"mine")
    done = CliRunner().invoke(app, arguments)
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("recsys-embed: ")


def test_the_published_checksums_are_md5s_and_the_formats_exist() -> None:
    from recsys_embed.data.formats import FORMATS

    for published in DATASETS.values():
        assert len(bytes.fromhex(published.md5)) == 16
        assert published.format in FORMATS
        assert published.url.startswith("https://")
