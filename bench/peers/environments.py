"""Virtual environments for the peers: made once, from the package index, and kept.

One of them holds torch, NumPy and PyArrow alone. The others see its packages behind their own by a ``.pth`` file, so
that torch, 1 GB, is there once and all peers have the same. What was installed is written beside an environment when it
is complete: one that was cut off, or that wants other packages now, is made anew.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping, Sequence
from pathlib import Path

TORCH = "torch"
PACKAGES: Mapping[str, Sequence[Sequence[str]]] = {
    TORCH: [["torch==2.13.0", "numpy==2.4.6", "pyarrow==26.0.1"]],
    # FuxiCTR 2.3.10 reads by Ray, and by a keyword that polars 2 no longer has.
    "fuxictr": [["fuxictr==2.3.10", "polars==1.44.2", "ray[data]==2.60.0"]],
    # DeepCTR-Torch imports requests, which it does not ask for.
    "deepctr": [["deepctr-torch==0.3.0", "scikit-learn==1.9.1", "tqdm==4.70.1", "requests==2.34.2"]],
    # TorchRec asks for an unpinned fbgemm-gpu, the CUDA build, which would be laid over the CPU one.
    "torchrec": [
        ["fbgemm-gpu-cpu==1.8.0", "tensordict==0.15.3", "torchmetrics==1.0.3", "pyre-extensions==0.0.32"],
        ["tqdm==4.70.1"],
        ["--no-deps", "torchrec==1.8.0"],
    ],
}
"""What ``pip install`` is given, call by call."""


def python_of(home: Path, name: str) -> Path | None:
    """The interpreter of an environment, or None where it is not installed."""
    folder = home / "environments" / name
    return _python(folder) if _installed(folder) == _wanted(name) else None


def install(home: Path, names: Sequence[str]) -> dict[str, str]:
    """Make the environments that are missing. Why one could not be made, by its name."""
    failed: dict[str, str] = {}
    for name in names:
        if python_of(home, name) is not None:
            continue
        if name != TORCH and TORCH not in failed:
            failed.update(install(home, [TORCH]))
        if TORCH in failed:
            failed[name] = failed[TORCH]
        elif why := _make(home / "environments" / name, name, home / "environments" / TORCH):
            failed[name] = why
    return failed


def _make(folder: Path, name: str, torch: Path) -> str | None:
    print(f"installing {name} in {folder}", file=sys.stderr, flush=True)
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    if name != TORCH:
        (_packages(folder) / "shared-torch.pth").write_text(f"{_packages(torch)}\n", encoding="utf-8")
    for packages in PACKAGES[name]:
        command = [str(_python(folder)), "-m", "pip", "install", "--quiet", *packages]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return f"pip install {' '.join(packages)}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}"
    _stamp(folder).write_text(_wanted(name), encoding="utf-8")
    return None


def _wanted(name: str) -> str:
    return "\n".join(" ".join(packages) for packages in PACKAGES[name]) + "\n"


def _installed(folder: Path) -> str | None:
    return _stamp(folder).read_text(encoding="utf-8") if _stamp(folder).exists() else None


def _stamp(folder: Path) -> Path:
    return folder / "installed.txt"


def _python(folder: Path) -> Path:
    return folder / "bin" / "python"


def _packages(folder: Path) -> Path:
    return Path(sysconfig.get_path("purelib", "venv", vars={"base": str(folder), "platbase": str(folder)}))
