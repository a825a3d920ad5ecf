"""Each hazard of the native stack, from a folder of made-up package metadata."""

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest

from recsys_embed import doctor
from recsys_embed.doctor import Component, Installed, Probe
from recsys_embed.errors import StackError

CPU_FILES = ["fbgemm_gpu/__init__.py", "fbgemm_gpu/fbgemm_gpu_py.so"]
SOUND = {
    "numpy": "2.4.6",
    "pandas": "3.1.1",
    "pyarrow": "26.0.1",
    "pydantic": "2.14.3",
    "typer": "0.29.2",
    "rich": "15.0.0",
    "safetensors": "0.8.0",
    "jinja2": "3.1.6",
    "matplotlib": "3.11.2",
    "xxhash": "4.1.0",
    "tomli-w": "1.2.0",
    "packaging": "26.3",
}

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path) -> Install:
    """Writes one package as pip would; a new version replaces the old one."""

    def write(name: str, version: str, *, files: Iterable[str] = (), requires: Iterable[str] = ()) -> None:
        info = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        (info / "METADATA").write_text("\n".join([*lines, *(f"Requires-Dist: {r}" for r in requires)]) + "\n")
        (info / "RECORD").write_text("".join(f"{file},,\n" for file in [*files, f"{info.name}/METADATA"]))
        for file in files:
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).touch()

    return write


@pytest.fixture
def core(install: Install) -> None:
    install("recsys-embed", "0.1.0", requires=["torch<2.14,>=2.11", "numpy>=2.0", 'pytest>=8; extra == "dev"'])
    for name, version in SOUND.items():
        install(name, version)


def imports_well(modules: Iterable[str]) -> dict[str, Probe]:
    return {module: Probe(None, "cpu" if module == "fbgemm_gpu" else "") for module in modules}


def diagnose(
    path: Path, *, system: str = "linux", probe: doctor.Prober = imports_well
) -> tuple[dict[str, Component], int]:
    components = doctor.diagnose(installed=Installed([str(path)], system=system), probe=probe)
    return {component.name: component for component in components}, doctor.exit_code(components)


def refusal(path: Path, *, sharded: bool = False, system: str = "linux") -> StackError:
    with pytest.raises(StackError) as caught:
        doctor.check_stack(sharded=sharded, installed=Installed([str(path)], system=system))
    assert caught.value.exit_code == 2
    return caught.value


@pytest.mark.usefixtures("core")
@pytest.mark.parametrize("trio", doctor.TRIOS)
def test_trios_that_were_built_together_fit(trio: doctor.Trio, install: Install, tmp_path: Path) -> None:
    install("torch", f"{trio.torch}.0+cpu")
    install("fbgemm-gpu-cpu", f"{trio.fbgemm}.0", files=CPU_FILES)
    install("fbgemm-gpu", f"{trio.fbgemm}.0", requires=["fbgemm-gpu-cpu"])  # the stand-in owns no files
    install("torchrec", f"{trio.torchrec}.0", requires=["fbgemm-gpu"])
    components, code = diagnose(tmp_path)
    assert components["fbgemm"].status == components["torchrec"].status == "ok"
    assert code == 0


@pytest.mark.usefixtures("core")
def test_without_the_optional_parts_nothing_is_wrong(install: Install, tmp_path: Path) -> None:
    install("torch", "2.13.0")
    components, code = diagnose(tmp_path)
    for name in ("fbgemm", "torchrec", "mlflow", "optuna"):
        assert components[name].status == "missing"
        assert "pip install" in (components[name].mend or "")
    assert "fbgemm-gpu-cpu==1.8.*" in (components["fbgemm"].mend or "")
    assert code == 0
    error = refusal(tmp_path)
    assert error.component == "fbgemm"
    assert error.mend == components["fbgemm"].mend


@pytest.mark.usefixtures("core")
@pytest.mark.parametrize("system", ["darwin", "win32"])
def test_platforms_without_fbgemm_are_told_so(system: str, install: Install, tmp_path: Path) -> None:
    install("torch", "2.13.0")
    components, code = diagnose(tmp_path, system=system)
    assert components["fbgemm"].status == components["torchrec"].status == "missing"
    assert "reference back end" in components["fbgemm"].message
    assert components["fbgemm"].mend is None
    assert code == 0
    assert system in str(refusal(tmp_path, system=system))


