"""Which libraries are installed, whether they fit each other, and the command that mends what does not.

FBGEMM and TorchRec are compiled against one minor version of torch, and two builds of FBGEMM share one folder. A wrong
pair shows up as an undefined symbol, a missing ``.so`` or a crash, so everything here is first read from the metadata
of the installed packages, before any native library is loaded.

>>> fitting("2.13.0+cpu")
Trio(torch='2.13', fbgemm='1.8', torchrec='1.8')
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, NamedTuple

from packaging.requirements import Requirement

from recsys_embed.chatter import hush, quiet
from recsys_embed.errors import StackError
from recsys_embed.native.library import find, load

Status = Literal["ok", "missing", "mismatch", "broken"]
PROBE_SECONDS = 180


class Trio(NamedTuple):
    """Minor versions that were built for each other."""

    torch: str
    fbgemm: str
    torchrec: str


TRIOS = (Trio("2.13", "1.8", "1.8"), Trio("2.12", "1.7", "1.7"), Trio("2.11", "1.6", "1.6"))
CORE = (
    *("torch", "numpy", "pandas", "pyarrow", "pydantic", "typer", "rich", "safetensors", "jinja2", "matplotlib"),
    *("xxhash", "tomli-w", "packaging"),
)
MODULES = {"fbgemm": "fbgemm_gpu", "tomli-w": "tomli_w"}  # where the import is not called like the component
CPU_BUILD, CUDA_BUILD = "fbgemm-gpu-cpu", "fbgemm-gpu"


@dataclass(frozen=True)
class Component:
    """One line of the diagnosis; ``mend`` is a shell command, where one would help."""

    name: str
    package: str
    version: str | None
    status: Status
    message: str = ""
    mend: str | None = None
    optional: bool = False

    @property
    def module(self) -> str:
        """What is imported to try it."""
        return MODULES.get(self.name, self.name)

    @property
    def fails(self) -> bool:
        """Whether the package cannot be used with it as it is."""
        return self.status in ("mismatch", "broken") or (self.status == "missing" and not self.optional)

    def as_dict(self) -> dict[str, str | bool | None]:
        """The fields, ready for JSON."""
        return asdict(self)


class Installed:
    """What the metadata of the installed packages says; ``path`` replaces ``sys.path``."""

    def __init__(self, path: Sequence[str] | None = None, *, system: str = sys.platform) -> None:
        self.path, self.system = path, system

    def find(self, name: str) -> metadata.Distribution | None:
        """The package of that name, if it is there."""
        where: dict[str, Any] = {} if self.path is None else {"path": list(self.path)}
        return next(iter(metadata.Distribution.discover(name=name, **where)), None)

    def version(self, name: str) -> str | None:
        """Its version, local part included."""
        found = self.find(name)
        return found.version if found else None

    def requires(self, name: str) -> list[Requirement]:
        """Its unconditional requirements on this platform."""
        found = self.find(name)
        requirements = [Requirement(line) for line in (found.requires if found else None) or []]
        return [r for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]

    def has(self, name: str, file: str) -> bool:
        """Whether a file is where the package put it."""
        found = self.find(name)
        return found is not None and Path(str(found.locate_file(file))).exists()

    def fbgemm_builds(self) -> list[str]:
        """The packages that put files into ``fbgemm_gpu/``: an empty stand-in for the CUDA build is not one."""
        return [
            name
            for name in (CPU_BUILD, CUDA_BUILD)
            if (found := self.find(name)) and any(file.parts[0] == "fbgemm_gpu" for file in found.files or ())
        ]


class Probe(NamedTuple):
    """What importing a module in a process of its own came to."""

    error: str | None
    note: str = ""


Prober = Callable[[Iterable[str]], dict[str, Probe]]

_CHILD = """
import importlib, json, sys, warnings
warnings.simplefilter("ignore")
for name in sys.argv[2:]:
    error, note = None, ""
    try:
        module = importlib.import_module(name)
        if name == "torch":
            cuda, count = module.version.cuda, module.cuda.device_count()
            note = f"CUDA {cuda} build, {count} GPU visible" if cuda else "CPU build"
        elif name == "fbgemm_gpu":
            note = getattr(module, "__variant__", "")
    except BaseException as failure:
        error = f"{type(failure).__name__}: {failure}".splitlines()[0][:300]
    with open(sys.argv[1], "a", encoding="utf-8") as results:  # not stdout, where libraries print too
        print(json.dumps([name, error, note]), file=results)
