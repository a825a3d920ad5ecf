"""What a result came from and what it cost: library versions, a digest of the code, peak memory."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import sys
from functools import cache
from pathlib import Path

import xxhash

TRAINING_CODE = (
    "as_ids.py",
    "budget.py",
    "eager.py",
    "features.py",
    "hashed.py",
    "hashing.py",
    "ids.py",
    "lanes.py",
    "layer.py",
    "ledger.py",
    "pooling.py",
    "ranks.py",
    "recommender.py",
    "rendezvous.py",
    "seeds.py",
    "share.py",
    "sharding.py",
    "stages.py",
    "storage.py",
    "data",
    "embeddings",
    "models",
    "native",
    "tables",
    "training",
    "report/run.py",
    "report/serving.py",
)
"""The sources that a trained model and its metrics depend on. The page, the command line and tracking are not among
them, so that restyling a report trains nothing again; nor is ``config.py``, whose outcome, the resolved config, is part
of a run's identity itself."""

_SOURCES = (".py", ".cpp", ".h")
_LIBRARIES = ("torch", "fbgemm-gpu", "fbgemm-gpu-cpu", "numpy", "pandas", "pyarrow", "mlflow-skinny", "mlflow")


def versions() -> dict[str, str]:
    """Versions of this package and the libraries under it, the interpreter, the system and the processor count."""
    found = {"recsys_embed": _version("recsys-embed"), "python": platform.python_version()}
    found |= {name: version for name in _LIBRARIES if (version := _version(name))}
    return found | {"platform": platform.platform(), "cpus": str(os.cpu_count())}


def processor() -> str:
    """The processor's name, as well as the system tells it."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


@cache
def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return ""


def code_digest() -> str:
    """A digest of the contents of :data:`TRAINING_CODE`: changes when a training run could come out differently."""
    return digest_of(TRAINING_CODE)


@cache
def digest_of(parts: tuple[str, ...]) -> str:
    """A digest of the contents of this package's files and folders."""
    root = Path(__file__).parent
    digest = xxhash.xxh3_64()
    for part in parts:
        path = root / part
        inside = [one for one in path.rglob("*") if one.suffix in _SOURCES] if path.is_dir() else [path]
        for file in sorted(inside):
            digest.update(file.relative_to(root).as_posix().encode() + b"\0")
            digest.update(file.read_bytes() + b"\0")
    return digest.hexdigest()


def reset_peak_rss() -> None:
    """Start a new measurement of :func:`peak_rss_bytes`, where the system can (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_rss_bytes() -> int:
    """The largest resident memory of this process since :func:`reset_peak_rss`, else since its start; 0 if unknown."""
    with contextlib.suppress(OSError, ValueError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024
    if sys.platform == "win32":
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