@pytest.mark.usefixtures("core")
def test_fbgemm_for_another_torch(install: Install, tmp_path: Path) -> None:
    install("torch", "2.12.1")
    install("fbgemm-gpu-cpu", "1.8.0", files=CPU_FILES)
    components, code = diagnose(tmp_path)
    assert components["fbgemm"].status == "mismatch"
    assert components["fbgemm"].message == "fbgemm-gpu-cpu 1.8.0 does not fit torch 2.12.1, which needs 1.7"
    assert "fbgemm-gpu-cpu==1.7.*" in (components["fbgemm"].mend or "")
    assert code == 2
    assert "1.8.0 does not fit torch 2.12.1" in str(refusal(tmp_path))


@pytest.mark.usefixtures("core")
def test_torchrec_for_another_torch(install: Install, tmp_path: Path) -> None:
    install("torch", "2.13.0+cpu")
    install("fbgemm-gpu-cpu", "1.8.0", files=CPU_FILES)
    install("torchrec", "1.7.0")
    components, code = diagnose(tmp_path)
    assert components["fbgemm"].status == "ok"
    assert components["torchrec"].status == "mismatch"
    assert "torchrec==1.8.*" in (components["torchrec"].mend or "")
    assert code == 2
    assert refusal(tmp_path, sharded=True).component == "torchrec"


@pytest.mark.usefixtures("core")
def test_the_cuda_build_over_the_cpu_build(install: Install, tmp_path: Path) -> None:
    install("torch", "2.13.0+cpu")
    install("fbgemm-gpu-cpu", "1.8.0", files=CPU_FILES)
    install("fbgemm-gpu", "1.8.0", files=CPU_FILES)
    install("torchrec", "1.8.0", requires=["fbgemm-gpu"])
    components, code = diagnose(tmp_path)
    assert components["fbgemm"].status == "mismatch"
    assert "over each other" in components["fbgemm"].message
    mend = components["fbgemm"].mend or ""
    assert mend.index("uninstall -y fbgemm-gpu fbgemm-gpu-cpu") < mend.index('"fbgemm-gpu-cpu==1.8.*"')
    assert components["torchrec"].status == "broken"
    assert code == 2
    assert "over each other" in str(refusal(tmp_path))


@pytest.mark.usefixtures("core")
def test_the_cuda_build_with_the_cpu_wheel_of_torch(install: Install, tmp_path: Path) -> None:
    install("torch", "2.13.0+cpu")
    install("fbgemm-gpu", "1.8.0", files=CPU_FILES)
    components, code = diagnose(tmp_path)
    assert components["fbgemm"].status == "mismatch"
    assert code == 2


@pytest.mark.usefixtures("core")
def test_the_files_went_with_the_other_build(install: Install, tmp_path: Path) -> None:
    install("torch", "2.13.0+cpu")
    install("fbgemm-gpu-cpu", "1.8.0", files=CPU_FILES)
    (tmp_path / CPU_FILES[0]).unlink()
    components, code = diagnose(tmp_path)
    assert components["fbgemm"].status == "broken"
    assert "--force-reinstall" in (components["fbgemm"].mend or "")
    assert code == 2
    assert "are gone" in str(refusal(tmp_path))


@pytest.mark.usefixtures("core")
def test_the_files_are_those_of_another_build(install: Install, tmp_path: Path) -> None:
    install("torch", "2.13.0+cpu")
    install("fbgemm-gpu-cpu", "1.8.0", files=CPU_FILES)
    components, code = diagnose(tmp_path, probe=lambda modules: dict.fromkeys(modules, Probe(None, "cuda")))
    assert components["fbgemm"].status == "mismatch"
    assert code == 2


@pytest.mark.usefixtures("core")
def test_a_torch_that_no_release_is_known_for(install: Install, tmp_path: Path) -> None:
    install("torch", "2.15.0")
    install("fbgemm-gpu-cpu", "1.8.0", files=CPU_FILES)
    components, code = diagnose(tmp_path)
    assert components["torch"].status == components["fbgemm"].status == "mismatch"
    assert "<2.14" in (components["torch"].mend or "")
    assert code == 2


@pytest.mark.usefixtures("core")
def test_no_torch_at_all(tmp_path: Path) -> None:
    components, code = diagnose(tmp_path)
    assert components["torch"].status == "missing"
    assert code == 2
    assert refusal(tmp_path).component == "torch"


@pytest.mark.usefixtures("core")
def test_a_library_that_cannot_be_imported(install: Install, tmp_path: Path) -> None:
    install("torch", "2.13.0+cpu")
    install("fbgemm-gpu-cpu", "1.8.0", files=CPU_FILES)
    error = "OSError: undefined symbol: _ZN3c10"
    components, code = diagnose(tmp_path, probe=lambda modules: imports_well(modules) | {"fbgemm_gpu": Probe(error)})
    assert components["fbgemm"].status == "broken"
    assert error in components["fbgemm"].message
    assert code == 2