"""


def probe_imports(modules: Iterable[str]) -> dict[str, Probe]:
    """Import each in a child process, since a broken native library may take its process with it."""
    probes: dict[str, Probe] = {}
    waiting = list(modules)
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results"
        while waiting:
            # -P: a file of that name in the current folder is not the library.
            command = [sys.executable, "-P", "-c", _CHILD, str(results), *waiting]
            try:
                done = subprocess.run(command, capture_output=True, timeout=PROBE_SECONDS, check=False)
                end = f"the import ended its process (exit {done.returncode})"
            except subprocess.TimeoutExpired:
                end = f"the import took more than {PROBE_SECONDS} s"
            for line in results.read_text(encoding="utf-8").splitlines() if results.exists() else ():
                name, error, note = json.loads(line)
                probes[name] = Probe(error, note)
            for name in waiting:
                if name not in probes:  # the first of these is where it ended: the others get a process of their own
                    probes[name] = Probe(end)
                    break
            waiting = [name for name in waiting if name not in probes]
    return probes


def diagnose(*, installed: Installed | None = None, probe: Prober = probe_imports) -> list[Component]:
    """Every component: first by metadata, then, where that finds no fault, by importing it elsewhere."""
    installed = installed or Installed()
    components = [
        Component("python", "python", platform.python_version(), "ok"),
        *(_core(installed, name) for name in CORE),
        _native(installed),
        _fbgemm(installed),
        _torchrec(installed),
        _mlflow(installed),
        _optuna(installed),
    ]
    components = [_wanted_by_others(installed, component) for component in components]
    probes = probe([c.module for c in components if c.status == "ok" and c.name not in ("python", "native")])
    return [_probed(component, probes.get(component.module)) for component in components]


def exit_code(components: Iterable[Component]) -> int:
    """0, or 2 if something is wrong; an optional part that is absent is not."""
    return 2 if any(component.fails for component in components) else 0


def check_stack(*, sharded: bool = False, installed: Installed | None = None) -> None:
    """Raise ``StackError`` unless FBGEMM (and TorchRec) can be imported; call it before importing them.

    What they say to nobody's use is dropped from then on.
    """
    hush()
    if installed is None and "fbgemm_gpu" in sys.modules and (not sharded or "torchrec" in sys.modules):
        return
    installed = installed or Installed()
    needed = [_core(installed, "torch"), _fbgemm(installed), *([_torchrec(installed)] if sharded else [])]
    for component in needed:
        if component.status != "ok":
            raise _stack_error(component)
    for component in needed[1:]:
        try:
            with quiet():
                module = importlib.import_module(component.module)
        except (ImportError, OSError) as failure:
            raise _stack_error(_probed(component, Probe(_first_line(failure)))) from failure
        component = _probed(component, Probe(None, getattr(module, "__variant__", "")))
        if component.status != "ok":
            raise _stack_error(component)


def render(components: Sequence[Component]) -> str:
    """The diagnosis as text: a line per component, what mends it below, and a verdict last."""
    wide_name = max(len(c.name) for c in components)
    wide_version = max(len(c.version or "-") for c in components)
    lines = []
    for c in components:
        lines.append(f"{c.name:{wide_name}}  {c.version or '-':{wide_version}}  {c.status:8}  {c.message}".rstrip())
        if c.mend and c.status != "ok":
            lines.append(f"{'':{wide_name}}  to {'install' if c.status == 'missing' else 'mend'}: {c.mend}")
    wrong = [c.name for c in components if c.fails]
    absent = [c.name for c in components if c.status == "missing" and c.optional]
    verdict = f"does not fit: {', '.join(wrong)}" if wrong else "everything installed fits"
    if absent:
        verdict += f"; optional and not installed: {', '.join(absent)}"
    return "\n".join([*lines, "", verdict])


def fitting(torch_version: str) -> Trio | None:
    """The known releases for this torch."""
    return next((trio for trio in TRIOS if trio.torch == _minor(torch_version)), None)


def _core(installed: Installed, name: str) -> Component:
    version = installed.version(name)
    bound = next((r for r in installed.requires("recsys-embed") if r.name == name), None)
    wanted = f"{name}{bound.specifier}" if bound else name
    if version is None:
        return Component(name, name, None, "missing", f"needs {wanted}", _pip(wanted, deps=True))
    if bound and not bound.specifier.contains(version, prereleases=True):
        return Component(name, name, version, "mismatch", f"recsys-embed needs {wanted}", _pip(wanted, deps=True))
    return Component(name, name, version, "ok")


def _native(installed: Installed) -> Component:
    """Our own kernels, and what holds tables on CPU."""
    library = load()

    def found(status: Status, message: str, mend: str | None = None) -> Component:
        version = installed.version("recsys-embed")
        return Component("native", "recsys-embed", version, status, message, mend, optional=True)

    if not isinstance(library, str):
        return found("ok", f"our own kernels hold tables on CPU, with {library.instructions} instructions")
    others = "FBGEMM does" if _fbgemm(installed).status == "ok" else "plain PyTorch does"
    again = f"install a C++ compiler, then {_python()} -m pip install --no-deps --force-reinstall recsys-embed"
    return found("missing" if find() is None else "broken", f"{library}; {others} what they would, on CPU", again)


def _fbgemm(installed: Installed) -> Component:
    builds = installed.fbgemm_builds()
    build = builds[0] if builds else CPU_BUILD
    version, torch = installed.version(build), installed.version("torch") or "(not installed)"
    trio = fitting(torch)

    def found(status: Status, message: str, mend: str | None = None) -> Component:
        return Component("fbgemm", build, version, status, message, mend, optional=True)

    if version is None and installed.system != "linux":
        return found("missing", f"no build for {installed.system}: the native or the reference back end is used")
    if version is None:
        return found("missing", "the fused back end needs it", _pip(f"{build}=={trio.fbgemm}.*") if trio else None)
    if len(builds) == 2:  # what a plain `pip install torchrec` leads to; pip sees nothing wrong
        message = f"{CUDA_BUILD}, the CUDA build, and {CPU_BUILD} are installed over each other"
        return found("mismatch", message, _only(CPU_BUILD if _cpu_only(torch) else CUDA_BUILD, trio))
    if not installed.has(build, "fbgemm_gpu/__init__.py"):  # they went with another package that owned them too
        return found("broken", f"files of {build} are gone", _pip(f"{build}=={version}", force=True))
    if build == CUDA_BUILD and torch.endswith("+cpu"):
        return found("mismatch", f"the CUDA build of FBGEMM does not fit torch {torch}", _only(CPU_BUILD, trio))
    if trio is None or _minor(version) != trio.fbgemm:
        return found("mismatch", *_unfit(build, version, torch, trio and trio.fbgemm))
    return found("ok", f"{build}, fits torch {trio.torch}")


def _torchrec(installed: Installed) -> Component:
    version, torch = installed.version("torchrec"), installed.version("torch") or "(not installed)"
    trio = fitting(torch)

    def found(status: Status, message: str, mend: str | None = None) -> Component:
        return Component("torchrec", "torchrec", version, status, message, mend, optional=True)

    if version is None and installed.system != "linux":
        return found("missing", f"no FBGEMM for {installed.system}: tables are not sharded")
    if version is None:
        # Not with its own requirements: those ask for an unpinned CUDA build of FBGEMM.
        needs = _pip("tensordict", "torchmetrics==1.0.3", "tqdm", "pyre-extensions", deps=True)
        mend = f"{_pip(f'torchrec=={trio.torchrec}.*')} && {needs}" if trio else None
        return found("missing", "sharded training needs it", mend)
    if trio is None or _minor(version) != trio.torchrec:
        return found("mismatch", *_unfit("torchrec", version, torch, trio and trio.torchrec))
    fbgemm = _fbgemm(installed)
    if fbgemm.status != "ok":
        return found("broken", f"it needs fbgemm ({fbgemm.message})", fbgemm.mend)
    return found("ok", f"fits torch {trio.torch}")


def _mlflow(installed: Installed) -> Component:
    package = "mlflow" if installed.version("mlflow") else "mlflow-skinny"
    version = installed.version(package)
    absent = [part for part in (package, "sqlalchemy", "alembic") if installed.version(part) is None]
    if version and not absent:
        return Component("mlflow", package, version, "ok", package, optional=True)
    message = f"its SQLite store needs {' and '.join(absent)}" if version else "tracking needs it"
    return Component("mlflow", package, version, "missing", message, _pip(*absent, deps=True), optional=True)


def _optuna(installed: Installed) -> Component:
    version = installed.version("optuna")
    if version is None:
        mend = _pip("optuna", deps=True)
        return Component("optuna", "optuna", None, "missing", "dimension search needs it", mend, optional=True)
    return Component("optuna", "optuna", version, "ok", optional=True)


def _wanted_by_others(installed: Installed, component: Component) -> Component:
    """Hold a sound component against what the optional packages ask of it, as MLflow does of pyarrow."""
    if component.status != "ok" or component.version is None:
        return component
    for other in ("mlflow", "mlflow-skinny", "optuna", "torchrec"):
        for wanted in installed.requires(other):
            fits = wanted.specifier.contains(component.version, prereleases=True)
            if wanted.name == component.package and not fits:
                text = f"{wanted.name}{wanted.specifier}"
                message = f"{other} {installed.version(other)} needs {text}"
                return replace(component, status="mismatch", message=message, mend=_pip(text, deps=True))
    return component


def _probed(component: Component, probe: Probe | None) -> Component:
    """The component once its import was tried."""
    if probe is None:
        return component
    again = _pip(f"{component.package}=={(component.version or '').partition('+')[0]}", force=True)
    if probe.error is not None:
        return replace(component, status="broken", message=f"cannot be imported: {probe.error}", mend=again)
    if component.package == CPU_BUILD and probe.note != "cpu":
        message = f"the files of {CPU_BUILD} are those of another build ({probe.note or 'unknown'})"
        return replace(component, status="mismatch", message=message, mend=again)
    note = "" if component.name == "fbgemm" else probe.note
    return replace(component, message="; ".join(filter(None, [component.message, note])))


def _unfit(package: str, version: str, torch: str, right: str | None) -> tuple[str, str]:
    message = f"{package} {version} does not fit torch {torch}"
    if right is None:
        return f"{message}, for which no release is known", _pip(f"torch=={TRIOS[0].torch}.*", deps=True)
    return f"{message}, which needs {right}", _pip(f"{package}=={right}.*")


def _stack_error(component: Component) -> StackError:
    shown = f"{component.name} {component.version or component.status}: {component.message}"
    mend = component.mend or "recsys-embed doctor"
    return StackError(f"{shown}. To mend: {mend}", component=component.name, mend=mend)


def _cpu_only(torch: str) -> bool:
    """Whether the CPU build is the one to keep: a torch from the default index may run on either kind of machine."""
    return torch.endswith("+cpu") or not os.path.exists("/dev/nvidia0")


def _only(build: str, trio: Trio | None) -> str:
    """The command that leaves one build: removing either takes files of both."""
    right = f"{build}=={trio.fbgemm}.*" if trio else build
    return f"{_python()} -m pip uninstall -y {CUDA_BUILD} {CPU_BUILD} && {_pip(right)}"


def _pip(*packages: str, deps: bool = False, force: bool = False) -> str:
    """A pip command for this environment; without dependencies, unless asked, so that torch stays as it is."""
    flags = ("" if deps else " --no-deps") + (" --force-reinstall" if force else "")
    return f"{_python()} -m pip install{flags} " + " ".join(f'"{package}"' for package in packages)


def _python() -> str:
    here = os.path.join(os.getcwd(), "")
    path = sys.executable.removeprefix(here)
    return f'"{path}"' if " " in path else path


def _first_line(failure: Exception) -> str:
    return str(failure).partition("\n")[0]


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])
