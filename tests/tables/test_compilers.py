"""The kernels by other compilers and for another processor: the same bits.

``native_bits.cpp`` is linked with the kernels that were built with the package, and with those of each other compiler
that is there. Of this processor all instruction sets are compared; for arm64 Debian's ``g++-aarch64-linux-gnu`` builds
them, and ``qemu-user`` runs it.
"""

from __future__ import annotations

import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

from recsys_embed.native.library import load

SOURCE = Path(__file__).with_name("native_bits.cpp")
KERNELS = SOURCE.parents[2] / "recsys_embed" / "native" / "kernels.cpp"
PROJECT = tomllib.loads((SOURCE.parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
(MODULE,) = PROJECT["tool"]["setuptools"]["ext-modules"]

LIBRARY = load()
if isinstance(LIBRARY, str):
    pytest.skip(f"no native back end: {LIBRARY}", allow_module_level=True)

pytestmark = pytest.mark.slow  # to compile


def built(compiler: str, out: Path, kernels: Path, *flags: str) -> Path:
    command = shutil.which(compiler)
    if command is None:
        pytest.skip(f"no {compiler}")
    arguments = [*MODULE["extra-compile-args"], *flags, "-o", str(out), str(SOURCE), str(kernels)]
    subprocess.run([command, *arguments], check=True)
    return out


def bits(*command: object) -> list[str]:
    """A line for each kernel."""
    done = subprocess.run([str(part) for part in command], check=True, capture_output=True, text=True)
    return done.stdout.splitlines()


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the kernels that everybody runs."""
    assert not isinstance(LIBRARY, str)
    return built("c++", tmp_path_factory.mktemp("host") / "bits", LIBRARY.path)


@pytest.fixture(scope="module")
def expected(program: Path) -> list[str]:
    """On one thread, by the instructions that every processor of this kind has."""
    found = bits(program, 1, 0)
    assert len({line.split()[-1] for line in found}) == len(found) == 31
    return found


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_of_the_standard_library_and_every_instruction_set(
    expected: list[str], program: Path, threads: int
) -> None:
    assert not isinstance(LIBRARY, str)
    for level in range(LIBRARY.best_level + 1):
        assert bits(program, threads, level) == expected


def test_clang(expected: list[str], tmp_path: Path) -> None:
    program = built("clang++", tmp_path / "bits", KERNELS)
    assert not isinstance(LIBRARY, str)
    for level in range(LIBRARY.best_level + 1):
        assert bits(program, 2, level) == expected


def test_arm64(expected: list[str], tmp_path: Path) -> None:
    qemu = shutil.which("qemu-aarch64")
    if qemu is None:
        pytest.skip("no qemu-aarch64")
    program = built("aarch64-linux-gnu-g++", tmp_path / "bits", KERNELS, "-static")
    assert bits(qemu, program, 2, 0) == expected