@pytest.mark.usefixtures("core")
def test_a_mismatch_is_found_without_importing(install: Install, tmp_path: Path) -> None:
    install("torch", "2.12.0")
    install("fbgemm-gpu-cpu", "1.8.0", files=CPU_FILES)
    tried: set[str] = set()

    def watch(modules: Iterable[str]) -> dict[str, Probe]:
        tried.update(modules)
        return imports_well(tried)

    diagnose(tmp_path, probe=watch)
    assert "fbgemm_gpu" not in tried
    assert "torch" in tried


@pytest.mark.usefixtures("core")
def test_full_mlflow_needs_an_older_pyarrow(install: Install, tmp_path: Path) -> None:
    install("torch", "2.13.0")
    install("mlflow", "3.17.2", requires=["pyarrow<26,>=4.0.0"])
    install("sqlalchemy", "2.1.9")
    install("alembic", "1.20.1")
    components, code = diagnose(tmp_path)
    assert components["mlflow"].status == "ok"
    assert components["pyarrow"].status == "mismatch"
    assert "mlflow 3.17.2 needs pyarrow<26" in components["pyarrow"].message
    assert code == 2


@pytest.mark.usefixtures("core")
def test_the_light_mlflow_without_its_store(install: Install, tmp_path: Path) -> None:
    install("torch", "2.13.0")
    install("mlflow-skinny", "3.17.2")
    components, code = diagnose(tmp_path)
    assert components["mlflow"].status == "missing"
    assert "sqlalchemy and alembic" in components["mlflow"].message
    assert code == 0


def test_a_probe_survives_a_library_that_ends_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "crashes.py").write_text("import os\nprint('loading')\nos.abort()\n")
    (tmp_path / "fails.py").write_text("raise OSError('undefined symbol: x\\nmore')\n")
    (tmp_path / "sound.py").write_text("print('@end of the line')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    probes = doctor.probe_imports(["crashes", "fails", "sound"])
    assert "ended its process" in (probes["crashes"].error or "")
    assert probes["fails"].error == "OSError: undefined symbol: x"
    assert probes["sound"].error is None


def test_a_failed_import_becomes_a_stack_error(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("torch", "2.13.0+cpu")
    install("fbgemm-gpu-cpu", "1.8.0", files=CPU_FILES)
    monkeypatch.setitem(sys.modules, "fbgemm_gpu", None)  # makes the import fail
    error = refusal(tmp_path)
    assert "cannot be imported" in str(error)
    assert "fbgemm-gpu-cpu==1.8.0" in error.mend


@pytest.mark.usefixtures("core")
def test_rendering_names_faults_and_their_commands(
    install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "load", lambda: SimpleNamespace(instructions="AVX2"))
    install("torch", "2.12.0")
    install("fbgemm-gpu-cpu", "1.8.0", files=CPU_FILES)
    components, _ = diagnose(tmp_path)
    text = doctor.render(list(components.values()))
    assert f"to mend: {components['fbgemm'].mend}" in text
    assert text.endswith("does not fit: fbgemm; optional and not installed: torchrec, mlflow, optuna")
    assert json.loads(json.dumps([c.as_dict() for c in components.values()]))[1]["name"] == "torch"


@pytest.mark.usefixtures("core")
def test_it_says_what_holds_tables_on_cpu(install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install("torch", "2.13.0+cpu")
    monkeypatch.setattr(doctor, "load", lambda: SimpleNamespace(instructions="AVX2"))
    native = diagnose(tmp_path)[0]["native"]
    assert (native.status, native.message) == ("ok", "our own kernels hold tables on CPU, with AVX2 instructions")
    monkeypatch.setattr(doctor, "load", lambda: "its kernels are not there")
    monkeypatch.setattr(doctor, "find", lambda: None)
    components, code = diagnose(tmp_path)
    assert components["native"].status == "missing"
    assert components["native"].message.startswith("its kernels are not there; plain PyTorch does what they would")
    assert code == 0
    install("fbgemm-gpu-cpu", "1.8.0", files=CPU_FILES)
    assert "FBGEMM does what they would" in diagnose(tmp_path)[0]["native"].message
    monkeypatch.setattr(doctor, "find", lambda: tmp_path)
    assert diagnose(tmp_path)[0]["native"].status == "broken"


def test_this_environment_fits() -> None:
    components = doctor.diagnose()
    assert doctor.exit_code(components) == 0, doctor.render(components)
    fbgemm = next(component for component in components if component.name == "fbgemm")
    if fbgemm.status == "ok":
        doctor.check_stack()
        assert "fbgemm_gpu" in sys.modules
