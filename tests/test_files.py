"""Folders and files survive kills, full disks and flipped bits."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from recsys_embed import files
from recsys_embed.errors import CheckpointError
from recsys_embed.files import atomic_folder, atomic_write, verify_manifest, write_manifest


def fill(path: Path, text: str) -> None:
    with atomic_folder(path) as folder:
        (folder / "sub").mkdir()
        (folder / "a.txt").write_text(text)
        (folder / "sub" / "b.bin").write_bytes(text.encode() * 100)
        write_manifest(folder)


def leftovers(path: Path) -> list[str]:
    return [entry.name for entry in path.iterdir() if entry.name.startswith((".tmp-", ".old-"))]


def test_new_and_replaced(tmp_path: Path) -> None:
    for text in ("one", "two"):
        fill(tmp_path / "deep" / "er" / "x", text)
        assert (tmp_path / "deep" / "er" / "x" / "a.txt").read_text() == text
        assert verify_manifest(tmp_path / "deep" / "er" / "x") == {"a.txt": 3, "sub/b.bin": 300}
    assert leftovers(tmp_path / "deep" / "er") == []


def test_replaced_without_exchange(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "_exchange", lambda one, other: False)
    test_new_and_replaced(tmp_path)
    os.rename(tmp_path / "deep/er/x", tmp_path / "deep/er/.old-x")  # a kill between the two renames
    files.clean(tmp_path / "deep/er/x")
    assert (tmp_path / "deep/er/x/a.txt").read_text() == "two"


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_failure_leaves_the_old_folder(tmp_path: Path, error: BaseException) -> None:
    fill(tmp_path / "x", "old")
    with pytest.raises(type(error)), atomic_folder(tmp_path / "x") as folder:
        (folder / "a.txt").write_text("new")
        raise error
    assert verify_manifest(tmp_path / "x")
    assert (tmp_path / "x" / "a.txt").read_text() == "old"
    assert leftovers(tmp_path) == []


def test_two_writers_at_once(tmp_path: Path) -> None:
    """A living writer's temporary folder is not taken for a dead one's."""
    with atomic_folder(tmp_path / "x") as first:
        (first / "a").write_text("first")
        with atomic_folder(tmp_path / "x") as second:
            (second / "a").write_text("second")
        assert (tmp_path / "x" / "a").read_text() == "second"
    assert (tmp_path / "x" / "a").read_text() == "first"


WRITER = """
import sys
from pathlib import Path
from recsys_embed.files import atomic_folder, atomic_write, write_manifest
target = Path(sys.argv[1])
for turn in range(2, 10_000):
    with atomic_folder(target / "folder") as folder:
        for part in range(4):
            (folder / f"part-{part}").write_bytes(bytes([turn % 251]) * 500_000)
        write_manifest(folder)
    atomic_write(target / "file", bytes([turn % 251]) * 500_000)
    print(turn, flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_kill_in_the_middle(tmp_path: Path) -> None:
    """After each of many kills the folder and the file are whole, and the next start removes what was left."""
    draw = random.Random(0)
    mid_write = 0
    with atomic_folder(tmp_path / "folder") as folder:
        for part in range(4):
            (folder / f"part-{part}").write_bytes(b"\1" * 500_000)
        write_manifest(folder)
    atomic_write(tmp_path / "file", b"\1" * 500_000)
    for _ in range(10):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(draw.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        mid_write += bool(leftovers(tmp_path))
        verify_manifest(tmp_path / "folder")
        assert len({(tmp_path / "folder" / f"part-{part}").read_bytes() for part in range(4)}) == 1
        whole = (tmp_path / "file").read_bytes()
        assert whole == whole[:1] * 500_000
    assert mid_write >= 3  # the kills did land in the middle of a write
    files.clean(tmp_path / "folder")
    files.clean(tmp_path / "file")
    assert leftovers(tmp_path) == []


def test_every_flipped_bit_and_cut_is_found(tmp_path: Path) -> None:
    fill(tmp_path / "x", "some words")
    draw = random.Random(0)
    for name in ("a.txt", "sub/b.bin", "manifest.json"):
        path = tmp_path / "x" / name
        whole = path.read_bytes()
        for _ in range(50):
            damaged = bytearray(whole)
            damaged[draw.randrange(len(whole))] ^= 1 << draw.randrange(8)
            cut = whole[: draw.randrange(len(whole))]
            for data in (bytes(damaged), cut, whole + b"\0"):
                path.write_bytes(data)
                with pytest.raises(CheckpointError) as caught:
                    verify_manifest(tmp_path / "x")
                assert caught.value.file is not None
                assert Path(caught.value.file).parent.parent in (tmp_path, tmp_path / "x")
                if name != "manifest.json":
                    assert caught.value.file == str(path)
        path.unlink()
        with pytest.raises(CheckpointError, match="missing"):
            verify_manifest(tmp_path / "x")
        path.write_bytes(whole)
    verify_manifest(tmp_path / "x")


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "a/../../secret"])
def test_a_manifest_cannot_point_outside(tmp_path: Path, name: str) -> None:
    fill(tmp_path / "x", "words")
    text = files._manifest_text([{"path": name, "bytes": 1, "xxh3_64": "0"}])
    (tmp_path / "x" / "manifest.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        verify_manifest(tmp_path / "x")


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="as is its folder"):
        verify_manifest(tmp_path / "nothing")


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "x").write_text("mine")
    with pytest.raises(CheckpointError, match="not a folder"), atomic_folder(tmp_path / "x"):
        pass
    assert (tmp_path / "x").read_text() == "mine"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("I/O error (os error 28)")])
def test_full_disk_is_typed(tmp_path: Path, error: Exception) -> None:
    fill(tmp_path / "x", "old")
    with pytest.raises(CheckpointError, match="No space left") as caught, atomic_folder(tmp_path / "x"):
        raise error
    assert caught.value.file == str(tmp_path / "x")
    assert verify_manifest(tmp_path / "x")
    assert leftovers(tmp_path) == []


def test_errors_of_other_files_pass(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), atomic_folder(tmp_path / "x"):
        raise PermissionError(13, "Permission denied", "/somebody/elses/input.csv")


@pytest.mark.skipif(sys.platform == "win32" or os.geteuid() == 0, reason="root may write everywhere")
def test_not_permitted_is_typed(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(CheckpointError, match="Permission denied"):
        atomic_write(tmp_path / "locked" / "x", "text")


def test_atomic_write(tmp_path: Path) -> None:
    atomic_write(tmp_path / "new" / "x", "naïve\n")
    assert (tmp_path / "new" / "x").read_bytes() == "naïve\n".encode()
    atomic_write(tmp_path / "new" / "x", b"\0")
    assert (tmp_path / "new" / "x").read_bytes() == b"\0"
    assert leftovers(tmp_path / "new") == []
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="directory"):
        atomic_write(tmp_path / "folder", "text")
