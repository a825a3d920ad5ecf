"""Rewrite cpu.lock and cuda.lock: `.venv/bin/python requirements/lock.py` (see README.md beside this file).

pip resolves what pyproject.toml asks for, with the exact versions below, without installing anything. Each package
found is then given the platforms on which it is reachable, so that one file serves Linux, macOS and Windows.
"""

import json
import re
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import NamedTuple

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).parent
TORCH = "torch==2.13.0"
# These three move together, and with the version in fbgemm_gpu_shim/pyproject.toml.
SHARDED = ["fbgemm-gpu-cpu==1.8.0", "torchrec==1.8.0"]
# Needed on Windows alone, so that a resolution on another platform does not meet them.
WINDOWS = ["colorama"]
EXTRAS = ["tracking", "search", "dev"]

PLATFORMS = {
    "linux": {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"},
    "darwin": {"sys_platform": "darwin", "platform_system": "Darwin", "os_name": "posix"},
    "win32": {"sys_platform": "win32", "platform_system": "Windows", "os_name": "nt"},
}
PYTHONS = ["3.11", "3.12", "3.13"]
# torch brings these itself where its build is the CUDA one.
BROUGHT_BY_TORCH = re.compile(r"^(nvidia|cuda|triton)\b")


class Package(NamedTuple):
    """What pip resolved: a public version, and the requirements that its metadata states."""

    version: str
    requires: list[str]


def main() -> None:
    """Resolve, then write both files."""
    roots = project_requirements()
    found = resolve([TORCH, *SHARDED, *WINDOWS, *roots])
    reached = {name: reachable(found, roots, name) for name in PLATFORMS}
    lines = []
    for name in sorted(set().union(*reached.values())):
        platforms = [p for p in PLATFORMS if name in reached[p]]
        lines.append(f"{name}=={found[name].version}{marker(platforms)}")
    write("cpu", lines)
    write("cuda", [line.replace("fbgemm-gpu-cpu==", "fbgemm-gpu==") for line in lines])


def project_requirements() -> list[str]:
    """What pyproject.toml asks for, without torch and what is tied to it."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [line for extra in EXTRAS for line in project["optional-dependencies"][extra]]
    return [line for line in [*project["dependencies"], *extras] if Requirement(line).name != "torch"]


def resolve(requirements: list[str]) -> dict[str, Package]:
    """Name → version and requirements of every package that pip would install."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        command += ["--report", str(report), str(HERE / "fbgemm_gpu_shim"), *requirements]
        subprocess.run(command, check=True)
        items = [item["metadata"] for item in json.loads(report.read_text(encoding="utf-8"))["install"]]
    # 2.13.0+cpu → 2.13.0, which matches the CPU and the CUDA build alike.
    return {
        canonicalize_name(m["name"]): Package(m["version"].partition("+")[0], m.get("requires_dist", [])) for m in items
    }


def reachable(found: dict[str, Package], roots: list[str], platform: str) -> set[str]:
    """Names needed on one platform under any of the supported Pythons."""
    sharded = SHARDED if platform == "linux" else []
    return set().union(*(walk(found, [TORCH, *sharded, *roots], platform, python) for python in PYTHONS))


def walk(found: dict[str, Package], roots: list[str], platform: str, python: str) -> set[str]:
    """Follow requirements whose markers hold."""
    environment = {**PLATFORMS[platform], "python_version": python, "python_full_version": f"{python}.0"}
    environment |= {"platform_machine": "x86_64", "implementation_name": "cpython", "extra": ""}
    environment["platform_python_implementation"] = "CPython"
    seen: set[tuple[str, str]] = set()
    queue = [Requirement(line) for line in roots]
    while queue:
        requirement = queue.pop()
        if requirement.marker and not requirement.marker.evaluate(environment):
            continue
        name = canonicalize_name(requirement.name)
        if BROUGHT_BY_TORCH.match(name) or name == "fbgemm-gpu":
            continue
        if name not in found:
            sys.exit(f"{name}, needed on {platform} with Python {python}, was not resolved: name it beside WINDOWS")
        for extra in {"", *requirement.extras}:
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            for line in found[name].requires:
                inner = Requirement(line)
                if inner.marker is None or inner.marker.evaluate({**environment, "extra": extra}):
                    inner.marker = None
                    queue.append(inner)
    return {name for name, _ in seen}


def marker(platforms: list[str]) -> str:
    """The environment marker of a set of platforms."""
    if len(platforms) == len(PLATFORMS):
        return ""
    if len(platforms) == 1:
        return f' ; sys_platform == "{platforms[0]}"'
    (missing,) = set(PLATFORMS) - set(platforms)
    return f' ; sys_platform != "{missing}"'


def write(device: str, lines: list[str]) -> None:
    """One lock file with its heading."""
    head = "# Written by requirements/lock.py: change that or pyproject.toml, not this file.\n"
    (HERE / f"{device}.lock").write_text(head + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
