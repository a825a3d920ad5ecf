"""What has to be loaded before a command can begin."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from recsys_embed.native.library import load
from tests.clicks import CONFIG


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("recsys_embed.cli", ["torch", "pandas", "pyarrow", "pydantic", "mlflow", "optuna"]),
        ("recsys_embed.data.prepare", ["torch", "mlflow", "optuna"]),
    ],
)
def test_it_begins_without(module: str, heavy: list[str]) -> None:
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"[]\n"


HEAVY = {
    *("torch._dynamo", "torch._inductor", "sympy", "fbgemm_gpu", "torchrec"),
    *("mlflow", "sqlalchemy", "optuna", "scipy", "matplotlib", "jinja2", "sklearn"),
}


@pytest.mark.skipif(isinstance(load(), str), reason="without kernels of our own, FBGEMM's may hold the tables")
def test_a_training_needs_neither_a_compiler_nor_what_others_need(clicks: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(CONFIG.format(path=str(clicks), epochs=1) + "[tracking]\nenabled = false\n")
    arguments = ["train", str(config), "--quiet", "--out", str(tmp_path / "out")]
    code = (
        "import sys\nfrom recsys_embed.cli import app\n"
        f"app({arguments!r}, standalone_mode=False)\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]"
